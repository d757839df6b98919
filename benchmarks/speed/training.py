#!/usr/bin/env python
"""A training step of two images: forward, losses, backward, optimiser; and its peak memory.

    python benchmarks/speed/training.py --threads 1 --write docs/performance.md

The models are those of the inference: finite, so that Panoptic FPN has its 512 proposals an image.
Memory is counted tensor by tensor, as a GPU's allocator would: the most that is alive at once, with
parameters, gradients and momentum. The resident size of a process depends on what malloc keeps.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from torch import nn

from benchmarks.memory import peak_mib, training_image
from benchmarks.speed.contestants import NAMES, PANOPTIC_FPN, SPATIALFLOW, detect, inferring
from benchmarks.speed.report import Report, program, ratio, spread
from spatialflow.analysis.timing import in_turn

SIZE = (320, 448)
THINGS = 10
DETECTIONS = 30
MIB = 2**20


def stepping(model: nn.Module, size: tuple[int, int] = SIZE) -> Callable[[], None]:
    """Return a function that takes a step on always the same two images."""
    batch = [training_image(size, things=THINGS, seed=seed) for seed in (0, 1)]
    learning = [p for p in model.parameters() if p.requires_grad]
    # Steps so small that the losses stay as they are.
    optimizer = torch.optim.SGD(learning, lr=1e-12, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        with EventStorage():
            sum(model(batch).values()).backward()
        optimizer.step()

    return step


def peak_memory(model: nn.Module, step: Callable[[], None]) -> float:
    """Return MiB: the most that is alive in a step."""
    step()
    before = sum(x.nbytes for x in model.state_dict().values())
    # Momentum; the gradients of the step before are freed in the step that is watched.
    before += 2 * sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return before / MIB + peak_mib(step)


def measure_steps(rounds: int, names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    """Return seconds of each contestant's steps, in turn, and MiB."""
    item = training_image(SIZE, things=THINGS)
    models = inferring(item, names=names)
    for model in models.values():
        detect(model, item, DETECTIONS)
        model.train()
    steps = {name: stepping(model) for name, model in models.items()}
    return {
        "seconds": in_turn(dict(steps), rounds=rounds),
        "MiB": {name: peak_memory(models[name], steps[name]) for name in names},
    }


def measure(args: argparse.Namespace) -> list[Report]:
    """Return the report."""
    found = measure_steps(args.rounds)
    seconds, memory = found["seconds"], found["MiB"]
    report = Report("training", ["", "s a step", "over Panoptic FPN", "MiB", "over Panoptic FPN"])
    for name in NAMES:
        over = ratio(seconds[name], seconds[PANOPTIC_FPN])
        more = memory[name] / memory[PANOPTIC_FPN]
        report.rows.append(
            [name, spread(seconds[name]), f"{over:.2f}", f"{memory[name]:.0f}", f"{more:.2f}"]
        )
        if name == SPATIALFLOW:
            report.bars = {"time of a step": over, "peak memory": more}
    report.data = {**found, "median": {n: statistics.median(s) for n, s in seconds.items()}}
    return [report]


if __name__ == "__main__":
    program(__doc__, measure)
