"""Modulated deformable convolution (DCNv2, arXiv 1811.11168), computed by torchvision.

Detectron2's own layer needs its compiled extension, which SpatialFlow does without.

Shape legend: N images, C channels, H and W the size of a map, K the number of kernel positions (9
for 3×3).
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.layers import Conv2d
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from darts.operations import initialise
from spatialflow.utils.precision import full_precision


class DeformableConv(Conv2d):
    """A convolution that samples at positions which another convolution, ``offset``, predicts.

    ``offset`` predicts 3 K channels: 2 K offsets in pixels, (y, x) for each kernel position, then K
    modulations. The sigmoid of a modulation is the weight of its kernel position (eq. 1).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build the layer with the arguments of Detectron2's ``Conv2d``; offsets start at zero."""
        super().__init__(*args, **kwargs)
        positions = self.kernel_size[0] * self.kernel_size[1]
        self.offset = nn.Conv2d(
            self.in_channels,
            3 * positions,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )
        for parameter in self.offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, offset_input: Tensor | None = None) -> Tensor:
        """Convolve, then apply norm and activation, as Detectron2's ``Conv2d`` does.

        Args:
            x: Map to convolve, (N, C, H, W).
            offset_input: Map from which offsets are predicted, (N, C, H, W); None for ``x``.

        Returns:
            (N, C', H', W').
        """
        predicted = self.offset(x if offset_input is None else offset_input)
        positions = predicted.shape[1] // 3
        # Sampling is not implemented in half precision on every device.
        predicted = full_precision(predicted)
        with torch.autocast(x.device.type, enabled=False):
            x = deform_conv2d(
                full_precision(x),
                predicted[:, : 2 * positions],
                full_precision(self.weight),
                None if self.bias is None else full_precision(self.bias),
                stride=self.stride,
                padding=self.padding,
                dilation=self.dilation,
                mask=torch.sigmoid(predicted[:, 2 * positions :]),
            )
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


class DeformableNode(DeformableConv):
    """A deformable convolution as a node of a branch, as in the authors' strongest model.

    The offset convolution starts with the random weights of a flow's convolution. In DCNv2 it
    starts at zero.
    """

    takes_offset_input = True
    """Ask :class:`spatialflow.FlowGraph` for a second map, from which offsets are predicted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build the node with the arguments of Detectron2's ``Conv2d``."""
        super().__init__(*args, **kwargs)
        initialise(self.offset)


class DeformableBottleneck(BottleneckBlock):
    """Detectron2's bottleneck block with a deformable 3×3 convolution as ``conv2``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build the block with the arguments of Detectron2's ``BottleneckBlock``."""
        super().__init__(*args, **kwargs)
        plain: Conv2d = self.conv2
        self.conv2: Conv2d = DeformableConv(
            plain.in_channels,
            plain.out_channels,
            kernel_size=plain.kernel_size,
            stride=plain.stride,
            padding=plain.padding,
            dilation=plain.dilation,
            groups=plain.groups,
            bias=False,
            norm=plain.norm,
        )
        self.conv2.weight = plain.weight
