"""A layer and its packed twin, and how their results compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from spatialflow.modeling.layers import packed_conv
from spatialflow.modeling.layers.packed_conv import pack_convolutions, packable_dtypes

needs_packing = pytest.mark.skipif(
    not packable_dtypes(), reason="weights are packed on x86 with oneDNN only"
)


def layer_of(kind: str, channels: int = 8) -> nn.Module:
    """Return a convolution in eval mode, with random statistics where it has a norm."""
    torch.manual_seed(0)
    norm: nn.Module | None = None
    if kind in ("frozen", "batch norm"):
        norm = {"frozen": FrozenBatchNorm2d, "batch norm": nn.BatchNorm2d}[kind](8)
        with torch.no_grad():
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(norm, name).uniform_(0.5, 2)
    if kind == "plain":
        return nn.Conv2d(channels, 8, 3, padding=1).eval()
    return Conv2d(channels, 8, 3, padding=1, norm=norm, activation=F.relu).eval()


def pair(kind: str, channels: int = 8) -> tuple[Any, Any, Tensor]:
    """Return a layer, its packed twin after a first call, and an image."""
    own, packed = layer_of(kind, channels), layer_of(kind, channels)
    pack_convolutions(packed)
    image = torch.randn(2, channels, 9, 11).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(packed(image), own(image), rtol=1e-4, atol=1e-4)
    assert packed in packed_conv._KEPT
    return own, packed, image


def assert_same(own: Callable[..., Any], packed: Callable[..., Any], *args: Any) -> None:
    """Compare two results, or two errors."""
    try:
        expected = own(*args)
    except Exception as error:
        with pytest.raises(type(error)):
            packed(*args)
        return
    torch.testing.assert_close(packed(*args), expected, rtol=1e-4, atol=1e-4, equal_nan=True)


class Marked(Tensor):
    """A subclass that counts the functions it goes through."""

    calls = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Marked.calls += 1
        return super().__torch_function__(func, types, args, kwargs or {})
