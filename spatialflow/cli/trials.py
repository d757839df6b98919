"""``spatialflow trials``: train genotypes under one harness, and compare PQ and cost."""

from __future__ import annotations

import argparse

import torch

from spatialflow.analysis.comparison import Comparison, comparison_table, load_genotypes
from spatialflow.analysis.tables import complete, fill
from spatialflow.analysis.trials import run_in_subprocess
from spatialflow.cli.errors import errors_in_one_line
from spatialflow.utils.console import start_logging
from spatialflow.utils.errors import ConfigError
from spatialflow.utils.files import check_outputs, write_text
from spatialflow.utils.hold import hold
from spatialflow.utils.signals import StopSignals

TABLE_FILE = "comparison.md"


def main(args: argparse.Namespace) -> int:
    """Train what is missing, print and write the tables, and return the exit status.

    Every genotype is trained with every seed on the same batches and evaluated on DATASETS.TEST.
    Results are kept in ``--output``.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    with errors_in_one_line(), StopSignals():
        if min(args.seeds) < 0:
            raise ConfigError(f"--seeds {args.seeds} given, numbers of 0 or more expected")
        genotypes = load_genotypes(args.genotypes)
        comparison = Comparison(args.config_file, args.opts, genotypes, args.seeds, args.output)
        if args.one:
            name, seed = args.one
            comparison.train(name, int(seed))
        else:
            compare(comparison, args)
    return 0


def compare(comparison: Comparison, args: argparse.Namespace) -> None:
    """Train what is missing in processes of their own, then print and write the tables."""
    start_logging()
    hold(args.output, "--output")
    check_outputs(args.output, [TABLE_FILE])
    if not args.no_speed:
        comparison.check_costs()
    for page in args.write:
        # A page without the mark is refused before hours of training.
        fill(page.read_text(), {args.mark: ""}, str(page))
    for name, seed in comparison.missing():
        run_in_subprocess(f"{name}, seed {seed}", words_of_one(name, seed, args))
    text = comparison_table(comparison.results(), None if args.no_speed else comparison.costs())
    print(text)
    write_text(args.output / TABLE_FILE, text + "\n")
    complete(args.write, {args.mark: text})


def words_of_one(name: str, seed: int, args: argparse.Namespace) -> list[object]:
    """Return the words for Python that train one genotype with one seed."""
    threads = ["--threads", args.threads] if args.threads else []
    return [
        # -P: a folder of the user's that is called darts is not the package.
        *("-P", "-m", "spatialflow_cli", "trials", "--one", name, seed),
        *("--config-file", args.config_file, "--genotypes", *args.genotypes),
        *("--seeds", *args.seeds, "--output", args.output, *threads, "--opts", *args.opts),
    ]
