#!/usr/bin/env python
"""Measure training with two processes of one thread each (gloo), compared with one process.

    python benchmarks/speed/processes.py --threads 1 --write docs/performance.md

Both run ``spatialflow train`` with the same number of images per process, one after the other.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.speed.report import Report, run_benchmark
from spatialflow.utils.files import read_json_lines

TRAIN = ("-m", "spatialflow_cli", "train")
CONFIG = "generated/spatialflow.yaml"
IMAGES = 4  # per process and step
STEPS = 40
PROCESSES = (1, 2)


def images_a_second(processes: int, folder: Path) -> float:
    """Train with a number of processes, and return images per second of the second half."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    keys = {
        "SOLVER.IMS_PER_BATCH": IMAGES * processes,
        "SOLVER.REFERENCE_WORLD_SIZE": 0,
        "SOLVER.MAX_ITER": STEPS,
        "DATALOADER.NUM_WORKERS": 0,
        "DATASETS.TEST": (),
        "OUTPUT_DIR": folder,
    }
    subprocess.run(
        [sys.executable, "-W", "ignore", *TRAIN, "--config-file", CONFIG]
        + ["--num-gpus", str(processes), "--dist-url", address]
        + [str(word) for pair in keys.items() for word in pair],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines = read_json_lines(folder / "metrics.json")
    return IMAGES * processes / float(lines[-1]["time"])


def measure(args: argparse.Namespace) -> list[Report]:
    """Measure, and return the report."""
    found: dict[int, list[float]] = {count: [] for count in PROCESSES}
    with tempfile.TemporaryDirectory(prefix="spatialflow_speed_") as folder:
        for i in range(min(args.rounds, 3)):
            for count in PROCESSES:
                output = Path(folder, f"{i}-{count}")
                found[count].append(images_a_second(count, output))
    report = Report("processes", ["processes", "images a second", "over one"])
    for count, rates in found.items():
        over = statistics.median(a / b for a, b in zip(rates, found[1], strict=True))
        spread = f"{statistics.median(rates):.2f} ({min(rates):.2f} to {max(rates):.2f})"
        report.rows.append([str(count), spread, f"{over:.2f}"])
    report.data = {"images a second": found}
    return [report]


if __name__ == "__main__":
    run_benchmark(__doc__, measure)
