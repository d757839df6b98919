"""Feature pyramids P3 to P7 as SpatialFlow has them, on Detectron2's ResNets or other trunks."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN, build_resnet_backbone
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

TRUNK_FEATURES = ("res3", "res4", "res5")
NORMS = ("EvalBN", "FrozenBN", "BN", "SyncBN", "GN")


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
        p6 = self.p6(c5)
        return [p6, self.p7(p6)]


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
        super().__init__(trunk, list(TRUNK_FEATURES), channels, norm=norm, top_block=top)
        self.eval_norm = eval_norm
        for module in (*self.lateral_convs, *self.output_convs, top.p6, top.p7):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

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
    name, norm = cfg.MODEL.SPATIALFLOW.TRUNK, cfg.MODEL.RESNETS.NORM
    if norm not in NORMS:
        raise ValueError(f"MODEL.RESNETS.NORM: {norm!r} given, one of {NORMS} expected")
    trunk = _resnet(cfg, input_shape) if name == "resnet" else _other_trunk(cfg)
    return FeaturePyramid(
        trunk,
        channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        eval_norm=norm in ("EvalBN", "FrozenBN"),
    )


def _resnet(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    missing = set(TRUNK_FEATURES) - set(cfg.MODEL.RESNETS.OUT_FEATURES)
    if missing:
        raise ValueError(
            f"MODEL.RESNETS.OUT_FEATURES: {cfg.MODEL.RESNETS.OUT_FEATURES} given, "
            f"{list(TRUNK_FEATURES)} expected"
        )
    cfg = cfg.clone()
    cfg.defrost()
    if cfg.MODEL.RESNETS.NORM == "EvalBN":
        # To Detectron2 this is ordinary batch norm; FeaturePyramid keeps it in eval mode.
        cfg.MODEL.RESNETS.NORM = "BN"
    return build_resnet_backbone(cfg, input_shape)


def _other_trunk(cfg: CfgNode) -> Backbone:
    from spatialflow.trunks import build_trunk

    if cfg.MODEL.RESNETS.NORM not in ("EvalBN", "FrozenBN", "BN"):
        raise ValueError(
            f"MODEL.RESNETS.NORM: {cfg.MODEL.RESNETS.NORM!r} given; the trunk "
            f"{cfg.MODEL.SPATIALFLOW.TRUNK!r} has batch norm: EvalBN, FrozenBN or BN expected"
        )
    # A checkpoint that is to be loaded brings the trunk's weights with it.
    pretrained = cfg.MODEL.SPATIALFLOW.TRUNK_PRETRAINED and not cfg.MODEL.WEIGHTS
    trunk = build_trunk(cfg.MODEL.SPATIALFLOW.TRUNK, pretrained=pretrained)
    if cfg.MODEL.RESNETS.NORM == "FrozenBN":
        for module in trunk.modules():
            if isinstance(module, _BatchNorm):
                module.requires_grad_(False)
    trunk.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
    return trunk
