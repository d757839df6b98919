"""Self-attention for stuff: blocks that keep the shape of a map, (N, C, H, W) → (N, C, H, W).

N images, C channels, H and W the size of a map, P = H · W its positions, R = C / 16 (at least 4)
hidden channels of a gate. What each block costs is in multiply-adds; all are linear in P but for
the criss-cross block, whose every position looks at H + W others.
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


class ChannelAndSpatialGate(nn.Module):
    """A gate of channels from their means and maxima, then one of positions (Woo et al. 2018).

    2 C R + R + C + 99 parameters, 2 P C + 98 P + 4 C R multiply-adds.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = _hidden(channels)
        self.shared = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1)
        )
        self.spatial = SpatialGate()

    def forward(self, x: Tensor) -> Tensor:
        """Gate a map by itself, (N, C, H, W) → (N, C, H, W)."""
        mean, largest = x.mean(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
        gated: Tensor = self.spatial(x * torch.sigmoid(self.shared(mean) + self.shared(largest)))
        return gated


class CrissCrossAttention(nn.Module):
    """Each position attends to its row and its column (Huang et al. 2019, CCNet, once).

    The identity at the start, as the factor of what is added is 0. With keys of C / 8 channels,
    1.25 C² + 1.25 C + 1 parameters, 1.25 P C² + 1.125 P (H + W) C multiply-adds.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = max(channels // 8, 1)
        self.query = nn.Conv2d(channels, reduced, 1)
        self.key = nn.Conv2d(channels, reduced, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.factor = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Add what row and column hold, (N, C, H, W) → (N, C, H, W)."""
        query, key, value = self.query(x), self.key(x), self.value(x)
        height, width = x.shape[-2:]
        row = torch.einsum("nchw,nchv->nhwv", query, key)  # (N, H, W, W)
        column = torch.einsum("nchw,ncgw->nhwg", query, key)  # (N, H, W, H)
        # Its own position is in the row already.
        own = torch.eye(height, dtype=torch.bool, device=x.device)[:, None, :]
        column = column.masked_fill(own, -torch.inf)
        weights = torch.cat([row, column], dim=3).softmax(dim=3)
        seen = torch.einsum("nhwv,nchv->nchw", weights[..., :width], value)
        seen = seen + torch.einsum("nhwg,ncgw->nchw", weights[..., width:], value)
        return x + self.factor * seen


class NonLocalAttention(nn.Module):
    """Each position attends to a grid of at most 16 × 16 means (Wang et al. 2018, reduced).

    The identity at the start, as the last convolution is 0. With C / 2 channels inside, 2 C² +
    2.5 C parameters and P C² + 256 P C + 256 C² multiply-adds. Scores are over the square root of
    their channels, which the paper's are not.
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
        """Add what the grid holds, (N, C, H, W) → (N, C, H, W)."""
        height, width = x.shape[-2:]
        grid = F.adaptive_avg_pool2d(x, (min(height, GRID), min(width, GRID)))
        query, key, value = (
            part.flatten(2).transpose(1, 2)  # (N, positions, C / 2)
            for part in (self.query(x), self.key(grid), self.value(grid))
        )
        seen = F.scaled_dot_product_attention(query, key, value)
        return x + self.output(seen.transpose(1, 2).unflatten(2, (height, width)))


def build_attention(option: str, channels: int) -> nn.Module:
    """Build a block by name.

    Args:
        option: One of :data:`ATTENTION_OPTIONS`; ``channel`` is squeeze-and-excitation (Hu et
            al. 2018), ``spatial`` the second half of CBAM.
        channels: C.

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
            raise ValueError(
                f"attention {option!r} given, one of {list(ATTENTION_OPTIONS)} expected"
            )


def attention_channels(cfg: CfgNode, site: str) -> int:
    """Return C of the map that a block at a site sees.

    Args:
        cfg: A config with Detectron2's keys of pyramid and semantic head.
        site: One of :data:`spatialflow.config.options.ATTENTION_SITES`.
    """
    levels, _ = ATTENTION_SITES
    return int(cfg.MODEL.FPN.OUT_CHANNELS if site == levels else cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM)


def attention_multiply_adds(option: str, channels: int, positions: float) -> float:
    """Return what a block costs on a square map, in multiply-adds.

    Args:
        option: One of :data:`ATTENTION_OPTIONS`.
        channels: C.
        positions: P.
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
            raise ValueError(
                f"attention {option!r} given, one of {list(ATTENTION_OPTIONS)} expected"
            )


def _unknown(option: str) -> ValueError:
    return ValueError(f"attention {option!r} given, one of {list(ATTENTION_OPTIONS)} expected")


def _hidden(channels: int) -> int:
    return max(channels // 16, 4)
