#!/usr/bin/env python
"""Compare SpatialFlow with Detectron2's Panoptic FPN, and measure the worth of each flow.

    python benchmarks/compare_peers.py run --nuclei nuclei_train433     # hours; may be stopped
    python benchmarks/compare_peers.py flows --nuclei nuclei_train433   # hours; the same
    python benchmarks/compare_peers.py learn --nuclei nuclei_train433 --facades facades_train278
    python benchmarks/compare_peers.py speed --nuclei nuclei_train433   # minutes
    python benchmarks/compare_peers.py report                          # tables from the results

``run`` trains Panoptic FPN, parallel branches and SpatialFlow, with every seed at two learning
rates. ``flows`` trains SpatialFlow, parallel branches and SpatialFlow without each flow, for longer
and at one rate. ``learn`` trains the refined network beside them, on 60 % of the images of each
data set, by the plan in benchmarks/peers/PLAN.md. A result is one small JSON file below
``benchmarks/results``. It is written when its run is complete, and runs that have a result are not
repeated.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import spatialflow  # noqa: F401  # isort: skip  # before PyTorch, for its threads
import torch

from benchmarks.peers.analysis import report
from benchmarks.peers.contestants import (
    DATASETS,
    FOLDERS,
    MAIN,
    REFINED_FLOWS,
    changed,
    config,
    flow_contestants,
    folder_of,
    genotype,
    given_folders,
    run_name,
)
from benchmarks.peers.speed import measure_speed
from benchmarks.peers.thresholds import ThresholdTrainer
from spatialflow.analysis.trials import PQTrainer, run_in_subprocess, run_trial
from spatialflow.cli.errors import errors_in_one_line
from spatialflow.utils.console import start_logging

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RATES = (0.001, 0.002)
SEEDS = (0, 1, 2)
# With fewer steps flows are not learnt, and leaving one out changes nothing.
FLOW_RATE = 0.001
FLOW_STEPS = ["SOLVER.MAX_ITER", "300", "SOLVER.WARMUP_ITERS", "30"]


LEARN_STEPS = ["DATASETS.FOLDER.VAL_FRACTION", "0.4", "DATASETS.SCENES.VAL", "80"]
MEASURED = ("nuclei", "scenes")
# Command → folder of its results and its data sets, where they differ from those of "run".
DEFAULTS = {"flows": ("flows", ("nuclei",)), "learn": ("learning", DATASETS)}


class Run(NamedTuple):
    """One training and its evaluation."""

    dataset: str
    contestant: str
    rate: float
    seed: int

    @property
    def file(self) -> str:
        """Path of the result, below the folder of results."""
        return f"{run_name(*self)}.json"


def peers(args: argparse.Namespace) -> Iterator[Run]:
    """Yield the runs of the main contestants."""
    for seed, dataset, rate, contestant in itertools.product(args.seeds, args.data, RATES, MAIN):
        yield Run(dataset, contestant, rate, seed)


def flows(args: argparse.Namespace) -> Iterator[Run]:
    """Yield the runs that measure the worth of each flow."""
    for seed, dataset, contestant in itertools.product(args.seeds, args.data, flow_contestants()):
        yield Run(dataset, contestant, FLOW_RATE, seed)


def learn(args: argparse.Namespace) -> Iterator[Run]:
    """Yield the runs that compare how fast the refined network learns."""
    names = ("panoptic_fpn", *REFINED_FLOWS, "parallel", "spatialflow")
    # A change is measured where it is asked for.
    names += tuple(name for name in args.contestants or () if name in changed())
    for seed, dataset, name in itertools.product(args.seeds, args.data, names):
        for rate in args.rates:
            yield Run(dataset, name, rate, seed)


PLANS = {"run": (peers, []), "flows": (flows, FLOW_STEPS), "learn": (learn, LEARN_STEPS)}


def run_all(args: argparse.Namespace) -> None:
    """Do every run that has no result yet, each in a process of its own.

    Raises:
        ConfigError: If a contestant is not known, the nuclei are missing, or a run fails.
    """
    for name in args.contestants or ():
        genotype(name)
    plan, steps = PLANS[args.command]
    folders = given_folders(args)
    for dataset in set(FOLDERS) & {*args.data}:
        folder_of(dataset, folders)
    for run in plan(args):
        skipped = args.contestants is not None and run.contestant not in args.contestants
        if skipped or (args.results / run.file).is_file():
            continue
        words = [__file__, "one", *run, "--results", args.results, "--threads", args.threads]
        words += ["--thresholds"] if args.command == "learn" else []
        for name in FOLDERS:
            words += [f"--{name}", folders[name]] if folders[name] else []
        run_in_subprocess(run.file, [*words, "--opts", *steps, *args.opts])


def run_one(args: argparse.Namespace) -> None:
    """Train and evaluate one contestant once, and write the result."""
    run = Run(args.dataset, args.contestant, args.rate, args.seed)
    torch.set_num_threads(args.threads)
    folders = given_folders(args)
    output = ROOT / "output" / args.results.name / Path(run.file).with_suffix("")
    cfg = config(**run._asdict(), output=output, folders=folders, opts=args.opts)
    kind = ThresholdTrainer if args.thresholds else PQTrainer
    run_trial(cfg, args.results / run.file, run._asdict(), kind)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--results", type=Path, help="folder of the results")
    common.add_argument("--data", nargs="+", choices=DATASETS)
    for name in FOLDERS:
        common.add_argument(f"--{name}", type=Path, help="its folder in COCO panoptic layout")
    common.add_argument("--threads", type=int, default=torch.get_num_threads())
    plans = [commands.add_parser(name, parents=[common]) for name in PLANS]
    for plan in plans:
        plan.add_argument("--contestants", nargs="*", help="train these only")
        plan.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
        plan.add_argument("--rates", nargs="+", type=float, default=RATES, help="rates of learn")
    one = commands.add_parser("one", parents=[common], help="do one run")
    for name, kind in (("dataset", str), ("contestant", str), ("rate", float), ("seed", int)):
        one.add_argument(name, type=kind)
    one.add_argument("--thresholds", action="store_true", help="evaluate at several thresholds")
    speed = commands.add_parser("speed", parents=[common])
    speed.add_argument(
        "--weights",
        type=Path,
        default=ROOT / "output" / "peers",
        help="folder of the models that the runs trained",
    )
    tables = commands.add_parser("report", parents=[common])
    tables.add_argument(
        "--write", type=Path, nargs="*", default=[], help="pages to bring up to date"
    )
    tables.add_argument("--flow-results", type=Path, default=RESULTS / "flows")
    tables.add_argument("--learning-results", type=Path, default=RESULTS / "learning")
    tables.add_argument("--curve-results", type=Path, default=RESULTS / "learning_1000")
    tables.add_argument("--curves", type=Path, help="folder to draw learning curves into")
    for command in (*plans, one):
        command.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    args = parser.parse_args()
    folder, data = DEFAULTS.get(args.command, ("peers", MEASURED))
    args.results = args.results or RESULTS / folder
    args.data = args.data or data
    return args


def main() -> None:
    """Run a command."""
    args = parse_arguments()
    if args.command != "one":
        start_logging()
    work = {
        **dict.fromkeys(PLANS, run_all),
        "one": run_one,
        "speed": measure_speed,
        "report": report,
    }
    with errors_in_one_line():
        work[args.command](args)


if __name__ == "__main__":
    main()
