"""Data: registration, checks, the mapper, evaluation JSONs and generated scenes."""

from __future__ import annotations

from spatialflow.data.evaluation_json import cache_root, instances_json, panoptic_json
from spatialflow.data.images import read_image
from spatialflow.data.mapper import PanopticMapper, panoptic_ground_truth
from spatialflow.data.registration import (
    ensure_metadata,
    register_builtin,
    register_panoptic,
    unregister,
)
from spatialflow.data.synthetic.scenes import generate_scenes

__all__ = [
    "PanopticMapper",
    "cache_root",
    "ensure_metadata",
    "generate_scenes",
    "instances_json",
    "panoptic_ground_truth",
    "panoptic_json",
    "read_image",
    "register_builtin",
    "register_panoptic",
    "unregister",
]
