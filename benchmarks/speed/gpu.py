#!/usr/bin/env python
"""Measure inference and a training step of two images at full size on one GPU.

    python -m benchmarks.speed.gpu --write docs/performance.md

The models are those of the benchmarks on the CPU, in turn in one process. Memory is the peak of
PyTorch's allocator, without the weights, gradients and momentum that stay allocated.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
from collections.abc import Callable
from typing import Any

import spatialflow  # noqa: F401  # isort: skip  # before PyTorch, for its threads
import torch
from torch import nn

from benchmarks.speed.contestants import NAMES, PANOPTIC_FPN, calibrated_models, set_detections
from benchmarks.speed.report import Report, median_ratio, run_benchmark
from benchmarks.speed.training import training_step
from spatialflow.analysis.inputs import training_image
from spatialflow.analysis.memory import MIB
from spatialflow.analysis.timing import time_in_turn
from spatialflow.utils.precision import autocast

SIZE = (800, 1344)
THINGS = 10
DETECTIONS = 30
SHARE = 5
GPU = torch.device("cuda")
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


def measure(args: argparse.Namespace) -> list[Report]:
    """Measure all contestants in both precisions, and return the report."""
    if not torch.cuda.is_available():
        sys.exit("benchmarks.speed.gpu: no CUDA device, one expected")
    over = "over Panoptic FPN"
    head = ["", "precision", "network", "ms (least to most)", over, "MiB", over]
    report = Report("gpu", head)
    item = training_image(SIZE, things=THINGS)
    models = calibrated_models(item, device="cuda")
    for model in models.values():
        set_detections(model, item, DETECTIONS)
    for what, training in {"inference": False, "training": True}.items():
        for model in models.values():
            model.train(training)
        works = {
            name: training_step(model, SIZE) if training else inference(model, item)
            for name, model in models.items()
        }
        for precision, dtype in PRECISIONS.items():
            tasks = {name: _under(work, dtype) for name, work in works.items()}
            seconds = time_in_turn(tasks, SHARE, args.rounds)
            memory = {name: peak_cuda_mib(task) for name, task in tasks.items()}
            for name in NAMES:
                slower = median_ratio(seconds[name], seconds[PANOPTIC_FPN])
                more = memory[name] / memory[PANOPTIC_FPN]
                cells = [_milliseconds(seconds[name]), f"{slower:.2f}", f"{memory[name]:.0f}"]
                report.rows.append([what, precision, name, *cells, f"{more:.2f}"])
            report.data[f"{what} {precision}"] = {"seconds": seconds, "MiB": memory}
    return [report]


def inference(model: nn.Module, item: dict[str, Any]) -> Callable[[], None]:
    """Return a function that predicts one image."""

    @torch.no_grad()
    def infer() -> None:
        model([item])

    return infer


def peak_cuda_mib(work: Callable[[], Any]) -> float:
    """Run a function and return the most MiB that it has allocated at once on the GPU."""
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def _under(work: Callable[[], Any], dtype: torch.dtype | None) -> Callable[[], None]:
    def several() -> None:
        for _ in range(SHARE):
            with autocast(GPU, dtype):
                work()

    return several


def _milliseconds(seconds: list[float]) -> str:
    least, middle, most = (1e3 * f(seconds) for f in (min, statistics.median, max))
    return f"{middle:.1f} ({least:.1f} to {most:.1f})"


if __name__ == "__main__":
    run_benchmark(__doc__, measure)
