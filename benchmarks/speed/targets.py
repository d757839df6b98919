#!/usr/bin/env python
"""Measure every target of speed and memory in one run. The exit status is 0 only if all are met.

python benchmarks/speed/targets.py --data DATA --nuclei NUCLEI --threads 1
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import spatialflow  # noqa: F401  # isort: skip  # before PyTorch, for its threads
import torch

from benchmarks.search_cost import HUMAN, measure_memory, measure_times
from benchmarks.speed import data, halves, inference, panoptic, training
from benchmarks.speed.contestants import (
    PANOPTIC_FPN,
    SPATIALFLOW,
    calibrated_models,
    set_detections,
)
from benchmarks.speed.machine import ceilings
from benchmarks.speed.report import Report, ratios
from spatialflow.analysis.costs import count_multiply_adds
from spatialflow.analysis.inputs import training_image
from spatialflow.analysis.tables import program_parser
from spatialflow.analysis.timing import time_in_turn
from spatialflow.cli.errors import errors_in_one_line

SIZE = (320, 448)
THINGS = 30


@dataclass
class Row:
    """A target and what was measured for it.

    Attributes:
        what: Name of the measurement.
        target: Largest value that meets the target.
        rounds: Value of every round.
        two_sided: Whether the value may have both signs, and its absolute value counts.
    """

    what: str
    target: float
    rounds: list[float]
    two_sided: bool = False

    @property
    def value(self) -> float:
        """Median over rounds; the mean if the target is two-sided."""
        return (statistics.mean if self.two_sided else statistics.median)(self.rounds)

    @property
    def holds(self) -> bool:
        """Whether the target is met."""
        return (abs(self.value) if self.two_sided else self.value) <= self.target

    def cells(self) -> list[str]:
        """Return the row of the table."""
        spread = f"{min(self.rounds):.2f} to {max(self.rounds):.2f}" if self.rounds[1:] else ""
        met = "yes" if self.holds else "**no**"
        target = f"{'± ' if self.two_sided else '≤ '}{self.target:g}"
        return [self.what, target, f"{self.value:.2f}", spread, met]


def inference_rows(args: argparse.Namespace) -> Iterator[Row]:
    """Compare inference with Panoptic FPN's, and bfloat16 with float32 in time and PQ."""
    seconds = inference.measure_size(SIZE, (THINGS,), args.rounds)[THINGS]["seconds"]
    mine = seconds[SPATIALFLOW]
    yield Row("inference over Panoptic FPN's", 1.25, ratios(mine, seconds[PANOPTIC_FPN]))
    yield Row("inference in bf16 over fp32", 0.55, ratios(seconds[inference.HALF], mine))
    changes = []
    # Trained in another process, since a process can register a data set's name only once.
    with ProcessPoolExecutor(
        1, get_context("spawn"), initializer=torch.set_num_threads, initargs=(args.threads,)
    ) as apart:
        for seed in halves.SEEDS:
            found = apart.submit(halves.measure_quality, args.nuclei, seed).result()
            changes.append(found["bf16"]["PQ"] - found["fp32"]["PQ"])
    yield Row("mean change of PQ by bf16, nuclei", 0.1, changes, two_sided=True)


@torch.no_grad()
def dense_rows(args: argparse.Namespace) -> Iterator[Row]:
    """Compare the network, without NMS and pasting, with its operations at the ceiling."""
    item = training_image(SIZE)
    model = calibrated_models(item, names=(SPATIALFLOW,))[SPATIALFLOW]
    set_detections(model, item, 0)
    # Nothing is detected, so these are without the mask head's.
    operations = 2 * count_multiply_adds(model, SIZE) / 1e9
    images = model.preprocess_image([item])
    rounds = []
    for _ in range(args.rounds):
        ceiling = ceilings(3)["GFLOP/s fp32"]
        seconds = time_in_turn({"maps": lambda: model.predict_maps(images)}, rounds=1)["maps"][0]
        rounds.append(seconds / (operations / ceiling))
    yield Row("dense network over its operations at the ceiling", 1.15, rounds)


def training_rows(args: argparse.Namespace) -> Iterator[Row]:
    """Compare a training step with Panoptic FPN's."""
    found = training.measure_steps(max(3, args.rounds // 2), (SPATIALFLOW, PANOPTIC_FPN))
    seconds, memory = found["seconds"], found["MiB"]
    over = ratios(seconds[SPATIALFLOW], seconds[PANOPTIC_FPN])
    yield Row("training step over Panoptic FPN's", 1.4, over)
    yield Row("its peak memory", 1.3, [memory[SPATIALFLOW] / memory[PANOPTIC_FPN]])


def search_rows(args: argparse.Namespace) -> Iterator[Row]:
    """Compare an iteration of the default search with a training step of the human design."""
    first, second = "first order", "second order"
    with errors_in_one_line():
        seconds = measure_times(args.rounds, (HUMAN, first, second))
        memory = {name: measure_memory(name) for name in (HUMAN, first)}
    yield Row("first-order search over a step", 2.6, ratios(seconds[first], seconds[HUMAN]))
    yield Row("its memory", 1.8, [memory[first] / memory[HUMAN]])
    yield Row("second-order search over a step", 5.2, ratios(seconds[second], seconds[HUMAN]))


def panoptic_rows(args: argparse.Namespace) -> Iterator[Row]:
    """Compare fusion and evaluation with Detectron2's."""
    works = panoptic.fusions()
    if not panoptic.identical(works):
        raise AssertionError("fusion gives another result than Detectron2's")
    seconds = time_in_turn(dict(works), rounds=args.rounds)
    over = ratios(seconds[panoptic.OURS], seconds[panoptic.THEIRS])
    yield Row("fusion of 100 instances over Detectron2's", 0.3, over)
    with tempfile.TemporaryDirectory(prefix="spatialflow_speed_") as output:
        evaluating = panoptic.evaluations(args.data, Path(output))
        for metric, target in (("PQ", 0.2), ("AP", 0.5)):
            works = evaluating[metric]
            if not panoptic.equal_results(works):
                raise AssertionError(f"{metric} differs from Detectron2's")
            seconds = time_in_turn(dict(works), rounds=args.rounds)
            over = ratios(seconds[panoptic.OURS], seconds[panoptic.THEIRS])
            yield Row(f"{metric} of {panoptic.IMAGES} COCO images over Detectron2's", target, over)


def data_rows(args: argparse.Namespace) -> Iterator[Row]:
    """Compare the mapper with Detectron2's."""
    with tempfile.TemporaryDirectory(prefix="spatialflow_speed_") as prepared:
        seconds = time_in_turn(data.works(args.data, Path(prepared)), rounds=args.rounds)
    yield Row("mapper over Detectron2's", 0.7, ratios(seconds[data.OURS], seconds[data.THEIRS]))


PARTS = (panoptic_rows, data_rows, inference_rows, dense_rows, training_rows, search_rows)


def main() -> int:
    """Measure and print all targets, and return the exit status."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    start = time.time()
    rows = []
    for part in PARTS:
        for row in part(args):
            rows.append(row)
            print(" | ".join(row.cells()), flush=True)
    report = Report(args.name, ["", "target", "measured", "least to most", "met"])
    report.rows = [row.cells() for row in rows]
    report.data = {
        "when": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "minutes": round((time.time() - start) / 60, 1),
        "rounds": {row.what: row.rounds for row in rows},
    }
    report.save(args.write)
    missed = [row.what for row in rows if not row.holds]
    if missed:
        print(f"missed: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = program_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="COCO in panoptic layout")
    parser.add_argument("--nuclei", type=Path, required=True, help="nuclei in panoptic layout")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--name", default="targets", help="name of the table and of the JSON file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
