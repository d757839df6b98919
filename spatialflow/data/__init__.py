"""Data: registration, checking, the mapper, derived files and generated scenes."""

from spatialflow.data.builtin import register_builtin
from spatialflow.data.evaluation_json import cache_root, instances_json, panoptic_json
from spatialflow.data.mapper import PanopticMapper
from spatialflow.data.registration import ensure_metadata, register_panoptic, unregister
from spatialflow.data.segments import panoptic_ground_truth
from spatialflow.data.synthetic.scenes import generate_scenes
from spatialflow.data.validation.defects import Problem

__all__ = [
    "PanopticMapper",
    "Problem",
    "cache_root",
    "ensure_metadata",
    "generate_scenes",
    "instances_json",
    "panoptic_ground_truth",
    "panoptic_json",
    "register_builtin",
    "register_panoptic",
    "unregister",
]
