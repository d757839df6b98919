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
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from PIL import Image

from spatialflow.analysis.colour_classifier import evaluate_colour_classifier
from spatialflow.cli.errors import errors_in_one_line
from spatialflow.data import ensure_metadata, panoptic_ground_truth, read_image
from spatialflow.engine import Predictor, Trainer, setup
from spatialflow.utils.errors import ConfigError
from spatialflow.utils.files import check_outputs, write_atomically
from spatialflow.utils.visualize import draw_panoptic, side_by_side
from spatialflow_cli.arguments import Parser, path_argument

SCENES_CONFIG = "generated/refined.yaml"
FOLDER_CONFIG = "Base-Refined-Small.yaml"
PICTURE_FILE = "predictions.png"


def main() -> None:
    """Run the demo."""
    args = parse_arguments()
    with errors_in_one_line():
        run(args)


def run(args: argparse.Namespace) -> None:
    """Train, evaluate, draw and print."""
    opts = ["OUTPUT_DIR", args.output, *args.opts]
    if args.data:
        opts += ["DATASETS.FOLDER.PATH", args.data]
    config = FOLDER_CONFIG if args.data else SCENES_CONFIG
    if args.pictures < 1:
        raise ConfigError(f"--pictures: {args.pictures} given, 1 or more expected")
    cfg = setup(argparse.Namespace(config_file=config, opts=opts, eval_only=False))
    check_outputs(cfg.OUTPUT_DIR, [PICTURE_FILE])
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    iterations = cfg.SOLVER.MAX_ITER
    start = time.perf_counter()
    trainer.train()
    minutes = (time.perf_counter() - start) / 60
    results = trainer._last_eval_results["panoptic_seg"]
    train, test = cfg.DATASETS.TRAIN[0], cfg.DATASETS.TEST[0]
    print("\nThe colour classifier, for comparison:")
    colours = evaluate_colour_classifier(train, test, white_level=cfg.INPUT.WHITE_LEVEL)
    picture = draw_examples(cfg, test, Path(cfg.OUTPUT_DIR) / PICTURE_FILE, args.pictures)
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
    parser = Parser(description=__doc__)
    parser.add_argument("--data", type=path_argument, help="folder in COCO panoptic layout")
    parser.add_argument(
        "--output", type=path_argument, default="output/demo", help="folder for results"
    )
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
        rgb = read_image(item["file_name"], white_level=cfg.INPUT.WHITE_LEVEL)
        ids, segments = predictor(rgb[:, :, ::-1])["panoptic_seg"]
        truth = draw_panoptic(rgb, *panoptic_ground_truth(item, metadata), metadata)
        rows.append((rgb, truth, draw_panoptic(rgb, ids.cpu(), segments, metadata)))
    picture = side_by_side(rows, titles=("image", "ground truth", "prediction"))
    write_atomically(path, lambda file: Image.fromarray(picture).save(file, format="PNG"))
    return path


if __name__ == "__main__":
    main()
