#!/usr/bin/env python
"""PQ of a baseline without a network, which classifies the pixels of generated scenes by colour.

    python benchmarks/colour_classifier.py --output OUT [--train-scenes 200] [--test-scenes 40]

It learns on one set of scenes and is evaluated on another. Prints PQ, SQ and RQ as JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import spatialflow  # noqa: F401  # isort: skip  # before PyTorch, for its threads

from spatialflow.analysis.colour_classifier import evaluate_colour_classifier
from spatialflow.data import generate_scenes, register_panoptic
from spatialflow.utils.console import start_logging


def main() -> None:
    """Generate scenes, and print the numbers of the baseline."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--train-scenes", type=int, default=200)
    parser.add_argument("--test-scenes", type=int, default=40)
    args = parser.parse_args()
    start_logging()
    for seed, (part, count) in enumerate(
        (("train", args.train_scenes), ("test", args.test_scenes))
    ):
        root = args.output / part
        generate_scenes(root, count=count, seed=seed)
        register_panoptic(
            f"scenes_{part}", root / "images", root / "panoptic.json", root / "panoptic"
        )
    print(json.dumps(evaluate_colour_classifier("scenes_train", "scenes_test", args.output)))


if __name__ == "__main__":
    main()
