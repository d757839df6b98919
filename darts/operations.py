"""Candidate operations of a flow, each (N, C, H, W) → (N, C, H, W).

N images, C channels, H and W the size of a pyramid level. No operation ends with a norm or an
activation, so ``conv_3x3`` is the flow of the published SpatialFlow. At 256 channels weights start
at N(0, 0.01) as in that network. At other widths the standard deviation is scaled, so that a signal
keeps the same share of its variance. Biases start at 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def initialise(conv: nn.Conv2d) -> None:
    """Draw weights from N(0, 0.01 · sqrt(256 / C)) for C input channels, and set biases to 0.

    With a fixed deviation a signal would shrink from layer to layer, faster in narrow networks.
    """
    nn.init.normal_(conv.weight, std=0.01 * math.sqrt(256 / conv.in_channels))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


class ConvOperation(nn.Module):
    """Convolution with bias, padded to keep the size.

    Args:
        channels: C.
        kernel_size: Side of the kernel, odd.
    """

    def __init__(self, channels: int, *, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2)
        initialise(self.conv)

    @property
    def last(self) -> nn.Conv2d:
        """Last layer, which writes the output."""
        return self.conv

    def forward(self, x: Tensor) -> Tensor:
        """Apply the operation, (N, C, H, W) → (N, C, H, W)."""
        return self.conv(x)  # type: ignore[no-any-return]


class SeparableConv(nn.Module):
    """Depthwise 3×3 convolution without bias, then a 1×1 convolution with bias.

    Args:
        channels: C.
        dilation: Dilation of the depthwise convolution.
    """

    def __init__(self, channels: int, *, dilation: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            channels,
            channels,
            3,
            padding=dilation,
            dilation=dilation,
            groups=channels,
            bias=False,
        )
        self.pointwise = nn.Conv2d(channels, channels, 1)
        # A depthwise filter sums nine values, not 9C: with the standard deviation of the other
        # operations its output and its gradient would almost vanish.
        nn.init.kaiming_normal_(self.depthwise.weight, nonlinearity="linear")
        initialise(self.pointwise)

    @property
    def last(self) -> nn.Conv2d:
        """Last layer, which writes the output."""
        return self.pointwise

    def forward(self, x: Tensor) -> Tensor:
        """Apply the operation, (N, C, H, W) → (N, C, H, W)."""
        return self.pointwise(self.depthwise(x))  # type: ignore[no-any-return]


class ChannelGate(nn.Module):
    """Product of the source and a sigmoid of its own pooled channels.

    Squeeze-and-excitation (Hu et al. 2018, arXiv 1709.01507, eq. 2 to 4).

    Args:
        channels: C.
        reduction: Factor by which the hidden layer is narrower than C; it has 4 channels or more.
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(channels // reduction, 4)
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.excite = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the operation, (N, C, H, W) → (N, C, H, W)."""
        pooled = x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.excite(torch.relu(self.squeeze(pooled))))


class SpatialGate(nn.Module):
    """Product of the source and a sigmoid map of its channel mean and channel maximum.

    The spatial attention of CBAM (Woo et al. 2018, arXiv 1807.06521, eq. 3).

    Args:
        kernel_size: Side of the kernel over the two maps, odd.
    """

    def __init__(self, *, kernel_size: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the operation, (N, C, H, W) → (N, C, H, W)."""
        summary = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.conv(summary))


OPERATIONS = (
    "identity",
    "conv_1x1",
    "conv_3x3",
    "sep_conv_3x3",
    "dil_conv_3x3",
    "channel_gate",
    "spatial_gate",
)
"""Names of the operations of a flow. A search calls the absence of a flow ``none``."""

PARAMETER_FREE = ("identity",)
"""Names of the operations without weights. A search that collapses prefers them."""

GATE_OPERATIONS = ("conv_1x1", "conv_3x3", "sep_conv_3x3", "dil_conv_3x3")
"""Names of the operations that can write a gate: they can start at zero, as a gate must."""


def kernel_of(
    operation: nn.Module, channels: int, *, like: Tensor
) -> tuple[int, Tensor, Tensor | None] | None:
    """Return an operation as one convolution, if it is linear.

    A depthwise and a pointwise convolution together are one convolution, whose kernel is the
    product of both. This is exact at the borders too, as there is no bias between them.

    Args:
        operation: Result of :func:`build_operation`.
        channels: C.
        like: Tensor whose device and type the kernel of ``identity`` takes.

    Returns:
        Dilation, kernel (C, C, k, k) with k = 1 or 3, and bias (C,) or None; None for an operation
        that is not linear.
    """
    match operation:
        case nn.Identity():
            unit = torch.eye(channels, dtype=like.dtype, device=like.device)
            return 1, unit[:, :, None, None], None
        case ConvOperation():
            return 1, operation.conv.weight, operation.conv.bias
        case SeparableConv():
            depthwise = operation.depthwise
            kernel = operation.pointwise.weight * depthwise.weight.transpose(0, 1)
            return int(depthwise.dilation[0]), kernel, operation.pointwise.bias
        case _:
            return None


def reference_scale(name: str) -> float:
    """Return the factor that brings an operation's initial output to the scale of its source.

    :func:`initialise` gives a convolution with n taps per input channel a gain of
    0.01 · sqrt(256 n) at any width. Only convolutions have a factor, as it can be folded into their
    weights. Identity needs none. The self-gated sources start at half the scale of their source,
    but cannot fold a factor.

    Args:
        name: One of :data:`OPERATIONS`.
    """
    taps = {"conv_1x1": 1, "conv_3x3": 9, "sep_conv_3x3": 1, "dil_conv_3x3": 1}
    return 1 / (0.01 * math.sqrt(256 * taps[name])) if name in taps else 1.0


def multiply_adds(name: str, channels: int) -> int:
    """Return the number of multiply-adds of an operation per position of its input.

    The small layers of a channel gate run once per image and are not counted.

    Args:
        name: One of :data:`OPERATIONS`.
        channels: C.

    Raises:
        ValueError: If the name is unknown.
    """
    match name:
        case "identity":
            return 0
        case "conv_1x1":
            return channels**2
        case "conv_3x3":
            return 9 * channels**2
        case "sep_conv_3x3" | "dil_conv_3x3":
            return 9 * channels + channels**2
        case "channel_gate":
            return channels
        case "spatial_gate":
            return channels + 2 * 49
        case _:
            raise ValueError(
                f"unknown operation {name!r}; the known ones are {', '.join(OPERATIONS)}"
            )


def build_operation(name: str, channels: int, *, zero_init: bool = False) -> nn.Module:
    """Build an operation by name.

    Args:
        name: One of :data:`OPERATIONS`.
        channels: C of source and target.
        zero_init: Set the weights of the last layer to zero, so that the output is zero. Only
            :data:`GATE_OPERATIONS` support it.

    Raises:
        ValueError: If the name is unknown, or the operation does not support ``zero_init``.
    """
    match name:
        case "identity":
            operation: nn.Module = nn.Identity()
        case "conv_1x1":
            operation = ConvOperation(channels, kernel_size=1)
        case "conv_3x3":
            operation = ConvOperation(channels, kernel_size=3)
        case "sep_conv_3x3":
            operation = SeparableConv(channels, dilation=1)
        case "dil_conv_3x3":
            operation = SeparableConv(channels, dilation=2)
        case "channel_gate":
            operation = ChannelGate(channels)
        case "spatial_gate":
            operation = SpatialGate()
        case _:
            raise ValueError(
                f"unknown operation {name!r}; the known ones are {', '.join(OPERATIONS)}"
            )
    if zero_init:
        if not isinstance(operation, ConvOperation | SeparableConv):
            raise ValueError(
                f"operation {name!r} cannot write a gate; use one of {', '.join(GATE_OPERATIONS)}"
            )
        nn.init.zeros_(operation.last.weight)
    return operation
