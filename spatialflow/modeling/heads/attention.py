"""Attention blocks of the stuff head, each (N, C, H, W) → (N, C, H, W).

Shape legend: N images, C channels, H and W the size of a map, P = H · W its positions, R = C / 16
(at least 4) hidden channels of a gate.

Docstrings give the cost of a block in multiply-adds. Criss-cross attention compares each position
with H + W others; the cost of all other blocks is linear in P.
"""

from __future__ import annotations

import math

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from darts.operations import ChannelGate, SpatialGate, multiply_adds
from spatialflow.config.options import ATTENTION_OPTIONS, ATTENTION_SITES

GRID = 16
"""Largest side of the grid that non-local attention compares with."""


class ChannelAndSpatialGate(nn.Module):
    """Gate channels by their means and maxima, then positions (CBAM, arXiv 1807.06521).

    Parameters: 2 C R + R + C + 99. Multiply-adds: 2 P C + 98 P + 4 C R.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = _hidden(channels)
        self.shared = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1)
        )
        self.spatial = SpatialGate()

    def forward(self, x: Tensor) -> Tensor:
        """Multiply a map by gates computed from itself, (N, C, H, W) → (N, C, H, W)."""
        mean, largest = x.mean(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
        gated: Tensor = self.spatial(x * torch.sigmoid(self.shared(mean) + self.shared(largest)))
        return gated


class CrissCrossAttention(nn.Module):
    """Let each position attend to its row and its column (CCNet, arXiv 1811.11721).

    CCNet applies the block twice, this layer once. The block starts as the identity, because the
    factor of the attention's output starts at 0. Queries and keys have C / 8 channels. Parameters:
    1.25 C² + 1.25 C + 1. Multiply-adds: 1.25 P C² + 1.125 P (H + W) C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = max(channels // 8, 1)
        self.query = nn.Conv2d(channels, reduced, 1)
        self.key = nn.Conv2d(channels, reduced, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.factor = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Add the attended values of row and column, (N, C, H, W) → (N, C, H, W)."""
        query, key, value = self.query(x), self.key(x), self.value(x)
        height, width = x.shape[-2:]
        row = torch.einsum("nchw,nchv->nhwv", query, key)  # (N, H, W, W)
        column = torch.einsum("nchw,ncgw->nhwg", query, key)  # (N, H, W, H)
        # The row already contains the position itself, so the column leaves it out.
        itself = torch.eye(height, dtype=torch.bool, device=x.device)[:, None, :]
        column = column.masked_fill(itself, -torch.inf)
        weights = torch.cat([row, column], dim=3).softmax(dim=3)
        attended = torch.einsum("nhwv,nchv->nchw", weights[..., :width], value)
        attended = attended + torch.einsum("nhwg,ncgw->nchw", weights[..., width:], value)
        return x + self.factor * attended


class NonLocalAttention(nn.Module):
    """Let each position attend to a grid of at most 16 × 16 means (arXiv 1711.07971).

    The paper's non-local block attends to all positions; this one reduces them to the grid, and
    divides scores by the square root of their channels. The block starts as the identity, because
    its last convolution starts at 0. It has C / 2 channels inside. Parameters: 2 C² + 2.5 C.
    Multiply-adds: P C² + 256 P C + 256 C².
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 2, 1)
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, inner, 1)
        self.output = nn.Conv2d(inner, channels, 1)
        for parameter in self.output.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Add the attended values of the grid, (N, C, H, W) → (N, C, H, W)."""
        height, width = x.shape[-2:]
        grid = F.adaptive_avg_pool2d(x, (min(height, GRID), min(width, GRID)))
        query, key, value = (
            part.flatten(2).transpose(1, 2)  # (N, positions, C / 2)
            for part in (self.query(x), self.key(grid), self.value(grid))
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        return x + self.output(attended.transpose(1, 2).unflatten(2, (height, width)))


def build_attention(option: str, channels: int) -> nn.Module:
    """Build an attention block.

    Args:
        option: Name of the block, one of :data:`ATTENTION_OPTIONS`. ``channel`` is
            squeeze-and-excitation (arXiv 1709.01507), ``spatial`` the second half of CBAM.
        channels: C of the map.

    Raises:
        ValueError: If the name is unknown.
    """
    match option:
        case "none":
            return nn.Identity()
        case "channel":
            return ChannelGate(channels)
        case "spatial":
            return SpatialGate()
        case "cbam":
            return ChannelAndSpatialGate(channels)
        case "criss_cross":
            return CrissCrossAttention(channels)
        case "non_local":
            return NonLocalAttention(channels)
        case _:
            raise _unknown(option)


def attention_channels(cfg: CfgNode, site: str) -> int:
    """Return C of the map at a site.

    Args:
        cfg: A config; ``MODEL.FPN.OUT_CHANNELS`` and ``MODEL.SEM_SEG_HEAD.CONVS_DIM`` are read.
        site: Name of the site, one of :data:`spatialflow.config.options.ATTENTION_SITES`.
    """
    levels, _ = ATTENTION_SITES
    return int(cfg.MODEL.FPN.OUT_CHANNELS if site == levels else cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM)


def attention_multiply_adds(option: str, channels: int, positions: float) -> float:
    """Return the cost of a block on a square map, in multiply-adds.

    Args:
        option: Name of the block, one of :data:`ATTENTION_OPTIONS`.
        channels: C of the map.
        positions: P of the map.

    Raises:
        ValueError: If the name is unknown.
    """
    c, p = channels, positions
    gate = 2 * c * _hidden(c)
    match option:
        case "none":
            return 0.0
        case "channel":
            return p * multiply_adds("channel_gate", c) + gate
        case "spatial":
            return p * multiply_adds("spatial_gate", c)
        case "cbam":
            return p * (c + multiply_adds("spatial_gate", c)) + 2 * gate
        case "criss_cross":
            return 1.25 * p * c**2 + 1.125 * p * 2 * math.sqrt(p) * c
        case "non_local":
            grid = min(p, GRID**2)
            return p * c**2 + grid * p * c + grid * c**2
        case _:
            raise _unknown(option)


def _unknown(option: str) -> ValueError:
    """Return the error for an unknown block."""
    return ValueError(f"attention {option!r} given, one of {list(ATTENTION_OPTIONS)} expected")


def _hidden(channels: int) -> int:
    """Return R for C channels."""
    return max(channels // 16, 4)
