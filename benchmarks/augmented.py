#!/usr/bin/env python
r"""Measure PQ and time of test-time augmentation, for one trained model on the same images.

    python benchmarks/augmented.py --config-file benchmarks/peers/nuclei.yaml \
        --weights output/attention_nuclei/spatialflow-seed0/model_final.pth --sizes 320 384 448 \
        --write docs/results.md --opts DATASETS.FOLDER.PATH nuclei_train433

Differences are to prediction from one view, paired by image. Intervals are over images. A time is
that of one evaluation of all images.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import spatialflow  # noqa: F401  # isort: skip  # before PyTorch, for its threads
import torch

from spatialflow.analysis.intervals import ResampledPQ, Result
from spatialflow.analysis.tables import complete, program_parser, table
from spatialflow.analysis.trials import PQTrainer
from spatialflow.cli.errors import errors_in_one_line
from spatialflow.config import get_cfg
from spatialflow.engine import prepare_config


def views(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the keys of ``TEST.AUG`` for each row of the table, by the row's name."""
    middle = args.sizes[len(args.sizes) // 2]
    return {
        "one view": {"ENABLED": False},
        "mirrored too": {"ENABLED": True, "MIN_SIZES": [middle], "FLIP": True},
        f"{len(args.sizes)} sizes": {"ENABLED": True, "MIN_SIZES": args.sizes, "FLIP": False},
        f"{len(args.sizes)} sizes, mirrored too": {
            "ENABLED": True,
            "MIN_SIZES": args.sizes,
            "FLIP": True,
        },
    }


def evaluate(args: argparse.Namespace, keys: dict[str, Any], folder: str) -> tuple[Result, float]:
    """Evaluate once with keys of ``TEST.AUG``; return the result and the seconds."""
    cfg = get_cfg(args.config_file, args.opts)
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = str(args.weights), folder
    for key, value in keys.items():
        cfg.TEST.AUG[key] = value
    cfg.TEST.AUG.MAX_SIZE = cfg.INPUT.MAX_SIZE_TEST * 2
    prepare_config(cfg)
    trainer = PQTrainer(cfg)
    trainer.resume_or_load(resume=False)
    PQTrainer.test(cfg, trainer.model)
    result = {"contestant": "", "seed": 0, **PQTrainer.results(cfg)}
    return result, PQTrainer.evaluation_seconds


def main() -> None:
    """Evaluate each row, and print the table."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    rows: list[list[str]] = []
    first: tuple[ResampledPQ, float] | None = None
    with errors_in_one_line():
        for name, keys in views(args).items():
            with tempfile.TemporaryDirectory(prefix="spatialflow_views_") as folder:
                result, seconds = evaluate(args, keys, folder)
            sampled = ResampledPQ([result])
            first = first or (sampled, seconds)
            difference = sampled.minus(first[0]).cell(0, sign=True) if rows else ""
            cells = [sampled.cell(group) for group in range(3)]
            rows.append([name, *cells, difference, f"{seconds:.0f}", f"{seconds / first[1]:.1f}"])
        head = ["views", "PQ", "things", "stuff", "PQ over one view", "s", "time ×"]
        text = table(head, rows)
        print(text)
        complete(args.write, {"views": text})


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = program_parser(__doc__)
    parser.add_argument("--config-file", required=True, help="config of the training: name or path")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", required=True, help="short sides in pixels")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
