"""Feature pyramids P3 to P7 as SpatialFlow has them, on Detectron2's ResNets or other trunks."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from spatialflow.config.checks import check_backbone_config
from spatialflow.config.options import TRUNK_FEATURES
from spatialflow.modeling.layers.deformable import DeformableBottleneck
from spatialflow.modeling.layers.norms import norm_builder

logger = logging.getLogger(__name__)

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class ExtraLevels(nn.Module):
    """P6 from C5 and P7 from P6, 3×3 convolutions of stride 2.

    Detectron2's ``LastLevelP6P7`` has a ReLU before P7; the reference has none.
    """

    num_levels = 2
    in_feature = "res5"

    def __init__(self, in_channels: int, out_channels: int) -> None:
        """Build the convolutions from the channels of C5 and of the pyramid."""
        super().__init__()
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, c5: Tensor) -> list[Tensor]:
        """Return P6 and P7 from C5, (N, C, H, W)."""
        p6 = self.p6(_two_wide(c5))
        return [p6, self.p7(_two_wide(p6))]


def _two_wide(x: Tensor) -> Tensor:
    """Give a map of one column, which small images have, a second one of zeros.

    The next convolution pads with zeros and halves either width to one, so its output is the same;
    but PyTorch (2.14) leaves the weights' gradient uninitialised where the input has one column and
    the CPU computes in bfloat16.
    """
    return F.pad(x, (0, 1)) if x.shape[-1] == 1 else x


class FeaturePyramid(FPN):
    """Detectron2's FPN with the reference's extra levels, initialisation and batch norm.

    With ``eval_norm`` the trunk's batch norms keep their running statistics in training while
    their affine parameters learn; ``FrozenBatchNorm2d``, Detectron2's way, would freeze both.
    """

    def __init__(self, trunk: Backbone, *, channels: int, norm: str, eval_norm: bool) -> None:
        """Build a pyramid.

        Args:
            trunk: Gives ``res3``, ``res4`` and ``res5`` at strides 8, 16 and 32.
            channels: C of the pyramid.
            norm: Of the pyramid's own convolutions, a name that Detectron2 knows; "" for none.
            eval_norm: Whether the trunk's batch norms always run in eval mode.
        """
        top = ExtraLevels(trunk.output_shape()["res5"].channels, channels)
        super().__init__(
            trunk, list(TRUNK_FEATURES), channels, norm=norm_builder(norm), top_block=top
        )
        self.eval_norm = eval_norm
        for module in (*self.lateral_convs, *self.output_convs, top.p6, top.p7):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        self.train()  # a new module is in training mode without this having been called

    def freeze_unread(self, levels: Iterable[str]) -> None:
        """Freeze what no level of the pyramid that is read depends on.

        In distributed training a parameter that learns must get a gradient in every step.

        Args:
            levels: Names of the levels that are read.
        """
        read = {int(level.removeprefix("p")) for level in levels}
        for i, lateral, output in zip(
            (5, 4, 3), self.lateral_convs, self.output_convs, strict=True
        ):
            output.requires_grad_(i in read)
            lateral.requires_grad_(bool(read & set(range(3, i + 1))))
        self.top_block.p6.requires_grad_(bool(read & {6, 7}))
        self.top_block.p7.requires_grad_(7 in read)

    def train(self, mode: bool = True) -> FeaturePyramid:
        """Switch modes, with the trunk's batch norms left in eval mode where asked for."""
        super().train(mode)
        if self.eval_norm:
            for module in self.bottom_up.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


@BACKBONE_REGISTRY.register()
def build_spatialflow_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FeaturePyramid:
    """Build the pyramid that ``MODEL.SPATIALFLOW.TRUNK`` and ``MODEL.RESNETS`` describe.

    Raises:
        ValueError: If a key has a value that is not allowed.
    """
    check_backbone_config(cfg)
    name, norm = cfg.MODEL.SPATIALFLOW.TRUNK, cfg.MODEL.RESNETS.NORM
    trunk = _resnet(cfg, input_shape) if name == "resnet" else _other_trunk(cfg)
    return FeaturePyramid(
        trunk,
        channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        eval_norm=norm in ("EvalBN", "FrozenBN"),
    )


def _resnet(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build a ResNet of Detectron2's blocks, at any width.

    Detectron2's own builder fixes the widths of ResNet-18 and 34.
    """
    keys = cfg.MODEL.RESNETS
    if keys.DEPTH < 50 and keys.RES2_OUT_CHANNELS != keys.STEM_OUT_CHANNELS:
        # Detectron2's default of 256 is meant for bottlenecks.
        logger.warning(
            "MODEL.RESNETS.RES2_OUT_CHANNELS is %d; ResNet-%d is published with %d, as its stem",
            keys.RES2_OUT_CHANNELS,
            keys.DEPTH,
            keys.STEM_OUT_CHANNELS,
        )
    # To the blocks EvalBN is ordinary batch norm; FeaturePyramid keeps it in eval mode.
    norm = "BN" if keys.NORM == "EvalBN" else keys.NORM
    stem = BasicStem(
        in_channels=input_shape.channels, out_channels=keys.STEM_OUT_CHANNELS, norm=norm
    )
    stages = []
    in_channels = keys.STEM_OUT_CHANNELS
    for i, num_blocks in enumerate(BLOCKS[keys.DEPTH]):
        options: dict[str, Any] = {"norm": norm, "out_channels": keys.RES2_OUT_CHANNELS * 2**i}
        if keys.DEPTH >= 50:
            options["bottleneck_channels"] = keys.NUM_GROUPS * keys.WIDTH_PER_GROUP * 2**i
            options["num_groups"] = keys.NUM_GROUPS
            options["stride_in_1x1"] = keys.STRIDE_IN_1X1
        bottleneck = DeformableBottleneck if keys.DEFORM_ON_PER_STAGE[i] else BottleneckBlock
        stages.append(
            ResNet.make_stage(
                bottleneck if keys.DEPTH >= 50 else BasicBlock,
                num_blocks,
                stride_per_block=[1 if i == 0 else 2] + [1] * (num_blocks - 1),
                in_channels=in_channels,
                **options,
            )
        )
        in_channels = options["out_channels"]
    return ResNet(stem, stages, out_features=keys.OUT_FEATURES).freeze(cfg.MODEL.BACKBONE.FREEZE_AT)


def _other_trunk(cfg: CfgNode) -> Backbone:
    from spatialflow.modeling.backbone.trunks import (
        TIMM_PREFIX,
        build_trunk,
        preferred_pixel_statistics,
    )

    name = cfg.MODEL.SPATIALFLOW.TRUNK
    # A checkpoint that is to be loaded brings the trunk's weights with it.
    pretrained = cfg.MODEL.SPATIALFLOW.TRUNK_PRETRAINED and not cfg.MODEL.WEIGHTS
    trunk = build_trunk(name, pretrained=pretrained)
    if name.startswith(TIMM_PREFIX) and pretrained and cfg.MODEL.BACKBONE.FREEZE_AT:
        logger.warning(
            "Trunk %s starts from random weights; MODEL.BACKBONE.FREEZE_AT is not 0", name
        )
    preferred = preferred_pixel_statistics(name)
    if (tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD)) != preferred:
        logger.warning("Trunk %s prefers MODEL.PIXEL_MEAN and PIXEL_STD %s", name, preferred)
    if cfg.MODEL.RESNETS.NORM == "FrozenBN":
        for module in trunk.modules():
            if isinstance(module, _BatchNorm):
                module.requires_grad_(False)
    trunk.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
    return trunk
