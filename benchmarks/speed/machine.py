"""The speed of the machine itself, which is the ceiling for networks."""

from __future__ import annotations

import platform
import statistics
from pathlib import Path

import torch
from torch.nn import functional as F

from spatialflow.analysis.timing import time_in_turn

CHANNELS, HEIGHT, WIDTH = 256, 80, 112
GFLOP = 2 * 9 * CHANNELS**2 * HEIGHT * WIDTH / 1e9
COPIED = 2**28  # bytes, beyond any cache


def ceilings(rounds: int = 9) -> dict[str, float]:
    """Measure GFLOP/s of a 3×3 convolution of 256 channels in two precisions, and GB/s of a copy.

    A multiply-add counts as two operations; a byte that is read and written, as two bytes.
    """
    image = torch.randn(1, CHANNELS, HEIGHT, WIDTH).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3)
    halves = image.bfloat16(), weight.bfloat16()
    source, target = (torch.ones(COPIED, dtype=torch.uint8) for _ in range(2))
    with torch.inference_mode():
        times = time_in_turn(
            {
                "fp32": lambda: F.conv2d(image, weight, padding=1),
                "bf16": lambda: F.conv2d(*halves, padding=1),
                "copy": lambda: target.copy_(source),
            },
            rounds=rounds,
        )
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    return {
        "GFLOP/s fp32": GFLOP / median["fp32"],
        "GFLOP/s bf16": GFLOP / median["bf16"],
        "GB/s": 2 * COPIED / median["copy"] / 1e9,
    }


def describe() -> dict[str, str | int]:
    """Return processor, cores, threads, GPU, and the versions of PyTorch and Python."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_initialized() else {}
    return {
        **gpu,
        "processor": models[0] if models else platform.processor(),
        "logical cores": len(models),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
