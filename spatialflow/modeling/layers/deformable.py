"""Modulated deformable convolution (Zhu et al. 2019, DCNv2) by torchvision, without compiled code.

N images, C channels, H and W the size of a map, K the positions of a kernel (9).
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
    """A 3×3 convolution that samples where another 3×3 convolution predicts.

    ``offset`` predicts 3 K channels from the offset input: 2 K offsets in pixels, (y, x) of each
    kernel position, and K modulations, whose sigmoid weighs the positions.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build it with the arguments of Detectron2's ``Conv2d``; the offsets start at zero."""
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
        """Convolve, then norm and activation as Detectron2's ``Conv2d``.

        Args:
            x: (N, C, H, W).
            offset_input: What the offsets are predicted from, of x's shape; x itself if absent.
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
    """A node of a branch whose convolution is deformable, as in the authors' strongest model.

    The weights of its offsets start as a flow's do, not at zero as in DCNv2.
    """

    takes_offset_input = True
    """Whether :class:`FlowGraph` gives it a second map, to predict offsets from."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build it with the arguments of Detectron2's ``Conv2d``."""
        super().__init__(*args, **kwargs)
        initialise(self.offset)


class DeformableBottleneck(BottleneckBlock):
    """Detectron2's bottleneck with a deformable 3×3 convolution; its own needs compiled code."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build it as ``BottleneckBlock``, and put another ``conv2`` in place."""
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
