"""The feature pyramid and the trunks below it."""

from spatialflow.modeling.backbone.pyramid import FeaturePyramid, build_spatialflow_fpn_backbone
from spatialflow.modeling.backbone.trunks import build_trunk

__all__ = ["FeaturePyramid", "build_spatialflow_fpn_backbone", "build_trunk"]
