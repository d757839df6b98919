#!/usr/bin/env python
"""Measure a training step with two threads on a busy machine: alone, and beside another program.

    python benchmarks/speed/busy.py --threads 2 --rounds 3 --write docs/performance.md

The other program computes without end on one core. The step is that of ``make demo``. Both ways in
which OpenMP's threads wait take turns, in a process each: sleeping, as SpatialFlow sets it, and
spinning, as is OpenMP's own default.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from benchmarks.speed.report import Report, median_ratio, run_benchmark, spread

CONFIG = "generated/spatialflow.yaml"
STEPS = 4
CORE = 1
POLICIES = {"sleep": {"OMP_WAIT_POLICY": "PASSIVE"}, "spin": {"OMP_WAIT_POLICY": ""}}
"""Way of waiting → variables of the environment."""
COMPETITOR = f"import os\nos.sched_setaffinity(0, {{{CORE}}})\nwhile True: pass"
WORKER = """
import sys, time
from spatialflow import get_cfg
from spatialflow.engine import Trainer, prepare_config
from detectron2.utils.events import EventStorage
import torch
torch.set_num_threads(int(sys.argv[1]))
keys = ["DATASETS.SCENES.TRAIN", "16", "DATASETS.TEST", "()", "OUTPUT_DIR", sys.argv[2]]
cfg = get_cfg(sys.argv[3], keys)
prepare_config(cfg)
trainer = Trainer(cfg)
def step():
    start = time.perf_counter()
    trainer.run_step()
    trainer.iter += 1
    return time.perf_counter() - start
with EventStorage():
    step(), step()
    print("ready", flush=True)
    for line in sys.stdin:
        print(*(step() for _ in range(int(line))), flush=True)
"""


@contextlib.contextmanager
def trainings(threads: int, folder: str) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Start a training for each way of waiting, which then waits for numbers of steps."""
    started: dict[str, subprocess.Popen[str]] = {}
    try:
        for name, variables in POLICIES.items():
            command = [sys.executable, "-W", "ignore", "-c", WORKER, str(threads), folder, CONFIG]
            environment = {**os.environ, **variables}
            environment.pop("OMP_NUM_THREADS", None)
            started[name] = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            answer(started[name])
        yield started
    finally:
        for process in started.values():
            process.kill()
            process.wait()


def answer(training: subprocess.Popen[str]) -> str:
    """Return the next line of a training."""
    assert training.stdout is not None
    line = training.stdout.readline()
    if not line:
        raise RuntimeError("a training has ended")
    return line


def seconds_a_step(training: subprocess.Popen[str]) -> float:
    """Let a training take some steps, and return their median time."""
    assert training.stdin is not None
    training.stdin.write(f"{STEPS}\n")
    training.stdin.flush()
    return statistics.median(map(float, answer(training).split()))


@contextlib.contextmanager
def competitor() -> Iterator[None]:
    """Give a context in which another program computes on one core."""
    process = subprocess.Popen([sys.executable, "-c", COMPETITOR])
    time.sleep(0.5)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measure(args: argparse.Namespace) -> list[Report]:
    """Measure, and return the report."""
    alone: dict[str, list[float]] = {name: [] for name in POLICIES}
    beside: dict[str, list[float]] = {name: [] for name in POLICIES}
    with (
        tempfile.TemporaryDirectory(prefix="spatialflow_speed_") as folder,
        trainings(args.threads, folder) as started,
    ):
        for _ in range(args.rounds):
            for name, training in started.items():
                alone[name].append(seconds_a_step(training))
            with competitor():
                for name, training in started.items():
                    beside[name].append(seconds_a_step(training))
    head = [
        "threads that wait",
        "alone, s a step",
        "beside another program",
        "ratio",
        "alone, over spin",
    ]
    report = Report("busy", head)
    for name in POLICIES:
        over_alone = median_ratio(beside[name], alone[name])
        over_spin = median_ratio(alone[name], alone["spin"])
        ratios = (f"{over_alone:.2f}", f"{over_spin:.2f}")
        report.rows.append([name, spread(alone[name]), spread(beside[name]), *ratios])
    report.data = {"alone": alone, "beside": beside}
    return [report]


if __name__ == "__main__":
    run_benchmark(__doc__, measure)
