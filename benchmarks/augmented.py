#!/usr/bin/env python
r"""PQ and time of test-time augmentation, of one trained model on the same images.

    python benchmarks/augmented.py --config-file benchmarks/peers/nuclei.yaml \
        --weights output/attention_nuclei/spatialflow-seed0/model_final.pth --sizes 320 384 448 \
        --write docs/results.md --opts DATASETS.FOLDER.PATH nuclei_train433

Differences are to one view, paired by image; intervals are over images. A time is that of all
images of the evaluation, once.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from spatialflow.analysis.intervals import Result, Sampled
from spatialflow.analysis.tables import complete, parser_of, table
from spatialflow.analysis.trials import PQTrainer, compact
from spatialflow.cli.errors import SETUP_ERRORS, errors_in_one_line
from spatialflow.config import find_config, get_cfg
from spatialflow.engine import prepare_config
from spatialflow.evaluation import RESULTS_FILE


def views(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the keys of each row."""
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
    """Return one evaluation, and its seconds."""
    cfg = get_cfg(str(find_config(args.config_file)), args.opts)
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = str(args.weights), folder
    for key, value in keys.items():
        cfg.TEST.AUG[key] = value
    cfg.TEST.AUG.MAX_SIZE = cfg.INPUT.MAX_SIZE_TEST * 2
    prepare_config(cfg)
    trainer = PQTrainer(cfg)
    trainer.resume_or_load(resume=False)
    PQTrainer.test(cfg, trainer.model)
    path = Path(folder, "inference", cfg.DATASETS.TEST[0], RESULTS_FILE)
    result = {"contestant": "", "seed": 0, **compact(json.loads(path.read_text()))}
    return result, PQTrainer.evaluation_seconds


def main() -> None:
    """Evaluate all rows and print the table."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    rows: list[list[str]] = []
    first: tuple[Sampled, float] | None = None
    with errors_in_one_line(SETUP_ERRORS):
        for name, keys in views(args).items():
            with tempfile.TemporaryDirectory(prefix="spatialflow_views_") as folder:
                result, seconds = evaluate(args, keys, folder)
            sampled = Sampled([result])
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
    parser = parser_of(__doc__)
    parser.add_argument("--config-file", required=True, help="of the training; name or path")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", required=True, help="short sides")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
