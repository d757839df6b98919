"""Weights of a convolution in oneDNN's layout, and whether they are still those of the module.

:mod:`spatialflow.modeling.layers.packed_conv` says what is noticed and what is not.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

SHAPES = 5
"""Input shapes for which a convolution keeps weights of one type: an image has five levels."""

COMPARED = 1024
"""Elements of a large tensor that each call compares, at most. Of a tensor with fewer than twice as
many, all are compared."""

Sources = tuple[Tensor | None, ...]
"""Weight and bias of a convolution. Where its norm is folded in, also the norm's weight, bias,
running mean and running variance."""

Settings = tuple[Any, ...]
"""Padding, stride, dilation, groups and padding mode of a convolution, and ``eps`` of its norm."""


class PackedWeights:
    """Packed weights of a convolution, for one value of the tensors and settings they come from.

    Args:
        sources: Plain float32 tensors on the CPU.
        settings: As the modules have them. They need not be valid.

    Attributes:
        channels_last: Whether the weight, before it was packed, is in that format. The output of
            PyTorch's convolution then is, too.
    """

    def __init__(self, sources: Sources, settings: Settings) -> None:
        self._settings = settings
        self._states = tuple(map(_state, sources))
        # These share memory with the sources: nothing else can get its address while they live.
        shared = tuple(None if tensor is None else tensor.detach() for tensor in sources)
        self._compared = [
            (view, view.clone()) for view in map(_samples, shared) if view is not None
        ]
        self._pack = {
            dtype: functools.lru_cache(SHAPES)(functools.partial(_pack, shared, settings, dtype))
            for dtype in (torch.float32, torch.bfloat16)
        }
        self.channels_last = sources[0] is not None and is_channels_last(sources[0])

    def are_of(self, sources: Sources, settings: Settings) -> bool:
        """Return whether nothing has changed."""
        return (
            settings == self._settings
            and tuple(map(_state, sources)) == self._states
            and all(torch.equal(now, before) for now, before in self._compared)
        )

    def get(self, dtype: torch.dtype, shape: torch.Size) -> tuple[Tensor, Tensor | None] | None:
        """Return weight and bias in a type, the weight in oneDNN's layout for inputs of a shape.

        Returns:
            None where PyTorch has to compute, or to raise its own error.
        """
        # oneDNN chooses the layout by the number of threads, too.
        return self._pack[dtype](shape, torch.get_num_threads())


def foldable_tensors(norm: Any) -> tuple[Tensor, ...]:
    """Return what a norm scales and shifts by, where that does not depend on the input.

    Args:
        norm: A module or a function or None.

    Returns:
        Weight, bias, running mean and running variance. Empty where the norm must be called: it is
        of another class, in training mode, without statistics, or watched by hooks.
    """
    frozen = type(norm) is FrozenBatchNorm2d
    if not frozen and (type(norm) is not nn.BatchNorm2d or norm.training):
        return ()
    if (
        "forward" in norm.__dict__
        or norm._forward_hooks
        or norm._forward_pre_hooks
        or norm._backward_hooks
        or norm._backward_pre_hooks
        or nn.modules.module._has_any_global_hook()
        or type(norm.eps) is not float
    ):
        return ()
    own = {**norm._parameters, **norm._buffers}
    tensors = [own.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    found = tuple(tensor for tensor in tensors if tensor is not None)
    return found if len(found) == len(tensors) else ()


def is_channels_last(tensor: Tensor) -> bool:
    """Return whether PyTorch's operators take a tensor for one in channels-last format."""
    if not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        return True  # the usual case; the other way of asking is slower
    suggested = torch._prims_common.suggest_memory_format(tensor)
    return bool(suggested == torch.channels_last)


def _state(tensor: Tensor | None) -> tuple[Any, ...] | None:
    """Return values that change when a tensor is written to, or gets other memory."""
    if tensor is None:
        return None
    return (tensor.data_ptr(), tensor._version, tensor.shape, tensor.stride())


def _samples(tensor: Tensor | None) -> Tensor | None:
    """Return a view of elements that are spread over a tensor's memory, as integers.

    Integers compare bit by bit, so that NaN equals itself. A step without a common factor with the
    tensor's size meets all filters, channels and places of a filter in turn.
    """
    if tensor is None:
        return None
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    extent = 1 + sum((size - 1) * stride for size, stride in pairs) if tensor.numel() else 0
    step = max(1, extent // COMPARED)
    while math.gcd(step, extent) > 1:
        step += 1
    return tensor.view(torch.int32).as_strided((math.ceil(extent / step),), (step,))


@torch.inference_mode(False)
@torch.no_grad()
def _pack(
    sources: Sources, settings: Settings, dtype: torch.dtype, shape: torch.Size, threads: int
) -> tuple[Tensor, Tensor | None] | None:
    """Compute what :meth:`PackedWeights.get` returns; ``threads`` is part of the cache's key."""
    weight, bias, *of_norm = sources
    *geometry, padding_mode, eps = settings
    if weight is None or padding_mode != "zeros" or not _is_valid(weight, bias, geometry, shape):
        return None
    if of_norm:
        norm_weight, norm_bias, mean, variance = of_norm
        if any(tensor.shape != weight.shape[:1] for tensor in of_norm):
            return None
        scale = norm_weight * (variance + eps).rsqrt()
        shift = -mean if bias is None else bias - mean
        weight, bias = weight * scale[:, None, None, None], norm_bias + shift * scale
    weight = weight.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    # A product of huge and tiny factors may be infinite where PyTorch's order of operations is not.
    if not all(bool(t.isfinite().all()) for t in (weight, bias) if t is not None):
        return None
    # With the layout of another shape oneDNN can be many times slower.
    packed = torch.ops.mkldnn._reorder_convolution_weight.default(weight, *geometry, shape)
    return packed, bias


def _is_valid(weight: Tensor, bias: Tensor | None, geometry: list[Any], shape: torch.Size) -> bool:
    """Return whether a convolution is one of those that oneDNN computes, without an error."""
    padding, stride, dilation, groups = geometry
    pairs = (padding, stride, dilation)
    if not all(
        type(pair) is tuple and len(pair) == 2 and all(type(n) is int for n in pair)
        for pair in pairs
    ):
        return False
    if weight.ndim != 4 or len(shape) != 4 or type(groups) is not int or groups < 1:
        return False
    reach = [1 + d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    sides = zip(shape[2:], padding, reach, strict=True)
    return (
        min(*stride, *dilation, *weight.shape, *shape) > 0
        and min(padding) >= 0
        and all(size + 2 * pad >= needed for size, pad, needed in sides)
        and shape[1] == groups * weight.shape[1]
        and weight.shape[0] % groups == 0
        and (bias is None or bias.shape == weight.shape[:1])
    )
