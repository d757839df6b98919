"""Seeds: every random choice of a run is a function of its seed and of where the choice is made."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def mix_seeds(*numbers: int) -> int:
    """Return a seed of 63 bits that nearby numbers do not share.

    Args:
        numbers: Not negative, such as a run's seed and the number of a step.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_generators(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch, the latter on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (Detectron2's augmentations draw from it)
    torch.manual_seed(seed)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and PyTorch, and restore them after.

    Args:
        seed: Of all of them.
        device: A GPU whose generator is to be seeded beside that of the CPU. Processes that load
            data stay away from GPUs.
    """
    gpus = [device] if device is not None and device.type == "cuda" else []
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=gpus):
        # torch.manual_seed would reach other devices, whose state is not restored.
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.random.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
