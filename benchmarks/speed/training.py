#!/usr/bin/env python
"""Measure time and peak memory of a training step of two images.

    python benchmarks/speed/training.py --threads 1 --write docs/performance.md

A step is forward, losses, backward and optimiser. The models are those of the inference benchmark:
their outputs are finite, so Panoptic FPN trains on 512 proposals an image. Memory is counted tensor
by tensor, and includes parameters, gradients and momentum.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import spatialflow  # noqa: F401  # isort: skip  # before PyTorch, for its threads
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from benchmarks.speed.contestants import (
    NAMES,
    PANOPTIC_FPN,
    SPATIALFLOW,
    calibrated_models,
    set_detections,
)
from benchmarks.speed.report import Report, median_ratio, run_benchmark, spread
from spatialflow.analysis.inputs import training_image
from spatialflow.analysis.memory import MIB, peak_mib
from spatialflow.analysis.timing import time_in_turn

SIZE = (320, 448)
THINGS = 10
DETECTIONS = 30


def training_step(model: nn.Module, size: tuple[int, int] = SIZE) -> Callable[[], None]:
    """Return a function that takes a training step, always on the same two images."""
    batch = [training_image(size, things=THINGS, seed=seed) for seed in (0, 1)]
    learning = [p for p in model.parameters() if p.requires_grad]
    # The steps are too small to change the losses.
    optimizer = torch.optim.SGD(learning, lr=1e-12, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        with EventStorage():
            sum(model(batch).values()).backward()
        optimizer.step()

    return step


def peak_memory(model: nn.Module, step: Callable[[], None]) -> float:
    """Return the peak MiB of a step, with parameters, gradients and momentum."""
    step()
    before = sum(x.nbytes for x in model.state_dict().values())
    # Gradients and momentum. A step frees the gradients of the step before.
    before += 2 * sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return before / MIB + peak_mib(step)


def measure_steps(rounds: int, names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    """Return ``seconds`` of every round and ``MiB`` of a step, by contestant."""
    item = training_image(SIZE, things=THINGS)
    models = calibrated_models(item, names=names)
    for model in models.values():
        set_detections(model, item, DETECTIONS)
        model.train()
    steps = {name: training_step(model) for name, model in models.items()}
    return {
        "seconds": time_in_turn(dict(steps), rounds=rounds),
        "MiB": {name: peak_memory(models[name], steps[name]) for name in names},
    }


def measure(args: argparse.Namespace) -> list[Report]:
    """Measure, and return the report."""
    found = measure_steps(args.rounds)
    seconds, memory = found["seconds"], found["MiB"]
    report = Report("training", ["", "s a step", "over Panoptic FPN", "MiB", "over Panoptic FPN"])
    for name in NAMES:
        over = median_ratio(seconds[name], seconds[PANOPTIC_FPN])
        more = memory[name] / memory[PANOPTIC_FPN]
        report.rows.append(
            [name, spread(seconds[name]), f"{over:.2f}", f"{memory[name]:.0f}", f"{more:.2f}"]
        )
        if name == SPATIALFLOW:
            report.bars = {"time of a step": over, "peak memory": more}
    report.data = {**found, "median": {n: statistics.median(s) for n, s in seconds.items()}}
    return [report]


if __name__ == "__main__":
    run_benchmark(__doc__, measure)
