#!/usr/bin/env python
"""Train a small SpatialFlow, evaluate it and draw its predictions. ``make demo`` runs this.

Without arguments it generates panoptic scenes and trains on them for some minutes on a CPU. With
``--data FOLDER`` it trains on that folder and holds out a fifth of the images. The folder has COCO
panoptic layout: images/, panoptic/ and panoptic.json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import spatialflow  # noqa: F401  # isort: skip  # before PyTorch, for its threads
import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from spatialflow.analysis.colour_classifier import evaluate_colour_classifier
from spatialflow.cli.errors import errors_in_one_line
from spatialflow.data import ensure_metadata, panoptic_ground_truth
from spatialflow.engine import Predictor, Trainer, setup
from spatialflow.utils.visualize import draw_panoptic, side_by_side

SCENES_CONFIG = "generated/spatialflow.yaml"
FOLDER_CONFIG = "Base-Small.yaml"


def main() -> None:
    """Run the demo."""
    args = parse_arguments()
    opts = ["OUTPUT_DIR", args.output, *args.opts]
    if args.data:
        opts += ["DATASETS.FOLDER.PATH", str(args.data)]
    config = FOLDER_CONFIG if args.data else SCENES_CONFIG
    with errors_in_one_line():
        cfg = setup(argparse.Namespace(config_file=config, opts=opts, eval_only=False))
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        iterations = cfg.SOLVER.MAX_ITER
        start = time.perf_counter()
        trainer.train()
    minutes = (time.perf_counter() - start) / 60
    results = trainer._last_eval_results["panoptic_seg"]
    train, test = cfg.DATASETS.TRAIN[0], cfg.DATASETS.TEST[0]
    print("\nThe colour classifier, for comparison:")
    colours = evaluate_colour_classifier(train, test)
    picture = draw_examples(cfg, test, Path(cfg.OUTPUT_DIR) / "predictions.png", args.pictures)
    images = len(DatasetCatalog.get(test))
    print(
        f"\n{iterations} iterations and evaluation in {minutes:.1f} minutes "
        f"with {torch.get_num_threads()} threads.\n"
        f"On {images} unseen images:       PQ     things  stuff\n"
        f"  SpatialFlow (this run)   {row(results)}\n"
        f"  colour classifier        {row(colours)}\n"
        f"Pictures: {picture}\nModel and logs: {cfg.OUTPUT_DIR}\n"
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder in COCO panoptic layout")
    parser.add_argument("--output", default="output/demo", help="folder for results")
    parser.add_argument("--pictures", type=int, default=6, help="number of images to draw")
    parser.add_argument("opts", nargs="*", help="config KEY VALUE pairs")
    return parser.parse_args()


def row(results: dict[str, float]) -> str:
    """Return PQ of all classes, things and stuff as text."""
    return "  ".join(f"{results[key]:5.1f}" for key in ("PQ", "PQ_th", "PQ_st"))


def draw_examples(cfg: CfgNode, name: str, path: Path, count: int) -> Path:
    """Draw images, their ground truth and their predictions side by side.

    Args:
        cfg: Config of a finished training.
        name: Name of the data set.
        path: PNG file to write.
        count: Number of images.

    Returns:
        The path.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    predictor = Predictor(cfg)
    metadata = ensure_metadata(name)
    rows = []
    for item in DatasetCatalog.get(name)[:count]:
        image = cv2.imread(item["file_name"])
        ids, segments = predictor(image)["panoptic_seg"]
        rgb = np.ascontiguousarray(image[:, :, ::-1])
        truth = draw_panoptic(rgb, *panoptic_ground_truth(item, metadata), metadata)
        rows.append((rgb, truth, draw_panoptic(rgb, ids.cpu(), segments, metadata)))
    picture = side_by_side(rows, titles=("image", "ground truth", "prediction"))
    cv2.imwrite(str(path), picture[:, :, ::-1])
    return path


if __name__ == "__main__":
    main()
