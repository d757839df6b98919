"""The pyramid of a config: its levels, by name."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

OWN_BACKBONE = "build_spatialflow_fpn_backbone"
LEVEL_NAMES = (
    "names of p3 to p7, or from p2 on with res2 in MODEL.FPN.IN_FEATURES, finest first and without "
    "a gap,"
)


def has_own_backbone(cfg: CfgNode) -> bool:
    """Return whether the pyramid is SpatialFlow's."""
    return bool(cfg.MODEL.BACKBONE.NAME == OWN_BACKBONE)


def level_names(cfg: CfgNode, last: int) -> list[str]:
    """Return the levels of the config's pyramid up to P<last>."""
    without_p2 = has_own_backbone(cfg) and "res2" not in cfg.MODEL.FPN.IN_FEATURES
    return [f"p{i}" for i in range(3 if without_p2 else 2, last + 1)]


def are_consecutive_levels(value: Any, cfg: CfgNode) -> bool:
    """Return whether a value is a list of levels without a gap."""
    known = level_names(cfg, 7)
    first = known.index(value[0])
    return list(value) == known[first : first + len(value)]


def are_stuff_levels(value: Any, cfg: CfgNode) -> bool:
    """Return whether a value is a list of levels that the stuff head can merge."""
    # P6 is left out: it is not half the size of a P5 of odd size.
    return len(value) > 0 and list(value) == [x for x in level_names(cfg, 5) if x in value]
