#!/usr/bin/env python
"""Train the finalist, the human flows and no flows with another learning rate, as a control.

    python -m experiments.study.rates nuclei --data nuclei_train433 --threads 1

All other trainings of the study have one rate, which may suit one network more than another. The
results are of selection images, and nothing is chosen by them. Runs that have a result are not
repeated.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import spatialflow  # noqa: F401  # isort: skip  # before PyTorch, for its threads

from experiments.study.keep import restore
from experiments.study.run import Study
from experiments.study.settings import DATA, HUMAN, PARALLEL, RESULTS
from spatialflow.analysis.tables import program_parser
from spatialflow.utils.console import start_logging

STAGE = "rate_"
SEEDS = range(3)


def main() -> None:
    """Train what is missing, and keep it."""
    parser = program_parser(__doc__)
    parser.add_argument("name", choices=DATA)
    parser.add_argument("--data", type=Path, help="nuclei in COCO panoptic layout")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0005])
    parser.add_argument("--output", type=Path, default=Path("output/study"))
    parser.add_argument("--kept", type=Path, default=RESULTS)
    args = parser.parse_args()
    start_logging()
    try:
        study = Study(argparse.Namespace(**vars(args), round=2))
        restore(study.kept, study.folder)
        usual = study.data
        for rate in args.rates:
            keys = (*usual.training_keys, "SOLVER.BASE_LR", rate)
            study.data = replace(usual, training_keys=keys)
            study.train(f"{STAGE}{rate:g}", [HUMAN, PARALLEL, study.finalist()], SEEDS)
    except ValueError as error:
        sys.exit(f"study: {error}")


if __name__ == "__main__":
    main()
