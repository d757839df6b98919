"""Norms of the network's own convolutions, by Detectron2's names.

Shape legend: N images, C channels, H and W the size of a map.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from detectron2.layers import get_norm
from torch import Tensor, nn

from spatialflow.config.options import GROUP_NORM_GROUPS


class GroupNorm(nn.GroupNorm):
    """Group norm (arXiv 1803.08494) that also accepts groups of a single value.

    The upper levels of a small image have a single pixel. With as many groups as channels, every
    group then has one value, and PyTorch's own layer raises an error. The norm of a single value is
    0, so this layer returns the bias.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a map, (N, C, H, W) → (N, C, H, W)."""
        if math.prod(x.shape[1:]) > self.num_groups:
            return super().forward(x)
        # x - x keeps NaN, and the product keeps the weight in the autograd graph.
        return (x - x) * self.weight[:, None, None] + self.bias[:, None, None]


def norm_builder(name: str) -> str | Callable[[int], nn.Module | None]:
    """Return a norm as Detectron2's layers take it.

    Args:
        name: Detectron2's name of the norm; "" for none.

    Returns:
        A function from C to the norm for "GN"; the name itself for all others.
    """
    if name == "GN":
        return lambda channels: GroupNorm(GROUP_NORM_GROUPS, channels)
    return name


def build_norm(name: str, channels: int) -> nn.Module | None:
    """Build a norm.

    Args:
        name: Detectron2's name of the norm; "" for none.
        channels: C.

    Returns:
        The norm, or None for "".
    """
    return get_norm(norm_builder(name), channels)
