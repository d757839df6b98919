#!/usr/bin/env python
"""Train the finalist and the human flows with another learning rate: a control.

    python -m experiments.study.rates nuclei --data nuclei_train433 --threads 1

All of the study's trainings have one rate, which may suit one network more than another. Judged by
selection images; nothing is chosen by it. What has been run is not run again.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from experiments.study.keep import ROOT, restore
from experiments.study.run import Study
from experiments.study.settings import DATA, HUMAN, PARALLEL
from spatialflow.analysis.tables import parser_of

STAGE = "rate_"
SEEDS = range(3)


def main() -> None:
    """Train what is missing, and keep it."""
    parser = parser_of(__doc__)
    parser.add_argument("name", choices=DATA)
    parser.add_argument("--data", type=Path, help="of nuclei: a folder in COCO panoptic layout")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0005])
    parser.add_argument("--output", type=Path, default=Path("output/study"))
    parser.add_argument("--kept", type=Path, default=ROOT)
    args = parser.parse_args()
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
