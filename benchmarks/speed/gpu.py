#!/usr/bin/env python
"""Measure inference, training and search at full size on one GPU, part by part.

    python -m benchmarks.speed.gpu --write docs/performance.md      # and the tests: make bench-gpu
    python -m benchmarks.speed.gpu --device cpu --size 96 128 --rounds 1      # a dry run

The networks are those of the benchmarks on the CPU. All that is compared takes turns in one
process, both precisions too, with one wait for the GPU after each call, and all paint about as many
things, which are counted. Convolutions and matrix products in fp32 may use TF32, in all networks
alike. Every part is kept when it is done (benchmarks/results/speed/gpu.json). A part that would
begin after ``--budget`` seconds is left out, and said.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import spatialflow  # noqa: F401  # isort: skip  # before PyTorch, for its threads
import cv2
import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.search_cost import HUMAN, step_of
from benchmarks.speed.contestants import (
    NAMES,
    PANOPTIC_FPN,
    calibrated_models,
    painted_things,
    set_detections,
)
from benchmarks.speed.machine import describe
from benchmarks.speed.report import RESULTS, median_ratio
from benchmarks.speed.training import training_step
from spatialflow.analysis.inputs import training_image
from spatialflow.analysis.memory import MIB
from spatialflow.analysis.tables import complete, program_parser, table
from spatialflow.analysis.timing import time_in_turn
from spatialflow.cli.errors import errors_in_one_line
from spatialflow.data import read_image
from spatialflow.utils.errors import ConfigError
from spatialflow.utils.files import write_json
from spatialflow.utils.precision import autocast

THINGS = 10
DETECTIONS = 30
BATCHES = (1, 2, 4, 8)
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
WAITS = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"}
LAUNCHES = {"cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx"}
LAUNCHES |= {"cudaGraphLaunch"}

Row = list[str]
Work = Callable[[], Any]


class GPUBenchmark:
    """The networks on one device, and what is measured of them."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Build and calibrate the networks."""
        self.device, self.size, self.rounds = torch.device(args.device), (*args.size,), args.rounds
        self.item = training_image(self.size, things=THINGS)
        self.models = calibrated_models(self.item, device=args.device)
        for model in self.models.values():
            set_detections(model, self.item, DETECTIONS)

    def inference(self) -> tuple[dict[str, Any], list[Row]]:
        """Measure the prediction of one image, and look into one call."""
        works = self._in_precisions(lambda model: lambda: model([self.item]))
        found = self._measured(works)
        painted = {name: painted_things(work()[0]) for name, work in works.items()}
        inside = {name: inside_of(work, self.device) for name, work in works.items()}
        rows = self._rows("inference", found, {n: f"{x} things" for n, x in painted.items()})
        return {**found, "things painted": painted, "inside of a call": inside}, rows

    def inference_from_a_file(self) -> tuple[dict[str, Any], list[Row]]:
        """Measure the same with reading, resizing and copying the image."""
        with tempfile.TemporaryDirectory(prefix="spatialflow_gpu_") as folder:
            path = Path(folder, "image.png")
            pixels = self.item["image"].permute(1, 2, 0).numpy()
            cv2.imwrite(str(path), np.ascontiguousarray(pixels))

            def read() -> torch.Tensor:
                image = cv2.resize(read_image(str(path), "BGR"), self.size[::-1])
                return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))

            works = self._in_precisions(lambda model: lambda: model([{"image": read()}]))
            found = self._measured(works)
        return found, self._rows("inference from a file", found)

    def batches(self) -> tuple[dict[str, Any], list[Row]]:
        """Measure images a second by the number of images in a batch."""
        works = {
            f"{name}, batch of {count}": inferring(
                lambda model=model, count=count: model([self.item] * count)
            )
            for name, model in self.models.items()
            for count in BATCHES
        }
        seconds = time_in_turn(works, rounds=self.rounds)
        rate = {
            name: int(name.split()[-1]) / statistics.median(times)
            for name, times in seconds.items()
        }
        rows = [["", name, f"{images:.1f} images/s", "", "", ""] for name, images in rate.items()]
        return {"seconds": seconds, "images a second": rate}, rows

    def training(self) -> tuple[dict[str, Any], list[Row]]:
        """Measure a training step of two images."""
        for model in self.models.values():
            model.train()
        steps = {name: training_step(model, self.size) for name, model in self.models.items()}
        works = {
            f"{name}, {precision}": under_autocast(step, self.device, dtype)
            for name, step in steps.items()
            for precision, dtype in PRECISIONS.items()
        }
        found = self._measured(works)
        for model in self.models.values():
            model.eval().zero_grad(set_to_none=True)
        return found, self._rows("training step", found)

    def search(self) -> tuple[dict[str, Any], list[Row]]:
        """Measure an iteration of a search beside a training step of the human design."""
        names = (HUMAN, "first order", "first order, Gumbel")
        with tempfile.TemporaryDirectory(prefix="spatialflow_gpu_") as folder:
            keys = {"MODEL.DEVICE": str(self.device)}
            steps = {name: step_of(name, Path(folder), keys) for name in names}
            seconds = time_in_turn(dict(steps), rounds=self.rounds)
        rows = [
            [
                "search",
                name,
                milliseconds(seconds[name]),
                f"{median_ratio(seconds[name], seconds[HUMAN]):.2f} of a training step",
                "",
                "",
            ]
            for name in names
        ]
        return {"seconds": seconds}, rows

    def _in_precisions(self, work: Callable[[nn.Module], Work]) -> dict[str, Work]:
        """Return ``work`` for each network and precision, without gradients."""
        return {
            f"{name}, {precision}": under_autocast(inferring(work(model)), self.device, dtype)
            for name, model in self.models.items()
            for precision, dtype in PRECISIONS.items()
        }

    def _measured(self, works: dict[str, Work]) -> dict[str, Any]:
        load = os.getloadavg()[0]
        seconds = time_in_turn(works, rounds=self.rounds)
        memory = {name: peak_mib(work, self.device) for name, work in works.items()}
        return {"seconds": seconds, "MiB": memory, "load before": load}

    def _rows(
        self, what: str, found: dict[str, Any], notes: dict[str, str] | None = None
    ) -> list[Row]:
        rows = []
        seconds, memory = found["seconds"], found["MiB"]
        for precision in PRECISIONS:
            reference = f"{PANOPTIC_FPN}, {precision}"
            for name in (f"{name}, {precision}" for name in NAMES):
                slower = median_ratio(seconds[name], seconds[reference])
                more = f"{memory[name] / memory[reference]:.2f}" if memory[reference] else ""
                note = (notes or {}).get(name, "")
                cells = [milliseconds(seconds[name]), f"{slower:.2f}", f"{memory[name]:.0f}", more]
                rows.append([f"{what} {note}".strip(), name, *cells])
        return rows


def inferring(work: Work) -> Work:
    """Return a function that calls another one without gradients."""

    @torch.no_grad()
    def infer() -> Any:
        return work()

    return infer


def under_autocast(work: Work, device: torch.device, dtype: torch.dtype | None) -> Work:
    """Return a function that calls another one under autocast."""

    def cast() -> Any:
        with autocast(device, dtype):
            return work()

    return cast


def inside_of(work: Work, device: torch.device) -> dict[str, float]:
    """Return what happens in one call: operations, and on a GPU launches, waits, busy ms."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        start = time.perf_counter()
        work()
        host = time.perf_counter() - start
        wait_for(device)
    counts: Counter[str] = Counter()
    busy = 0.0
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            busy += event.self_device_time_total
        counts["operations"] += event.name.startswith("aten::")
        counts["launches"] += event.name in LAUNCHES
        counts["waits"] += event.name in WAITS
        counts["copies"] += event.name == "cudaMemcpyAsync"
    # The profiler itself takes time of the host.
    return {**counts, "GPU busy ms": busy / 1e3, "host ms, profiled": 1e3 * host}


def peak_mib(work: Work, device: torch.device) -> float:
    """Return the most MiB that a call has allocated at once on the GPU; 0 on a CPU."""
    if device.type != "cuda":
        return 0.0
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all that is queued."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def milliseconds(seconds: list[float]) -> str:
    """Return median, least and most as text."""
    least, middle, most = (1e3 * f(seconds) for f in (min, statistics.median, max))
    return f"{middle:.1f} ({least:.1f} to {most:.1f})"


def run(args: argparse.Namespace) -> None:
    """Measure the parts in turn, and keep each when it is done.

    Raises:
        ConfigError: If the device is not there.
    """
    start = time.perf_counter()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: no GPU found; --device cpu makes a dry run")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    settings = {"size": list(args.size), "TF32": "in all networks", "device": args.device}
    benchmark = GPUBenchmark(args)
    content: dict[str, Any] = {"machine": describe(), "settings": settings}
    rows: list[Row] = []
    parts = (
        benchmark.inference,
        benchmark.training,
        benchmark.inference_from_a_file,
        benchmark.search,
        benchmark.batches,
    )
    for part in parts:
        name = part.__name__
        if time.perf_counter() - start > args.budget:
            content[name] = f"left out after {args.budget} s"
            print(f"{name}: {content[name]}", flush=True)
            continue
        content[name], more = part()
        rows += more
        print(f"{name}: {time.perf_counter() - start:.0f} s since the start", flush=True)
        write_json(args.results, content, indent=1)
    over = "over Panoptic FPN"
    text = table(["", "network", "ms (least to most)", over, "MiB", over], rows)
    print(text)
    complete(args.write, {"speed gpu": text})


def main() -> None:
    """Read the command line, and measure."""
    parser = program_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1344), help="height and width")
    parser.add_argument("--budget", type=float, default=330, help="seconds for all parts")
    parser.add_argument("--results", type=Path, default=RESULTS / "gpu.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with errors_in_one_line():
        run(args)


if __name__ == "__main__":
    main()
