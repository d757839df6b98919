"""A baseline without a network: classify every pixel by its colour alone.

The classifier counts how often each class has each colour, gives every pixel its likeliest class,
takes the connected components of a thing class as its instances, and drops small segments. It
fails where classes share their colours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog

from spatialflow.data import ensure_metadata, panoptic_ground_truth, read_image
from spatialflow.evaluation import PanopticEvaluator

_LEVELS = 16
_BIN = 256 // _LEVELS


class ColourClassifier:
    """Most probable class of a pixel, given its quantised colour."""

    def __init__(
        self,
        *,
        num_things: int,
        num_stuff: int,
        min_thing_area: int = 64,
        min_stuff_area: int = 400,
        white_level: float | None = None,
    ) -> None:
        """Start with no colours counted.

        Args:
            num_things: K, number of thing classes.
            num_stuff: S, number of stuff classes and one.
            min_thing_area: Components of a thing class up to this area in pixels are dropped.
            min_stuff_area: Stuff that covers no more than this area in pixels is dropped.
            white_level: The value of ``INPUT.WHITE_LEVEL``.
        """
        self.num_things = num_things
        self.white_level = white_level
        self.min_thing_area = min_thing_area
        self.min_stuff_area = min_stuff_area
        # Classes are numbered 0 … K - 1 (things), then K + 1 … K + S - 1 (stuff); K stays empty.
        self.counts = np.zeros((_LEVELS**3, num_things + num_stuff), dtype=np.int64)

    def learn(self, dataset_name: str) -> None:
        """Count the colours of all labelled pixels of a registered data set."""
        metadata = ensure_metadata(dataset_name)
        for item in DatasetCatalog.get(dataset_name):
            colors = self._quantised(item["file_name"])
            ids, segments = panoptic_ground_truth(item, metadata)
            for segment in segments:
                pixels = colors[ids.numpy() == segment["id"]]
                label = segment["category_id"] + (0 if segment["isthing"] else self.num_things)
                self.counts[:, label] += np.bincount(pixels, minlength=_LEVELS**3)

    def predict(self, file_name: str) -> tuple[torch.Tensor, list[dict[str, Any]]]:
        """Segment an image.

        Args:
            file_name: Path of the image.

        Returns:
            (H, W) int32 ids, and ``segments_info``, as a model returns them.
        """
        # A colour that was never seen gets the most frequent class.
        scores = self.counts + 1e-9 * self.counts.sum(axis=0)
        labels = scores.argmax(axis=1)[self._quantised(file_name)]
        ids = np.zeros(labels.shape, dtype=np.int32)
        segments: list[dict[str, Any]] = []
        for label in np.unique(labels):
            isthing = bool(label < self.num_things)
            category_id = int(label if isthing else label - self.num_things)
            for mask in self._masks(labels == label, isthing):
                segment_id = len(segments) + 1
                ids[mask] = segment_id
                segments.append({"id": segment_id, "isthing": isthing, "category_id": category_id})
        return torch.from_numpy(ids), segments

    def _masks(self, pixels: np.ndarray, isthing: bool) -> list[np.ndarray]:
        if not isthing:
            return [pixels] if pixels.sum() > self.min_stuff_area else []
        _, components = cv2.connectedComponents(pixels.astype(np.uint8))
        areas = np.bincount(components.ravel())
        return [components == i for i in range(1, len(areas)) if areas[i] > self.min_thing_area]

    def _quantised(self, file_name: str) -> np.ndarray:
        """Return the colour bin of every pixel, (H, W)."""
        levels = read_image(file_name, white_level=self.white_level).astype(np.int64) // _BIN
        return (levels[..., 0] * _LEVELS + levels[..., 1]) * _LEVELS + levels[..., 2]


def evaluate_colour_classifier(
    train_name: str,
    test_name: str,
    output_dir: str | Path | None = None,
    *,
    white_level: float | None = None,
) -> dict[str, float]:
    """Learn the colours of one registered data set, and evaluate on another.

    Args:
        train_name: Name of the data set to learn from.
        test_name: Name of the data set to evaluate on. It has the same classes.
        output_dir: Folder for ``panoptic_results.json``; None writes nothing.
        white_level: The value of ``INPUT.WHITE_LEVEL``.

    Returns:
        {"PQ", "SQ", "RQ", "PQ_th", …} in percent.
    """
    metadata = ensure_metadata(train_name)
    classifier = ColourClassifier(
        num_things=len(metadata.thing_classes),
        num_stuff=len(metadata.stuff_classes),
        white_level=white_level,
    )
    classifier.learn(train_name)
    evaluator = PanopticEvaluator(test_name, output_dir)
    evaluator.reset()
    for item in DatasetCatalog.get(test_name):
        evaluator.process([item], [{"panoptic_seg": classifier.predict(item["file_name"])}])
    results = evaluator.evaluate()
    assert results is not None, "only processes other than the first have no results"
    return dict(results["panoptic_seg"])
