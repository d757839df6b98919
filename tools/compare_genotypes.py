#!/usr/bin/env python
r"""Train genotypes under one harness, and print PQ with intervals and the cost of each.

    python tools/compare_genotypes.py --config-file nuclei/spatialflow.yaml \
        --genotypes spatialflow parallel output/search/genotype.json --seeds 0 1 2 \
        --opts DATASETS.FOLDER.PATH nuclei_train433 SOLVER.MAX_ITER 600

Every genotype is trained with every seed on the same batches and evaluated on DATASETS.TEST.
Differences are to the first genotype, paired by seed and image. Results are kept in --output:
after a stop, the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from detectron2.utils.logger import setup_logger

from spatialflow.analysis.comparison import Comparison, comparison_table, load_genotypes
from spatialflow.analysis.tables import complete, fill, program_parser
from spatialflow.analysis.trials import run_in_subprocess
from spatialflow.cli.errors import SETUP_ERRORS, errors_in_one_line

TABLE_FILE = "comparison.md"


def main() -> None:
    """Train what is missing, then print and write the tables."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    with errors_in_one_line(SETUP_ERRORS):
        genotypes = load_genotypes(args.genotypes)
        comparison = Comparison(args.config_file, args.opts, genotypes, args.seeds, args.output)
        if args.one:
            name, seed = args.one
            comparison.train(name, int(seed))
            return
        setup_logger(name="spatialflow")
        for page in args.write:
            # A page without the mark is refused before hours of training.
            fill(page.read_text(), {args.mark: ""}, str(page))
        for name, seed in comparison.missing():
            words = [__file__, "--one", name, seed, *sys.argv[1:]]
            run_in_subprocess(f"{name}, seed {seed}", words)
        results = comparison.results()
        text = comparison_table(results, None if args.no_speed else comparison.costs())
        print(text)
        (args.output / TABLE_FILE).write_text(text + "\n")
        complete(args.write, {args.mark: text})


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = program_parser(__doc__)
    parser.add_argument("--config-file", required=True, help="config of a training: name or path")
    parser.add_argument("--genotypes", nargs="+", required=True, help="names or paths")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("output/comparison"))
    parser.add_argument("--no-speed", action="store_true", help="measure no FLOPs and no times")
    parser.add_argument("--mark", default="comparison", help="name of the table in those pages")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
