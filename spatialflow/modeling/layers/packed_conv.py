"""Convolutions that keep their weights in oneDNN's layout, for inference on x86 CPUs.

PyTorch's own convolution brings its weights into oneDNN's layout in every call. On small maps that
costs as much as the arithmetic. It also computes 1×1 filters on one thread, with a slower library.
A packed convolution keeps the weights in oneDNN's layout, with the batch norm folded in. It calls
private operators of PyTorch, which ``torch.compile`` uses for frozen weights. A self-test compares
them with PyTorch's own convolution before anything is packed.

Shape legend: N images, C channels, H and W the size of a map.
"""

from __future__ import annotations

import functools
import logging
import platform
from collections.abc import Hashable
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn

logger = logging.getLogger(__name__)

SHAPES = 5
"""Input shapes for which a convolution keeps weights of one type: an image has five levels."""

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.05}
"""Types that can be packed → largest error in the self-test, relative to the largest output."""

Sources = tuple[Tensor | None, ...]
"""Weight and bias of a convolution. Where its norm is folded in, also the norm's weight, bias,
running mean, running variance and count of batches."""


class _Packing(nn.Conv2d):
    """Behaviour of both packed classes; see :func:`pack_convolutions`."""

    norm: Any
    activation: Any

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, then apply norm and activation where the layer has them.

        Args:
            x: (N, C, H, W).

        Returns:
            (N, C', H', W'), as the layer's own class returns it.
        """
        # The device comes first, so that a model which moved to a GPU pays for nothing else.
        if not self.training and isinstance(x, Tensor) and x.device.type == "cpu":
            sources = self._sources()
            dtype = self._packed_dtype(x, sources)
            if dtype is not None:
                return self._convolve_packed(x, dtype, sources)
        return super().forward(x)

    def train(self, mode: bool = True) -> Any:
        """Switch modes and forget the packed weights."""
        self._forget()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._forget()
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the packed weights out of copies and pickles."""
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}

    def _forget(self) -> None:
        self.__dict__.pop("_packed", None)

    def _sources(self) -> Sources:
        """Return the tensors from which packed weights are computed."""
        norm = self.norm
        if _is_foldable(norm):
            # A norm in training mode writes its statistics without a new version, but counts.
            count = getattr(norm, "num_batches_tracked", None)
            of_norm = (norm.weight, norm.bias, norm.running_mean, norm.running_var, count)
            return (self.weight, self.bias, *of_norm)
        return (self.weight, self.bias)

    def _packed_dtype(self, x: Tensor, sources: Sources) -> torch.dtype | None:
        """Return the type in which to convolve, or None to leave the input to PyTorch."""
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return None
        tensors = [x, *(t for t in sources if t is not None)]
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return None
        dtype = x.dtype
        if torch.is_autocast_enabled("cpu") and dtype in (torch.float32, torch.bfloat16):
            dtype = torch.get_autocast_dtype("cpu")
        elif dtype != torch.float32:
            return None
        fits = (
            dtype in packable_dtypes()
            and self.weight.dtype == torch.float32
            and not any(t.is_inference() for t in tensors[1:])  # they do not count their changes
            and self.weight.device.type == "cpu"
            and x.ndim == 4
            and x.shape[1] == self.in_channels
        )
        return dtype if fits else None

    def _convolve_packed(self, x: Tensor, dtype: torch.dtype, sources: Sources) -> Tensor:
        norm, folded = self.norm, len(sources) > 2
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        caches = self.__dict__.setdefault("_packed", {})
        if dtype not in caches:
            caches[dtype] = functools.lru_cache(maxsize=SHAPES)(_pack)
        weight, bias = caches[dtype](
            sources,
            # Not read, but part of the cache's key: a write into a tensor changes its version, and
            # oneDNN chooses the layout by the number of threads.
            (*map(_state, sources), torch.get_num_threads()),
            eps=norm.eps if folded else 0.0,
            geometry=geometry,
            shape=x.shape,
            dtype=dtype,
        )
        after: tuple[Any, ...] = ("none", [], "")  # no operation on the output
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x.to(dtype), weight, bias, *geometry, *after
        )
        if norm is not None and not folded:
            y = norm(y)
        return y if self.activation is None else self.activation(y)


class PackedConv2d(_Packing):
    """PyTorch's convolution, packed at inference."""

    norm = None
    activation = None


class PackedDetectron2Conv2d(_Packing, Conv2d):
    """Detectron2's convolution with norm and activation, packed at inference."""


_PACKED_CLASS: dict[type[nn.Module], type[_Packing]] = {
    nn.Conv2d: PackedConv2d,
    Conv2d: PackedDetectron2Conv2d,
}


def pack_convolutions(model: nn.Module) -> None:
    """Let a model's convolutions use packed weights in eval mode, without gradients.

    Do nothing on a machine where the self-test fails, and leave out convolutions that are not on
    the CPU. Parameters and their names stay, and so does training. Weights are packed again
    after ``train()``, ``eval()`` and ``to()``, and when a parameter is replaced or written to. A
    write into ``.data`` goes unnoticed until the next of these.

    Args:
        model: Its convolutions of PyTorch's and Detectron2's own classes change their class. Those
            of derived classes, or with another padding than zeros of a given width, stay.
    """
    for module in model.modules():
        packed_class = _PACKED_CLASS.get(type(module))
        if (
            packed_class is not None
            and module.weight.device.type == "cpu"
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
            and packable_dtypes()
        ):
            module.__class__ = packed_class


@functools.cache
def packable_dtypes() -> frozenset[torch.dtype]:
    """Return the types in which packed convolutions pass the self-test, once per process.

    Returns:
        float32, and bfloat16 where the processor supports it. Empty on processors other than x86,
        without oneDNN, and after a failed self-test, which is logged as a warning.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return frozenset()
    if not torch.backends.mkldnn.is_available():
        return frozenset()
    try:
        dtypes = [torch.float32]
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            dtypes.append(torch.bfloat16)
        # The answer is kept for the whole process, so the caller's modes must not change it.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            for dtype in dtypes:
                _check_against_pytorch(dtype)
    except Exception as error:  # the operators are private, so any error is possible
        logger.warning(
            "MODEL.SPATIALFLOW.PACK_CONVOLUTIONS has no effect: the operators of PyTorch %s for "
            "packed weights failed their self-test: %s",
            torch.__version__,
            error,
        )
        return frozenset()
    return frozenset(dtypes)


def _check_against_pytorch(dtype: torch.dtype) -> None:
    """Compare one convolution of each kind with PyTorch's own.

    Raises:
        ArithmeticError: If results differ by more than rounding in ``dtype``.
    """
    with torch.random.fork_rng(devices=[]):  # initial weights do not depend on this test
        layers: dict[str, nn.Conv2d] = {
            "3×3": nn.Conv2d(16, 16, 3, padding=1),
            "1×1": nn.Conv2d(16, 16, 1),
            "strided": nn.Conv2d(16, 16, 3, stride=2, padding=1),
            "batch norm": Conv2d(16, 16, 3, bias=False, norm=nn.BatchNorm2d(16)),
            "frozen batch norm": Conv2d(16, 16, 1, norm=FrozenBatchNorm2d(16)),
        }
        image = torch.randn(1, 16, 9, 9).contiguous(memory_format=torch.channels_last)
        for layer in layers.values():
            norm = getattr(layer, "norm", None)
            if norm is not None:
                for statistic in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                    statistic.uniform_(0.5, 1.5)
    for kind, layer in layers.items():
        packed_class = _PACKED_CLASS[type(layer)]
        expected = layer.eval()(image)
        layer.__class__ = packed_class
        assert isinstance(layer, _Packing)
        found = layer._convolve_packed(image, dtype, layer._sources())
        error = float((found - expected).abs().max() / expected.abs().max())
        if not error <= TOLERANCES[dtype]:  # NaN fails as well
            raise ArithmeticError(f"{kind} convolution in {dtype}: relative error {error:.1e}")


def _is_foldable(norm: Any) -> bool:
    """Return whether a norm scales and shifts by tensors that do not depend on the input."""
    return type(norm) is FrozenBatchNorm2d or (
        type(norm) is nn.BatchNorm2d
        and not norm.training
        and norm.affine
        and norm.track_running_stats
    )


def _state(tensor: Tensor | None) -> tuple[int, int] | None:
    """Return a value that changes when a tensor is written to, or gets other memory."""
    return None if tensor is None else (tensor._version, tensor.data_ptr())


@torch.no_grad()
def _pack(
    sources: Sources,
    states: Hashable,
    *,
    eps: float,
    geometry: tuple[Any, ...],
    shape: torch.Size,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias in a type, the weight in oneDNN's layout for inputs of a shape."""
    weight, bias, *of_norm = sources
    assert weight is not None
    if of_norm:
        norm_weight, norm_bias, mean, variance, _ = of_norm
        scale = norm_weight * (variance + eps).rsqrt()
        shift = -mean if bias is None else bias - mean
        weight, bias = weight * scale[:, None, None, None], norm_bias + shift * scale
    # With the layout of another shape oneDNN can be many times slower.
    packed = torch.ops.mkldnn._reorder_convolution_weight(
        weight.detach().to(dtype), *geometry, shape
    )
    return packed, None if bias is None else bias.detach().to(dtype)
