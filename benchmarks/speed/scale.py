#!/usr/bin/env python
"""Measure how time and memory of inference grow with pixels, instances and classes.

    python benchmarks/speed/scale.py --threads 1 --write docs/performance.md

The network is SpatialFlow with an R50. Memory is the peak of an inference without the parameters.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import spatialflow  # noqa: F401  # isort: skip  # before PyTorch, for its threads
import torch

from benchmarks.speed import panoptic
from benchmarks.speed.contestants import SPATIALFLOW, calibrated_models, set_detections
from benchmarks.speed.report import Report, run_benchmark
from spatialflow.analysis.inputs import training_image
from spatialflow.analysis.memory import peak_mib
from spatialflow.analysis.timing import time_in_turn

MEGAPIXELS = (0.1, 0.25, 0.5, 1, 2, 4)
INSTANCES = (0, 50, 100, 200, 350, 500)
CLASSES = (8, 80, 300, 600, 1200)
SIZE = (320, 448)
THINGS = 30

Points = list[tuple[float, float]]


def seconds_of(work: Callable[[], Any], rounds: int) -> float:
    """Return the median seconds of a function."""
    return statistics.median(time_in_turn({"": work}, rounds=rounds)[""])


def side(value: float) -> int:
    """Round the side of an image to a multiple of 64, at least 64."""
    return max(64, 64 * round(value / 64))


def by_pixels(rounds: int) -> tuple[Points, Points]:
    """Return seconds and MiB by megapixels, at about 30 things."""
    small = training_image(SIZE)
    model = calibrated_models(small, names=(SPATIALFLOW,))[SPATIALFLOW]
    times, memory = [], []
    for wanted in MEGAPIXELS:
        height, width = side(math.sqrt(wanted * 1e6 / 1.4)), side(math.sqrt(wanted * 1e6 * 1.4))
        item = training_image((height, width))
        set_detections(model, item, THINGS)
        pixels = height * width / 1e6
        times.append((pixels, seconds_of(lambda item=item: model([item]), rounds)))
        memory.append((pixels, peak_mib(lambda item=item: model([item]))))
    return times, memory


def by_instances(rounds: int) -> dict[str, Points]:
    """Return seconds of inference by detections, and of the fusion alone by instances."""
    item = training_image(SIZE)
    model = calibrated_models(item, names=(SPATIALFLOW,))[SPATIALFLOW]
    times, fusion = [], []
    for count in INSTANCES:
        set_detections(model, item, count)
        found = len(model([item])[0]["instances"])
        times.append((found, seconds_of(lambda: model([item]), rounds)))
        works = panoptic.fusions(count)
        fusion.append((count, seconds_of(works[panoptic.OURS], rounds)))
    return {"inference, 448 × 320": times, "fusion alone, 640 × 480": fusion}


def by_classes(rounds: int) -> dict[str, Points]:
    """Return seconds by thing classes, and by stuff classes, at about 30 things."""
    item = training_image(SIZE)
    found: dict[str, Points] = {}
    for label, key in (
        ("things", "MODEL.RETINANET.NUM_CLASSES"),
        ("stuff", "MODEL.SEM_SEG_HEAD.NUM_CLASSES"),
    ):
        found[label] = []
        for count in CLASSES:
            # The ignored label is 255 by default, which would be a class here.
            opts = (key, count, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 65535)
            model = calibrated_models(item, opts, (SPATIALFLOW,))[SPATIALFLOW]
            set_detections(model, item, THINGS)
            found[label].append((count, seconds_of(lambda model=model: model([item]), rounds)))
    return found


@torch.no_grad()
def measure(args: argparse.Namespace) -> list[Report]:
    """Measure, and return the report with the ends and the final growth of each line."""
    start = time.time()
    times, memory = by_pixels(min(args.rounds, 2))
    lines = {
        "s: megapixels": {"inference": times},
        "MiB: megapixels": {"inference": memory},
        "s: instances": by_instances(args.rounds),
        "s: classes": by_classes(args.rounds),
    }
    report = Report("scale", ["what grows", "with", "from", "to", "grows at the end as a power of"])
    report.lines = lines
    for title, kinds in lines.items():
        unit, _, by = title.partition(": ")
        for label, points in kinds.items():
            ends = [f"{y:.3g} {unit} at {x:.3g}" for x, y in (points[0], points[-1])]
            report.rows.append([label, by, *ends, f"{exponent(points):.2f}"])
    report.data = {"lines": lines, "seconds": time.time() - start}
    return [report]


def exponent(points: Points) -> float:
    """Return the power p by which the last two points grow. Above 1 is worse than linear."""
    (x0, y0), (x1, y1) = points[-2:]
    return math.log(y1 / y0) / math.log(x1 / x0)


if __name__ == "__main__":
    run_benchmark(__doc__, measure)
