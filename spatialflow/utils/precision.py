"""Mixed precision: the 16-bit types, autocast, and code that must run in float32."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
from detectron2.config import CfgNode
from torch import Tensor

AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""Value of ``SOLVER.AMP.DTYPE`` and ``TEST.AMP.DTYPE`` → type of PyTorch."""


def amp_dtype(keys: CfgNode) -> torch.dtype | None:
    """Return the 16-bit type of a config node, or None if mixed precision is off.

    Args:
        keys: Node ``SOLVER.AMP`` or ``TEST.AMP``.
    """
    return AMP_DTYPES[keys.DTYPE] if keys.ENABLED else None


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Return ``torch.autocast``, or a context that changes nothing if there is no dtype.

    Args:
        device: Device of the model.
        dtype: 16-bit type; None keeps an autocast that a caller may have started.
    """
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def full_precision(x: Tensor) -> Tensor:
    """Return a 16-bit tensor in float32, and any other tensor unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
