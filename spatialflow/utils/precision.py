"""Shorter floating-point types: which there are, and what is kept out of them."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
from detectron2.config import CfgNode
from torch import Tensor

AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def amp_dtype(keys: CfgNode) -> torch.dtype | None:
    """Return the type of ``SOLVER.AMP`` or ``TEST.AMP``, None where it is not enabled."""
    return AMP_DTYPES[keys.DTYPE] if keys.ENABLED else None


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Return ``torch.autocast``; with no dtype nothing, so that a caller's own stays in force."""
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def full_precision(x: Tensor) -> Tensor:
    """Return x in float32 where mixed precision has made it a shorter type; float64 stays."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
