"""Whether PyTorch's calls go straight to its own kernels, without anything in between.

Only then may other operators be called in their place. This reads private names of PyTorch: a
caller tries it in a self-test.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F


def _own_code() -> tuple[Any, ...]:
    """Return the functions in whose place packed weights are used."""
    classes = (nn.Conv2d, Conv2d, nn.BatchNorm2d, FrozenBatchNorm2d)
    forward = tuple(own.forward for own in classes)
    return (*forward, nn.Conv2d._conv_forward, F.conv2d, F.batch_norm)


_CODE = _own_code()


def calls_are_plain() -> bool:
    """Return whether PyTorch's calls go straight to its own kernels.

    They do not where they are traced, intercepted, transformed or differentiated forwards, without
    oneDNN, and where somebody has put other functions in their place.
    """
    return not (
        torch.jit.is_tracing()
        or forward_ad._current_level >= 0
        or torch._C._functorch.maybe_current_level() is not None
        or torch._C._len_torch_function_stack()
        or torch._C._len_torch_dispatch_stack()
        or not torch._C._get_mkldnn_enabled()
        or _own_code() != _CODE
    )


def is_plain(tensor: Tensor, inference: bool = False) -> bool:
    """Return whether a tensor is dense, on the CPU and no wrapper, subclass or lazy view.

    Args:
        tensor: Any tensor.
        inference: Whether tensors of inference mode count. They do not count their changes.
    """
    plain, of_inference = _plain_keys()
    found = torch._C._dispatch_keys(tensor).raw_repr()
    return type(tensor) in (Tensor, nn.Parameter) and (
        found == plain or (inference and found == of_inference)
    )


@functools.cache
def _plain_keys() -> tuple[int, int]:
    """Return the sets of dispatch keys of plain tensors on the CPU, and of inference tensors."""
    key, keys = torch._C.DispatchKey, torch._C.DispatchKeySet
    inference = keys(key.CPU) | keys(key.AutocastCPU)
    plain = inference | keys(key.ADInplaceOrView) | keys(key.AutogradCPU)
    return plain.raw_repr(), inference.raw_repr()
