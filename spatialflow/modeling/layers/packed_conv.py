"""Convolutions whose weights are laid out once for inference on a CPU, not in each pass.

PyTorch's eager convolutions bring their weights into oneDNN's layout whenever they are called,
which costs as much as the arithmetic where maps are small, and leave 1×1 filters on one thread to a
slower library. Here the weights in that layout are kept, with the batch norm that follows folded
in. The operators are those that ``torch.compile`` has for frozen weights.
"""

from __future__ import annotations

import functools
import platform
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn

SHAPES = 5
"""Input shapes that a convolution keeps weights of a type for: the levels of an image."""


class _Packed(NamedTuple):
    """Weights as oneDNN wants them for one type, input shape and number of threads."""

    weight: Tensor
    bias: Tensor | None


class _Kept:
    """All that one convolution keeps, and the parameters that it was made from."""

    def __init__(self, sources: list[Tensor]) -> None:
        self.sources = sources
        self.states = list(map(_state, sources))
        self.packed: dict[torch.dtype, OrderedDict[Hashable, _Packed]] = {}

    def still_holds(self, sources: list[Tensor]) -> bool:
        """Tell whether nothing was replaced or written to since."""
        return len(sources) == len(self.sources) and all(
            new is old and _state(new) == state
            for new, old, state in zip(sources, self.sources, self.states, strict=True)
        )

    def get(self, dtype: torch.dtype, key: Hashable, make: Callable[[], _Packed]) -> _Packed:
        """Return what is kept, made if it is not there; what was not used longest makes room."""
        with _lock:
            kept = self.packed.setdefault(dtype, OrderedDict())
            packed = kept.pop(key) if key in kept else make()
            kept[key] = packed
            if len(kept) > SHAPES:
                kept.popitem(last=False)
        return packed


def _state(tensor: Tensor) -> tuple[int, int]:
    """Return what changes when a tensor is written to, or given other memory."""
    return tensor._version, tensor.data_ptr()


_lock = threading.Lock()
# By module, not in it, so that copies and pickles of a model know nothing of it.
_kept: weakref.WeakKeyDictionary[nn.Module, _Kept] = weakref.WeakKeyDictionary()


class _Packing(nn.Conv2d):
    """What both kinds of convolution do; see :func:`pack_convolutions`."""

    norm: Any
    activation: Any

    def train(self, mode: bool = True) -> Any:
        """Switch modes; afterwards weights are packed anew."""
        _kept.pop(self, None)
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        _kept.pop(self, None)
        return super()._apply(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, H, W), then norm and activation where Detectron2's layer has them."""
        folded = _folds(self.norm)
        sources = self._sources(folded)
        dtype = self._inference_dtype(x, sources)
        if dtype is None:
            return super().forward(x)
        packed = self._packed(dtype, x, sources, folded)
        y = torch.ops.mkldnn._convolution_pointwise(
            x.to(dtype),
            packed.weight,
            packed.bias,
            *(self.padding, self.stride, self.dilation, self.groups),
            *("none", [], ""),  # no operation on the output
        )
        if self.norm is not None and not folded:
            y = self.norm(y)
        return y if self.activation is None else self.activation(y)

    def _sources(self, folded: bool) -> list[Tensor]:
        """Return the tensors that packed weights are made from."""
        norm = self.norm
        of_norm = (norm.weight, norm.bias, norm.running_mean, norm.running_var) if folded else ()
        return [t for t in (self.weight, self.bias, *of_norm) if t is not None]

    def _inference_dtype(self, x: Tensor, sources: list[Tensor]) -> torch.dtype | None:
        """Return the type to convolve in, or None where PyTorch's own way is to be taken."""
        if self.training or not isinstance(x, Tensor):  # the latter in torch.fx
            return None
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return None
        if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *sources)):
            return None
        dtype = x.dtype
        if torch.is_autocast_enabled("cpu") and dtype in (torch.float32, torch.bfloat16):
            dtype = torch.get_autocast_dtype("cpu")
        elif dtype != torch.float32:
            return None
        fits = (
            x.device.type == self.weight.device.type == "cpu"
            and self.weight.dtype == torch.float32
            and not any(t.is_inference() for t in sources)
            and not isinstance(self.padding, str)
            and self.padding_mode == "zeros"
            and x.ndim == 4
            and x.numel() > 0
            and x.shape[1] == self.in_channels
            and all(
                size + 2 * padding > dilation * (kernel - 1)
                for size, padding, dilation, kernel in zip(
                    x.shape[2:], self.padding, self.dilation, self.kernel_size, strict=True
                )
            )
        )
        return dtype if fits and _supports(dtype) else None

    def _packed(
        self, dtype: torch.dtype, x: Tensor, sources: list[Tensor], folded: bool
    ) -> _Packed:
        """Return weights in a type for inputs like x, with the norm's effect where it is folded."""
        kept = _kept.get(self)
        if kept is None or not kept.still_holds(sources):
            kept = _kept[self] = _Kept(sources)
        # With the layout of another shape oneDNN can be many times slower.
        key = (x.shape, torch.get_num_threads())
        return kept.get(dtype, key, lambda: self._pack(dtype, x.shape, folded))

    @torch.no_grad()
    def _pack(self, dtype: torch.dtype, shape: torch.Size, folded: bool) -> _Packed:
        weight, bias, norm = self.weight, self.bias, self.norm
        if folded:
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            shift = -norm.running_mean if bias is None else bias - norm.running_mean
            weight, bias = weight * scale[:, None, None, None], norm.bias + shift * scale
        reordered = torch.ops.mkldnn._reorder_convolution_weight(
            weight.detach().to(dtype),
            *(self.padding, self.stride, self.dilation, self.groups, shape),
        )
        return _Packed(reordered, None if bias is None else bias.detach().to(dtype))


class PackedConv2d(_Packing):
    """PyTorch's convolution, packed at inference."""

    norm = None
    activation = None


class PackedDetectron2Conv2d(_Packing, Conv2d):
    """Detectron2's convolution with norm and activation, packed at inference."""


_KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: PackedConv2d,
    Conv2d: PackedDetectron2Conv2d,
}


def pack_convolutions(model: nn.Module) -> None:
    """Let a model's convolutions keep packed weights in eval mode, on CPUs, without gradients.

    Parameters, their names and all other uses stay as they are. Weights are packed anew after
    ``train()``, ``eval()``, ``to()`` and their like, and when a parameter was replaced or written
    to; writing into ``.data`` goes unnoticed until the next of them.

    Args:
        model: Its PyTorch and Detectron2 convolutions, not those of derived classes, change class.
    """
    for module in model.modules():
        kind = _KINDS.get(type(module))
        if kind is not None:
            module.__class__ = kind


def _folds(norm: Any) -> bool:
    """Tell whether a norm scales and shifts by tensors that are known beforehand."""
    return type(norm) is FrozenBatchNorm2d or (
        type(norm) is nn.BatchNorm2d
        and not norm.training
        and norm.affine
        and norm.track_running_stats
    )


@functools.cache
def _supports(dtype: torch.dtype) -> bool:
    """Tell whether oneDNN computes in a type here; other processors than x86 are untried."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )
