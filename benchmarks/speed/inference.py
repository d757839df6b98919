#!/usr/bin/env python
"""Measure inference end to end, and the share of each part of SpatialFlow.

    python benchmarks/speed/inference.py --threads 1 --write docs/performance.md

All contestants predict the same image of noise, in turn in one process, at several sizes and
numbers of detections. The times of parts are compared with the speed of a single convolution.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import spatialflow  # noqa: F401  # isort: skip  # before PyTorch, for its threads
import torch
from torch import nn

from benchmarks.speed.contestants import (
    NAMES,
    PANOPTIC_FPN,
    SPATIALFLOW,
    calibrated_models,
    painted_things,
    set_detections,
)
from benchmarks.speed.machine import ceilings
from benchmarks.speed.report import Report, median_ratio, run_benchmark, spread
from spatialflow.analysis.costs import measure_parts
from spatialflow.analysis.inputs import training_image
from spatialflow.analysis.timing import time_in_turn
from spatialflow.config import genotype_of, get_cfg
from spatialflow.modeling.layers.packed_conv import pack_convolutions

SIZES = {(320, 448): (0, 30, 100), (800, 1344): (0, 30, 100)}
HALF = "SpatialFlow, bf16"
PACKED = "Panoptic FPN, packed"
PARTS_AT = 30


def works(models: dict[str, nn.Module], item: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Return functions that predict an image, by name.

    Beside each contestant there are SpatialFlow in bfloat16, and Panoptic FPN with SpatialFlow's
    packed convolutions.
    """
    found: dict[str, Callable[[], Any]] = {
        name: lambda model=model: model([item]) for name, model in models.items()
    }

    def half() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return models[SPATIALFLOW]([item])

    found[HALF] = half
    # In this format the packed operator has its output, and would have to copy it into another.
    packed = copy.deepcopy(models[PANOPTIC_FPN]).to(memory_format=torch.channels_last)
    pack_convolutions(packed)
    found[PACKED] = lambda: packed([item])
    return found


@torch.no_grad()
def measure_size(size: tuple[int, int], counts: tuple[int, ...], rounds: int) -> dict[int, Any]:
    """Time all contestants on one size of image.

    Args:
        size: Height and width in pixels.
        counts: Numbers of things to set.
        rounds: Number of rounds of the timing.

    Returns:
        For each number of things, ``seconds`` of every round, numbers of ``detections`` and of
        ``painted`` things, by contestant.
    """
    item = training_image(size)
    models = calibrated_models(item)
    found = {}
    for count in counts:
        for model in models.values():
            set_detections(model, item, count)
        tasks = works(models, item)
        outputs = {name: task()[0] for name, task in tasks.items()}
        found[count] = {
            "seconds": time_in_turn(tasks, rounds=rounds),
            "detections": {name: len(output["instances"]) for name, output in outputs.items()},
            "painted": {name: painted_things(output) for name, output in outputs.items()},
        }
    return found


def compare(rounds: int) -> Report:
    """Time all contestants at all sizes and numbers of things."""
    head = ["image", "things painted", *NAMES, "over Panoptic FPN", PACKED, HALF, "over fp32"]
    report = Report("inference", head)
    for size, counts in SIZES.items():
        for count, found in measure_size(size, counts, rounds).items():
            seconds = found["seconds"]
            over = median_ratio(seconds[SPATIALFLOW], seconds[PANOPTIC_FPN])
            half = median_ratio(seconds[HALF], seconds[SPATIALFLOW])
            label = f"{size[1]} × {size[0]}"
            painted = sorted(found["painted"][name] for name in NAMES)
            report.rows.append(
                [label, " to ".join(dict.fromkeys(map(str, (painted[0], painted[-1]))))]
                + [spread(seconds[name]) for name in NAMES]
                + [f"{over:.2f}", spread(seconds[PACKED])]
                + [spread(seconds[HALF]), f"{half:.2f}"]
            )
            report.bars[f"over Panoptic FPN, {label}, {count} things"] = over
            report.bars[f"bf16 over fp32, {label}, {count} things"] = half
            report.data[f"{label} {count}"] = found
    return report


@torch.no_grad()
def compare_parts(rounds: int) -> Report:
    """Compare the time of each part with that of its operations at the machine's ceiling."""
    size = next(iter(SIZES))
    item = training_image(size)
    model = calibrated_models(item, names=(SPATIALFLOW,))[SPATIALFLOW]
    set_detections(model, item, PARTS_AT)
    genotype = genotype_of(get_cfg("coco/spatialflow_r50_20e.yaml"))
    ceiling = ceilings(rounds)
    parts = measure_parts(model, genotype, size)["parts"]
    rest = _after_the_network(model, item, rounds)
    report = Report("parts", ["part", "GMAC", "ms", "time over operations at the ceiling"])
    for name, part in {**parts, **rest}.items():
        gmac = part.get("multiply_adds", 0) / 1e9
        at_best = 2 * gmac / ceiling["GFLOP/s fp32"]
        over = f"{part['seconds'] / at_best:.2f}" if gmac else ""
        report.rows.append(
            [name, f"{gmac:.2f}" if gmac else "", f"{1e3 * part['seconds']:.1f}", over]
        )
    report.data = {"ceiling": ceiling, "parts": parts, "rest": rest}
    return report


def _after_the_network(
    model: Any, item: dict[str, Any], rounds: int
) -> dict[str, dict[str, float]]:
    """Return the seconds of work outside of modules: NMS, upsampling, pasting and fusion."""
    watched = {
        "choosing boxes (NMS)": (model, "detect"),
        "upsampling stuff": (model.stuff_head, "upsample"),
        "pasting masks, labels and fusion": (model, "postprocess"),
    }
    spent: dict[str, list[float]] = {name: [] for name in watched}

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            start = time.perf_counter()
            result = work(*args)
            spent[name].append(time.perf_counter() - start)
            return result

        return call

    for name, (owner, method) in watched.items():
        setattr(owner, method, timed(name, getattr(owner, method)))
    for _ in range(rounds + 1):
        model([item])
    for owner, method in watched.values():
        delattr(owner, method)
    return {name: {"seconds": statistics.median(seconds[1:])} for name, seconds in spent.items()}


def measure(args: argparse.Namespace) -> list[Report]:
    """Measure, and return both reports."""
    return [compare_parts(args.rounds), compare(args.rounds)]


if __name__ == "__main__":
    run_benchmark(__doc__, measure)
