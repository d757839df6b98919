"""Candidate operations of a flow, each (N, C, H, W) → (N, C, H, W).

N images, C channels, H and W the size of a pyramid level. None has a norm or an activation at its
end, so that ``conv_3x3`` is the flow of the published SpatialFlow. At its 256 channels weights
start at N(0, 0.01) as there, and at any other width so that a signal keeps the same share of its
variance; biases start at 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def initialise(conv: nn.Conv2d) -> None:
    """Draw weights from N(0, 0.01 · sqrt(256 / C)), C input channels, and set biases to 0.

    With a fixed deviation a signal would shrink the faster, layer by layer, the narrower they are.
    """
    nn.init.normal_(conv.weight, std=0.01 * math.sqrt(256 / conv.in_channels))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


class ConvOperation(nn.Module):
    """A convolution with bias, padded to keep the size."""

    def __init__(self, channels: int, *, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2)
        initialise(self.conv)

    @property
    def last(self) -> nn.Conv2d:
        """The layer that writes the output."""
        return self.conv

    def forward(self, x: Tensor) -> Tensor:
        """Apply the operation, (N, C, H, W) → (N, C, H, W)."""
        return self.conv(x)  # type: ignore[no-any-return]


class SeparableConv(nn.Module):
    """A depthwise 3×3 convolution (optionally dilated), then a 1×1 convolution with bias."""

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
        # A depthwise filter sees nine values, not 9C: with the other operations' standard
        # deviation its output, and the gradient through it, would all but vanish.
        nn.init.kaiming_normal_(self.depthwise.weight, nonlinearity="linear")
        initialise(self.pointwise)

    @property
    def last(self) -> nn.Conv2d:
        """The layer that writes the output."""
        return self.pointwise

    def forward(self, x: Tensor) -> Tensor:
        """Apply the operation, (N, C, H, W) → (N, C, H, W)."""
        return self.pointwise(self.depthwise(x))  # type: ignore[no-any-return]


class ChannelGate(nn.Module):
    """The source times a sigmoid of its own pooled channels (Hu et al. 2018, eq. 2 to 4)."""

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
    """The source times a sigmoid map of its channel mean and maximum (Woo et al. 2018, eq. 3)."""

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
"""Names of the operations a flow can have; the absence of a flow is ``none`` in a search."""

PARAMETER_FREE = ("identity",)
"""Those without weights, which a search that collapses prefers, as they need not learn."""

GATE_OPERATIONS = ("conv_1x1", "conv_3x3", "sep_conv_3x3", "dil_conv_3x3")
"""Those that can write a gate: their last layer starts at zero, so the gate starts open."""


def kernel_of(
    operation: nn.Module, channels: int, *, like: Tensor
) -> tuple[int, Tensor, Tensor | None] | None:
    """Return an operation as one convolution, if it is linear.

    A depthwise and a pointwise convolution are one whose kernel is the product of theirs, also at
    the borders, as no bias comes between them.

    Args:
        operation: One that :func:`build_operation` has built.
        channels: C.
        like: Of the device and type that a kernel without weights is to have.

    Returns:
        Dilation, kernel (C, C, k, k) of k 1 or 3, and bias (C,); None for a self-gated source.
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
    """Return what brings an operation's output at the start to the scale of its source.

    :func:`initialise` gives a convolution of n taps on each of its input channels a gain of
    0.01 · sqrt(256 n) at any width. The factor of a convolution can be folded into its weights;
    identity needs none, and the gates, which start at half the scale of their source, could not
    fold one.
    """
    taps = {"conv_1x1": 1, "conv_3x3": 9, "sep_conv_3x3": 1, "dil_conv_3x3": 1}
    return 1 / (0.01 * math.sqrt(256 * taps[name])) if name in taps else 1.0


def multiply_adds(name: str, channels: int) -> int:
    """Return what an operation costs at one position of its input: its multiply-adds.

    What a channel gate does once an image is left out.
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
        zero_init: Start the last layer at zero, so that the output is zero; only for
            :data:`GATE_OPERATIONS`.

    Raises:
        ValueError: If the name is unknown or ``zero_init`` is asked of an operation without it.
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
