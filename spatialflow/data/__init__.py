"""Data: registration, checking, the mapper, derived files and generated scenes."""

from .builtin import register_builtin
from .derived import cache_root, instances_json, panoptic_json
from .mapper import PanopticMapper
from .problems import Problem
from .register import ensure_metadata, register_panoptic, unregister
from .scenes import generate_scenes
from .segments import panoptic_ground_truth

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
