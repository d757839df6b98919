"""Seed random generators, so that every random choice depends only on the seed and its place."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def mix_seeds(*numbers: int) -> int:
    """Return a 63-bit seed made of several numbers; close numbers give unrelated seeds.

    Args:
        *numbers: Numbers of 0 or more, such as the seed of a run and the number of a step.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_generators(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (Detectron2's augmentations draw from it)
    torch.manual_seed(seed)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and PyTorch for the body of a ``with`` statement.

    Their states are restored at the end.

    Args:
        seed: Seed of all generators.
        device: Device whose generator is seeded too, if it is a GPU. Pass None in processes that
            load data, which must not touch a GPU.
    """
    gpus = [device] if device is not None and device.type == "cuda" else []
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=gpus):
        # torch.manual_seed would also seed other devices, whose states are not restored.
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
