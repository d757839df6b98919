"""The baseline that a network has to beat: a classifier of single pixels by colour.

It learns how often each class has each colour, gives every pixel the likeliest class, takes the
connected components of a thing class as its instances, and drops what is small. Where classes share
their colours it has little to go by.

    python benchmarks/colour_classifier.py --output OUT [--train-scenes 200] [--test-scenes 40]
"""

import argparse
import json
import logging
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, detection_utils
from detectron2.utils.logger import setup_logger

from spatialflow.data import (
    ensure_metadata,
    generate_scenes,
    panoptic_ground_truth,
    register_panoptic,
)
from spatialflow.evaluation import PanopticEvaluator

logger = logging.getLogger("spatialflow.benchmarks.colour_classifier")

_LEVELS = 16
_BIN = 256 // _LEVELS


class ColourClassifier:
    """Most probable class of a pixel, given its quantised colour alone."""

    def __init__(
        self,
        *,
        num_things: int,
        num_stuff: int,
        min_thing_area: int = 64,
        min_stuff_area: int = 400,
    ) -> None:
        """Starts with nothing learnt.

        Args:
            num_things: K, number of thing classes.
            num_stuff: S, number of stuff classes and one.
            min_thing_area: smaller components are dropped, in pixels.
            min_stuff_area: stuff that covers less is dropped, in pixels.
        """
        self.num_things = num_things
        self.min_thing_area = min_thing_area
        self.min_stuff_area = min_stuff_area
        # Classes are numbered 0 … K - 1 (things), then K + 1 … K + S - 1 (stuff); K stays empty.
        self.counts = np.zeros((_LEVELS**3, num_things + num_stuff), dtype=np.int64)

    def learn(self, dataset_name: str) -> None:
        """Counts the colours of all labelled pixels of a registered data set."""
        metadata = ensure_metadata(dataset_name)
        for one in DatasetCatalog.get(dataset_name):
            colors = _quantised(one["file_name"])
            ids, segments = panoptic_ground_truth(one, metadata)
            for segment in segments:
                pixels = colors[ids.numpy() == segment["id"]]
                label = segment["category_id"] + (0 if segment["isthing"] else self.num_things)
                self.counts[:, label] += np.bincount(pixels, minlength=_LEVELS**3)

    def predict(self, file_name: str) -> tuple[torch.Tensor, list[dict]]:
        """Segments an image.

        Args:
            file_name: the image.

        Returns:
            (H, W) int32 ids and segments, as a model gives them.
        """
        # A colour never seen takes the class that is commonest of all.
        scores = self.counts + 1e-9 * self.counts.sum(axis=0)
        labels = scores.argmax(axis=1)[_quantised(file_name)]
        ids = np.zeros(labels.shape, dtype=np.int32)
        segments: list[dict] = []
        for label in np.unique(labels):
            isthing = bool(label < self.num_things)
            category_id = int(label if isthing else label - self.num_things)
            if isthing:
                _, parts = cv2.connectedComponents((labels == label).astype(np.uint8))
                areas = np.bincount(parts.ravel())
                masks = [parts == i for i in range(1, len(areas)) if areas[i] > self.min_thing_area]
            else:
                mask = labels == label
                masks = [mask] if mask.sum() > self.min_stuff_area else []
            for mask in masks:
                segment_id = len(segments) + 1
                ids[mask] = segment_id
                segments.append({"id": segment_id, "isthing": isthing, "category_id": category_id})
        return torch.from_numpy(ids), segments


def _quantised(file_name: str) -> np.ndarray:
    """(H, W) number of the colour bin of each pixel."""
    levels = detection_utils.read_image(file_name, format="RGB").astype(np.int64) // _BIN
    return (levels[..., 0] * _LEVELS + levels[..., 1]) * _LEVELS + levels[..., 2]


def evaluate_colour_classifier(
    train_name: str, test_name: str, output_dir: str | Path | None = None
) -> dict[str, float]:
    """Learns the colours of one registered data set and segments another.

    Args:
        train_name: the data set to learn from.
        test_name: the data set to evaluate, with the same classes.
        output_dir: folder for `panoptic_results.json`; None writes nothing.

    Returns:
        {"PQ", "SQ", "RQ", "PQ_th", …} in percent.
    """
    metadata = ensure_metadata(train_name)
    classifier = ColourClassifier(
        num_things=len(metadata.thing_classes), num_stuff=len(metadata.stuff_classes)
    )
    classifier.learn(train_name)
    evaluator = PanopticEvaluator(test_name, output_dir)
    evaluator.reset()
    for one in DatasetCatalog.get(test_name):
        evaluator.process([one], [{"panoptic_seg": classifier.predict(one["file_name"])}])
    return dict(evaluator.evaluate()["panoptic_seg"])


def main() -> None:
    """Generates scenes and prints the baseline's numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--train-scenes", type=int, default=200)
    parser.add_argument("--test-scenes", type=int, default=40)
    arguments = parser.parse_args()
    setup_logger(name="spatialflow")
    for seed, (part, count) in enumerate(
        (("train", arguments.train_scenes), ("test", arguments.test_scenes))
    ):
        root = arguments.output / part
        generate_scenes(root, count=count, seed=seed)
        register_panoptic(
            f"scenes_{part}", root / "images", root / "panoptic.json", root / "panoptic"
        )
    print(json.dumps(evaluate_colour_classifier("scenes_train", "scenes_test", arguments.output)))


if __name__ == "__main__":
    main()
