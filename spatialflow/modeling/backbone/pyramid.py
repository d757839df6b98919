"""SpatialFlow's feature pyramid, P3 or P2 to P7, on Detectron2's ResNets or other trunks.

Shape legend: N images, C channels of the pyramid, H and W the size of a map.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
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
from spatialflow.modeling.backbone.trunks import build_trunk, preferred_pixel_statistics
from spatialflow.modeling.layers.deformable import DeformableBottleneck
from spatialflow.modeling.layers.norms import norm_builder
from spatialflow.utils.errors import ConfigError

logger = logging.getLogger(__name__)

# Depth of a ResNet → number of blocks in each of its four stages (arXiv 1512.03385, table 1).
BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class ExtraLevels(nn.Module):
    """Compute P6 from C5 and P7 from P6, by 3×3 convolutions of stride 2.

    RetinaNet (arXiv 1708.02002) and Detectron2's ``LastLevelP6P7`` have a ReLU before P7. The
    reference has none.
    """

    num_levels = 2
    in_feature = "res5"

    def __init__(self, in_channels: int, out_channels: int) -> None:
        """Build the convolutions.

        Args:
            in_channels: Channels of C5, the trunk's ``res5``.
            out_channels: C of the pyramid.
        """
        super().__init__()
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, c5: Tensor) -> list[Tensor]:
        """Return P6 (N, C, H / 2, W / 2) and P7 (N, C, H / 4, W / 4) from C5 (N, C', H, W)."""
        p6 = self.p6(_widen_single_column(c5))
        return [p6, self.p7(_widen_single_column(p6))]


def _widen_single_column(x: Tensor) -> Tensor:
    """Add a second column of zeros to a map of one column, as small images have.

    The next convolution pads with zeros and halves either width to one, so its output is the same.
    Without the second column PyTorch 2.14 leaves the gradient of the weights uninitialised in
    bfloat16 on CPUs.
    """
    return F.pad(x, (0, 1)) if x.shape[-1] == 1 else x


class FeaturePyramid(FPN):
    """Detectron2's FPN (arXiv 1612.03144) with the reference's extra levels and initial weights.

    With ``eval_norm`` the trunk's batch norms use their running statistics in training, and their
    affine parameters learn. Detectron2's ``FrozenBatchNorm2d`` freezes both.
    """

    def __init__(
        self,
        trunk: Backbone,
        *,
        channels: int,
        norm: str,
        eval_norm: bool,
        features: Sequence[str] = TRUNK_FEATURES,
    ) -> None:
        """Build a pyramid.

        Args:
            trunk: Backbone with the maps ``features``.
            channels: C of the pyramid.
            norm: Norm of the pyramid's own convolutions, by Detectron2's name; "" for none.
            eval_norm: Whether the trunk's batch norms always run in eval mode.
            features: Maps of the trunk: ``res3``, ``res4`` and ``res5`` at strides 8, 16 and 32,
                and ``res2`` at stride 4 for a pyramid with P2.
        """
        top = ExtraLevels(trunk.output_shape()["res5"].channels, channels)
        super().__init__(trunk, list(features), channels, norm=norm_builder(norm), top_block=top)
        self.eval_norm = eval_norm
        for module in (*self.lateral_convs, *self.output_convs, top.p6, top.p7):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        self.train()  # new modules are in training mode; this puts the norms into eval mode

    def freeze_unread(self, levels: Iterable[str]) -> None:
        """Freeze the convolutions on which none of the given levels depends.

        Distributed training needs a gradient of every learning parameter in every step.

        Args:
            levels: Names of the levels that some branch reads, such as ``p3``.
        """
        read = {int(level.removeprefix("p")) for level in levels}
        finest = 6 - len(self.lateral_convs)
        for i, lateral, output in zip(
            range(5, finest - 1, -1), self.lateral_convs, self.output_convs, strict=True
        ):
            output.requires_grad_(i in read)
            lateral.requires_grad_(bool(read & set(range(finest, i + 1))))
        self.top_block.p6.requires_grad_(bool(read & {6, 7}))
        self.top_block.p7.requires_grad_(7 in read)

    def train(self, mode: bool = True) -> FeaturePyramid:
        """Switch modes; with ``eval_norm`` the trunk's batch norms stay in eval mode."""
        super().train(mode)
        if self.eval_norm:
            for module in self.bottom_up.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


@BACKBONE_REGISTRY.register()
def build_spatialflow_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FeaturePyramid:
    """Build the pyramid that ``MODEL.SPATIALFLOW.TRUNK`` and ``MODEL.RESNETS`` describe.

    Args:
        cfg: A config with SpatialFlow's keys.
        input_shape: Channels of the image.

    Raises:
        ValueError: If a key has a value that is not allowed.
    """
    check_backbone_config(cfg)
    name, norm = cfg.MODEL.SPATIALFLOW.TRUNK, cfg.MODEL.RESNETS.NORM
    trunk = _resnet(cfg, input_shape) if name == "resnet" else _other_trunk(cfg)
    features, known = cfg.MODEL.FPN.IN_FEATURES or TRUNK_FEATURES, trunk.output_shape()
    if not set(features) <= set(known):
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES: {list(features)} given, but the trunk {name} has "
            f"{sorted(known)}"
        )
    return FeaturePyramid(
        trunk,
        channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        eval_norm=norm in ("EvalBN", "FrozenBN"),
        features=features,
    )


def _resnet(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Build a ResNet of any width from Detectron2's blocks.

    Detectron2's own builder allows one width only for ResNet-18 and ResNet-34.
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
    # EvalBN is ordinary batch norm that FeaturePyramid keeps in eval mode.
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
    """Build a trunk by name; warn where the config does not fit its weights."""
    name = cfg.MODEL.SPATIALFLOW.TRUNK
    # A checkpoint contains the trunk's weights.
    pretrained = cfg.MODEL.SPATIALFLOW.TRUNK_PRETRAINED and not cfg.MODEL.WEIGHTS
    own = cfg.MODEL.SPATIALFLOW
    trunk = build_trunk(name, pretrained, own.TRUNK_WEIGHTS, check_weights=own.CHECK_WEIGHTS)
    preferred = preferred_pixel_statistics(name)
    if (tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD)) != preferred:
        logger.warning("Trunk %s prefers MODEL.PIXEL_MEAN and PIXEL_STD %s", name, preferred)
    if cfg.MODEL.RESNETS.NORM == "FrozenBN":
        for module in trunk.modules():
            if isinstance(module, _BatchNorm):
                module.requires_grad_(False)
    trunk.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
    return trunk
