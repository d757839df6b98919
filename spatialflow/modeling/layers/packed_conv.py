"""Convolutions that keep their weights in oneDNN's layout, for inference on x86 CPUs.

PyTorch's own convolution brings its weights into oneDNN's layout in every call. On small maps that
costs as much as the arithmetic. It also computes 1×1 filters on one thread, with a slower library.
A packed convolution keeps the weights in oneDNN's layout, with the batch norm folded in. It calls
private operators of PyTorch, which ``torch.compile`` uses for frozen weights. A self-test compares
them with PyTorch's own convolution before anything is packed.

A packed convolution returns what PyTorch's own does, up to rounding. It computes only in the plain
case: eval mode, plain float32 tensors on the CPU, no gradients of any kind, nothing that traces or
intercepts operators, PyTorch's own unpatched functions, finite weights. Otherwise it is PyTorch's
own convolution. A norm with hooks runs as a module. Copies, pickles and scripted modules are of
PyTorch's own class.

What remains:

- PyTorch does not count writes through ``.data``, NumPy, DLPack or shared memory, nor those of
  fused optimisers. They are found by comparing values in each call: all of a tensor with fewer than
  2048 elements, and up to 1024 of a larger one, evenly spread. A write that leaves all of these as
  they are goes unnoticed until the next ``train()``, ``to()`` or forward pass with gradients.
- A tool that changes a model in place by the exact classes of its modules (fusion and quantisation
  with ``inplace=True``) needs :func:`unpack_convolutions` first.
- A kernel that replaces PyTorch's convolution in its dispatcher is not called, and a profiler sees
  the names of other operators.

Shape legend: N images, C channels, H and W the size of a map.
"""

from __future__ import annotations

import concurrent.futures
import functools
import logging
import platform
import weakref
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn

from spatialflow.modeling.layers.packed_weights import (
    PackedWeights,
    Sources,
    foldable_tensors,
    is_channels_last,
)
from spatialflow.modeling.layers.plain_calls import calls_are_plain, is_plain

logger = logging.getLogger(__name__)

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.05}
"""Types that can be packed → largest error in the self-test, relative to the largest output."""

_KEPT: weakref.WeakKeyDictionary[nn.Module, PackedWeights] = weakref.WeakKeyDictionary()
"""Packed convolution → its weights. Not in the modules, so that copies know nothing of it."""


class _Packing(nn.Conv2d):
    """Behaviour of both packed classes; see :func:`pack_convolutions`."""

    def train(self, mode: bool = True) -> Any:
        """Switch modes, and drop the packed weights at the start of a training."""
        if mode:
            _KEPT.pop(self, None)
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        _KEPT.pop(self, None)
        return super()._apply(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Make copies and pickles modules of PyTorch's own class, which every tool knows."""
        _, _, *state = tuple(super().__reduce_ex__(max(2, int(protocol))))
        return (object.__new__, (_OWN_CLASS.get(type(self), type(self)),), *state)

    def __prepare_scriptable__(self) -> nn.Module:
        """Unpack a module that ``torch.jit.script`` is about to compile."""
        unpack_convolutions(self)
        return self

    def _convolve(
        self, x: Tensor, of_norm: tuple[Tensor, ...] = (), eps: float = 0.0
    ) -> Tensor | None:
        """Convolve with packed weights.

        Args:
            x: (N, C, H, W), on the CPU.
            of_norm: Tensors of the norm to fold in; empty without a norm.
            eps: The epsilon of that norm.

        Returns:
            (N, C', H', W'), or None where PyTorch has to compute it.
        """
        # A parametrisation removes a parameter that it computes: then PyTorch convolves.
        parameters = self._parameters
        if not calls_are_plain() or "bias" not in parameters or "_conv_forward" in self.__dict__:
            return None
        sources = (parameters.get("weight"), parameters["bias"], *of_norm)
        if self.training or (
            torch.is_grad_enabled()
            and (x.requires_grad or any(t is not None and t.requires_grad for t in sources))
        ):
            _KEPT.pop(self, None)  # a fused optimiser may follow, whose writes are not counted
            return None
        dtype = _packed_dtype(x, sources)
        return None if dtype is None else self._convolve_packed(x, dtype, sources, eps)

    def _convolve_packed(
        self, x: Tensor, dtype: torch.dtype, sources: Sources, eps: float
    ) -> Tensor | None:
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        settings = (*geometry, self.padding_mode, eps)
        weights = _KEPT.get(self)
        if weights is None or not weights.are_of(sources, settings):
            weights = _KEPT[self] = PackedWeights(sources, settings)
        packed = weights.get(dtype, x.shape)
        if packed is None:
            return None
        after: tuple[Any, ...] = ("none", [], "")  # no operation on the output
        convolve = torch.ops.mkldnn._convolution_pointwise.default
        y: Tensor = convolve(x.to(dtype), *packed, *geometry, *after)
        # It is in the format of the packed weights, which PyTorch's own does not look at.
        return y if weights.channels_last or is_channels_last(x) else y.contiguous()


class PackedConv2d(_Packing):
    """PyTorch's convolution, packed at inference."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve.

        Args:
            input: (N, C, H, W).

        Returns:
            (N, C', H', W'), as PyTorch's own class returns it.
        """
        # The device comes first, so that a model which moved to a GPU pays for nothing else.
        if _is_on_cpu(input):
            y = self._convolve(input)
            if y is not None:
                return y
        return super().forward(input)


class PackedDetectron2Conv2d(_Packing, Conv2d):
    """Detectron2's convolution with norm and activation, packed at inference."""

    norm: Any
    activation: Any

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, then apply norm and activation where the layer has them.

        Args:
            x: (N, C, H, W).

        Returns:
            (N, C', H', W'), as Detectron2's own class returns it.
        """
        if _is_on_cpu(x):
            norm = self.norm
            of_norm = foldable_tensors(norm)
            y = self._convolve(x, of_norm, norm.eps) if of_norm else self._convolve(x)
            if y is not None:
                if norm is not None and not of_norm:
                    y = norm(y)
                return y if self.activation is None else self.activation(y)
        return super().forward(x)


_PACKED_CLASS: dict[type[nn.Module], type[_Packing]] = {
    nn.Conv2d: PackedConv2d,
    Conv2d: PackedDetectron2Conv2d,
}
_OWN_CLASS: dict[type[nn.Module], type[nn.Module]] = {
    packed: own for own, packed in _PACKED_CLASS.items()
}


def pack_convolutions(model: nn.Module) -> None:
    """Let a model's convolutions use packed weights in eval mode, without gradients.

    Do nothing on a machine where the self-test fails, and leave out convolutions that are not on
    the CPU. Parameters and their names stay, and so does training. The module's docstring says
    what is noticed and what is not.

    Args:
        model: Its convolutions of PyTorch's and Detectron2's own classes change their class. Those
            of derived classes stay.
    """
    for module in model.modules():
        packed_class = _PACKED_CLASS.get(type(module))
        if packed_class and module.weight.device.type == "cpu" and packable_dtypes():
            module.__class__ = packed_class


def unpack_convolutions(model: nn.Module) -> None:
    """Undo :func:`pack_convolutions`."""
    for module in model.modules():
        own_class = _OWN_CLASS.get(type(module))
        if own_class is not None:
            _KEPT.pop(module, None)
            module.__class__ = own_class


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
        # The answer is kept for the whole process. A thread of its own has none of the caller's
        # modes, which would change it.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            return thread.submit(_self_test).result()
    except Exception as error:  # the operators are private, so any error is possible
        logger.warning(
            "MODEL.SPATIALFLOW.PACK_CONVOLUTIONS has no effect: the operators of PyTorch %s for "
            "packed weights failed their self-test: %s",
            torch.__version__,
            error,
        )
        return frozenset()


@torch.no_grad()
def _self_test() -> frozenset[torch.dtype]:
    """Compare one convolution of each kind with PyTorch's own.

    Returns:
        The types that were compared.

    Raises:
        ArithmeticError: If results differ by more than rounding.
    """
    dtypes = [torch.float32]
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        dtypes.append(torch.bfloat16)
    with torch.random.fork_rng(devices=[]):  # initial weights do not depend on this test
        layers: dict[str, nn.Conv2d] = {
            "3×3": nn.Conv2d(16, 16, 3, padding=1),
            "1×1": nn.Conv2d(16, 16, 1),
            "strided": nn.Conv2d(16, 16, 3, stride=2, padding=1),
            "batch norm": Conv2d(16, 16, 3, bias=False, norm=nn.BatchNorm2d(16)),
            "frozen batch norm": Conv2d(16, 16, 1, norm=FrozenBatchNorm2d(16)),
        }
        image = torch.randn(1, 16, 9, 9, dtype=torch.float32)
        for layer in layers.values():
            norm = getattr(layer, "norm", None)
            if norm is not None:
                for statistic in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                    statistic.uniform_(0.5, 1.5)
    image = image.contiguous(memory_format=torch.channels_last)
    calls_are_plain()  # names that it reads could be missing
    for kind, layer in layers.items():
        expected = layer.float().eval()(image)
        norm = getattr(layer, "norm", None)
        sources = (layer.weight, layer.bias, *foldable_tensors(norm))
        if not all(is_plain(tensor) for tensor in (image, *sources) if tensor is not None):
            raise ArithmeticError(f"{kind} convolution: its tensors are of an unknown kind")
        packed_class = _PACKED_CLASS[type(layer)]
        layer.__class__ = packed_class
        assert isinstance(layer, _Packing)
        for dtype in dtypes:
            found = layer._convolve_packed(image, dtype, sources, getattr(norm, "eps", 0.0))
            if found is None:
                raise ArithmeticError(f"{kind} convolution in {dtype}: not packed")
            error = float((found - expected).abs().max() / expected.abs().max())
            if not error <= TOLERANCES[dtype]:  # NaN fails as well
                raise ArithmeticError(f"{kind} convolution in {dtype}: relative error {error:.1e}")
    return frozenset(dtypes)


def _is_on_cpu(x: Any) -> bool:
    """Return whether an input is a tensor on the CPU, and ``torch.compile`` does not trace it."""
    return isinstance(x, Tensor) and x.device.type == "cpu" and not torch.compiler.is_compiling()


def _packed_dtype(x: Tensor, sources: Sources) -> torch.dtype | None:
    """Return the type in which to convolve, or None to leave the input to PyTorch."""
    dtype = x.dtype
    if torch.is_autocast_enabled("cpu") and dtype in (torch.float32, torch.bfloat16):
        dtype = torch.get_autocast_dtype("cpu")
    elif dtype != torch.float32:
        return None
    fits = (
        dtype in packable_dtypes()
        and is_plain(x, inference=True)
        and all(t is None or (t.dtype == torch.float32 and is_plain(t)) for t in sources)
    )
    return dtype if fits else None
