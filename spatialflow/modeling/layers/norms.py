"""Norms of the network's own convolutions, by Detectron2's names."""

from __future__ import annotations

import math
from collections.abc import Callable

from detectron2.layers import get_norm
from torch import Tensor, nn

from spatialflow.config.options import GROUP_NORM_GROUPS


class GroupNorm(nn.GroupNorm):
    """Group norm that also takes groups of a single value, of which the bias is left.

    The upper levels of a small image are a single pixel, and with as many groups as channels
    PyTorch's own layer refuses those of one image, in training and inference.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        if math.prod(x.shape[1:]) > self.num_groups:
            return super().forward(x)
        # Each value less its own mean: NaN stays, and the weight is part of the graph.
        return (x - x) * self.weight[:, None, None] + self.bias[:, None, None]


def norm_builder(name: str) -> str | Callable[[int], nn.Module | None]:
    """Return what Detectron2 takes for a norm, from its name; "" for none."""
    if name == "GN":
        return lambda channels: GroupNorm(GROUP_NORM_GROUPS, channels)
    return name


def build_norm(name: str, channels: int) -> nn.Module | None:
    """Build a norm by name, None for ""."""
    return get_norm(norm_builder(name), channels)
