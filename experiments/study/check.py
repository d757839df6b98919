#!/usr/bin/env python
r"""Compare the study's finalists with the human flows on a third data set.

    python -m experiments.study.check --data coco_panoptic_train100 --threads 1 \
        --write experiments/study/RUNS.md

The data are 100 images of COCO in 27 supercategories. Nothing is searched or chosen here. Results
are kept as those of run.py, and the same command goes on after a stop.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import spatialflow  # noqa: F401  # isort: skip  # before PyTorch, for its threads

from experiments.study.analysis import outcomes
from experiments.study.keep import keep, restore
from experiments.study.settings import HUMAN, PARALLEL, REPOSITORY, RESULTS
from spatialflow.analysis.tables import program_parser
from spatialflow.analysis.trials import run_in_subprocess
from spatialflow.utils.console import start_logging

NAME = "coco27"
SEEDS = range(3)
KEYS = (
    *("DATASETS.FOLDER.VAL_FRACTION", 0.5),
    *("SOLVER.MAX_ITER", 400, "SOLVER.WARMUP_ITERS", 40, "SOLVER.BASE_LR", 0.001),
)


def finalists(kept: Path) -> list[str]:
    """Return the paths of the finalists of each data set's last round.

    Raises:
        ValueError: If there is no finalist yet.
    """
    last: dict[str, str] = {}
    for outcome in outcomes(kept):
        if outcome.chosen:
            path = outcome.folder / "genotypes" / f"{outcome.chosen}.json"
            last[outcome.base] = str(path)
    found = list(last.values())
    if not found:
        raise ValueError(f"{kept}: no finalist.json of a data set, one or more expected")
    return found


def main() -> None:
    """Train what is missing, and write the table."""
    args = parse_arguments()
    start_logging()
    folder, kept = args.output.absolute() / NAME, args.kept / NAME
    try:
        chosen = finalists(args.kept)
        restore(kept, folder)
        words = ["-m", "spatialflow_cli", "trials"]
        words += ["--config-file", REPOSITORY / "benchmarks/peers/coco27.yaml"]
        words += ["--genotypes", HUMAN, PARALLEL, *chosen, "--seeds", *SEEDS]
        words += ["--threads", args.threads, "--output", folder / "check", "--no-speed"]
        if args.write:
            words += ["--write", *args.write, "--mark", f"study {NAME}"]
        words += ["--opts", "DATASETS.FOLDER.PATH", args.data.absolute(), *KEYS]
        run_in_subprocess("check on COCO", words)
    except ValueError as error:
        sys.exit(f"study: {error}")
    finally:
        keep(folder, kept)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = program_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="COCO in panoptic layout")
    parser.add_argument("--output", type=Path, default=Path("output/study"))
    parser.add_argument("--kept", type=Path, default=RESULTS, help="folder of kept results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
