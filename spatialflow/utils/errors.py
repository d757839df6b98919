"""Errors that a user can correct; a program prints them in one line, without a stack trace.

Any other error is a bug, also a plain ``ValueError``.
"""

import cv2
import torch

NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "unable to allocate shared memory",
    "size calculation overflowed",
    "Insufficient memory",
)
"""Parts of the messages of PyTorch and OpenCV where memory is short; they have no class for it."""


class ConfigError(ValueError):
    """A key of a config, an argument of a program, or what they name is not allowed."""


class DataError(ValueError):
    """A file of a data set is missing, broken, or contradicts another file."""


class CheckpointError(ValueError):
    """A file of weights is missing, broken, unsafe to read, or belongs to another model."""


class ProcessError(ValueError):
    """A process that a program has started has failed, and has said why."""


class NonFiniteError(FloatingPointError):
    """A loss, a gradient or an image contains NaN or infinity."""


def is_short_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there is not enough memory, on a CPU or a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    unnamed = isinstance(error, RuntimeError | cv2.error)
    return unnamed and any(part in str(error) for part in NO_MEMORY)
