"""Rules for the values of a config that Detectron2 and PyTorch do not check, or not clearly.

A rule has one of four reasons: the key is SpatialFlow's own; Detectron2 accepts a value that
SpatialFlow ignores; a wrong value fails late or without its key's name; keys depend on each other.
Genotypes, trunks and data are checked where they are read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY

from spatialflow.config import options
from spatialflow.config.levels import (
    LEVEL_NAMES,
    are_consecutive_levels,
    are_stuff_levels,
    has_own_backbone,
)
from spatialflow.config.options import FINER_TRUNK_FEATURES, TRUNK_FEATURES
from spatialflow.config.region_checks import REGION_RULES
from spatialflow.config.rules import (
    Rule,
    above_zero,
    at_least,
    check_rules,
    in_range,
    matching,
    norm,
    one_of,
    only_with,
)
from spatialflow.config.values import items
from spatialflow.utils.precision import AMP_DTYPES

CLASSES = "1 or more, or -1 for spatialflow.engine.prepare_config to take from the data,"
MOST_CONVS = 100
"""Number of convolutions in a row from which building a network would take too long."""
TRUNK_NORMS = ("EvalBN", "FrozenBN", "BN")


def check_config(cfg: CfgNode) -> None:
    """Check the keys of a SpatialFlow model.

    Raises:
        ValueError: If a value is not allowed; the error names each wrong key, the value given and
            the value expected.
    """
    check_rules(cfg, (*MODEL_RULES, *(BACKBONE_RULES if has_own_backbone(cfg) else ())))


def check_backbone_config(cfg: CfgNode) -> None:
    """Check the keys of ``build_spatialflow_fpn_backbone``, for any model.

    Raises:
        ValueError: If a value is not allowed; the error names each wrong key, the value given and
            the value expected.
    """
    check_rules(cfg, BACKBONE_RULES)


def _device_exists(value: Any, _: CfgNode) -> bool:
    try:
        if torch.device(value).type == "meta":  # has no numbers
            return False
        torch.empty(0, device=value)
    except (AssertionError, RuntimeError, NotImplementedError):  # PyTorch has no common error.
        return False
    return True


def _are_pixel_means(value: Any, cfg: CfgNode) -> bool:
    channels = (1, 3) if cfg.INPUT.FORMAT == "L" else (3,)
    return len(value) in channels and all(map(math.isfinite, value))


def _is_common_stride(value: Any, cfg: CfgNode) -> bool:
    finest = 2 ** int(cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES[0][1:])
    return 1 <= value <= finest and value & (value - 1) == 0


def _are_equally_many_anchors(value: Any, cfg: CfgNode) -> bool:
    ratios = _numbers_of_levels(cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS, cfg)
    pairs = zip(_numbers_of_levels(value, cfg), ratios, strict=True)
    return len({len(sizes) * len(of_level) for sizes, of_level in pairs}) == 1


def _numbers_of_levels(value: Any, cfg: CfgNode) -> list[Sequence[float]]:
    """Return a list for each level, from one for each level or one for all."""
    levels = len(cfg.MODEL.RETINANET.IN_FEATURES)
    lists = list(value) if isinstance(value[0], list | tuple) else [value]
    numbers = all(isinstance(x, int | float) for of_level in lists for x in of_level)
    if len(lists) not in (1, levels) or not numbers:
        raise ValueError
    return lists * levels if len(lists) == 1 else lists


MODEL_RULES: tuple[Rule, ...] = (
    ("MODEL.DEVICE", "a device of this machine", _device_exists),
    ("MODEL.BACKBONE.NAME", "a registered backbone", lambda v, _: v in BACKBONE_REGISTRY),
    ("MODEL.PIXEL_MEAN", "3 numbers, or 1 with INPUT.FORMAT 'L',", _are_pixel_means),
    (
        "MODEL.PIXEL_STD",
        "as many numbers as PIXEL_MEAN has",
        lambda v, c: len(v) == len(c.MODEL.PIXEL_MEAN),
    ),
    ("MODEL.RETINANET.NUM_CLASSES", CLASSES, lambda v, _: v >= 1),
    ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", CLASSES, lambda v, _: v >= 1),
    *above_zero(
        "MODEL.PIXEL_STD",
        "MODEL.RETINANET.BBOX_REG_WEIGHTS",
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
        "MODEL.ANCHOR_GENERATOR.SIZES",
        "MODEL.SPATIALFLOW.MASK_CANONICAL_BOX_SIZE",
    ),
    *in_range(1, MOST_CONVS, "MODEL.RETINANET.NUM_CONVS"),
    *in_range(0, MOST_CONVS, "MODEL.ROI_MASK_HEAD.NUM_CONV"),
    one_of("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlign", "ROIAlignV2", "ROIPool"),
    # Other boxes are infinite or empty in 32 bits.
    ("MODEL.ANCHOR_GENERATOR.SIZES", "at most 1e6", lambda v, _: max(items(v)) <= 1e6),
    (
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
        "1e-6 to 1e6",
        lambda v, _: all(1e-6 <= ratio <= 1e6 for ratio in items(v)),
    ),
    *at_least(
        1,
        "MODEL.FPN.OUT_CHANNELS",
        "MODEL.RETINANET.TOPK_CANDIDATES_TEST",
        "MODEL.ROI_MASK_HEAD.CONV_DIM",
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION",
        "MODEL.SEM_SEG_HEAD.CONVS_DIM",
        "TEST.DETECTIONS_PER_IMAGE",
    ),
    *at_least(
        0,
        "MODEL.RETINANET.FOCAL_LOSS_GAMMA",
        "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA",
        "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT",
        "MODEL.SPATIALFLOW.MASK_CANONICAL_LEVEL",
    ),
    *in_range(
        0,
        1,
        "MODEL.RETINANET.SCORE_THRESH_TEST",
        "MODEL.RETINANET.NMS_THRESH_TEST",
        "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH",
        "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH",
        "MODEL.SPATIALFLOW.BOX_FILL.THRESH",
    ),
    # -1 weighs no class.
    *in_range(-1, 1, "MODEL.RETINANET.FOCAL_LOSS_ALPHA"),
    ("MODEL.RETINANET.PRIOR_PROB", "a number between 0 and 1", lambda v, _: 0 < v < 1),
    ("MODEL.RETINANET.IN_FEATURES", LEVEL_NAMES, are_consecutive_levels),
    *matching("MODEL.RETINANET"),
    ("MODEL.RETINANET.BBOX_REG_WEIGHTS", "4 numbers", lambda v, _: len(v) == 4),
    *norm("MODEL.RETINANET.NORM", "MODEL.FPN.OUT_CHANNELS"),
    (
        "MODEL.ANCHOR_GENERATOR.NAME",
        "a registered generator of boxes that are not rotated",
        lambda v, _: v in ANCHOR_GENERATOR_REGISTRY and "Rotated" not in v,
    ),
    ("MODEL.ANCHOR_GENERATOR.OFFSET", "0 or more, less than 1,", lambda v, _: 0 <= v < 1),
    (
        "MODEL.ANCHOR_GENERATOR.SIZES",
        "one list or one for each of RETINANET.IN_FEATURES, as ASPECT_RATIOS, with equally many "
        "anchors on each level,",
        _are_equally_many_anchors,
    ),
    (
        "MODEL.SEM_SEG_HEAD.IN_FEATURES",
        "some of p3, p4 and p5 in order, and p2 with res2 in MODEL.FPN.IN_FEATURES",
        are_stuff_levels,
    ),
    (
        "MODEL.SEM_SEG_HEAD.COMMON_STRIDE",
        "a power of two up to the stride of the first of IN_FEATURES",
        _is_common_stride,
    ),
    (
        "MODEL.SEM_SEG_HEAD.IGNORE_VALUE",
        "a number that is not of a class (0 to NUM_CLASSES - 1)",
        lambda v, c: not 0 <= v < c.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
    ),
    *norm("MODEL.SEM_SEG_HEAD.NORM", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "BN", "SyncBN"),
    # SyncBN would wait for a process whose batch has no proposals.
    *norm("MODEL.ROI_MASK_HEAD.NORM", "MODEL.ROI_MASK_HEAD.CONV_DIM", "BN"),
    # Only these values are built.
    one_of("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "smooth_l1"),
    one_of("MODEL.PANOPTIC_FPN.COMBINE.ENABLED", True),
    one_of("MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT", 1.0),
    one_of("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False),
    ("MODEL.SPATIALFLOW.MASK_IN_FEATURES", LEVEL_NAMES, are_consecutive_levels),
    one_of("MODEL.SPATIALFLOW.RESIDUAL", *options.RESIDUALS),
    one_of("MODEL.SPATIALFLOW.ASSIGNMENT", *options.ASSIGNMENTS),
    one_of("MODEL.SPATIALFLOW.FLOW_INIT", *options.FLOW_INITS),
    one_of("MODEL.SPATIALFLOW.POOL_FROM", *options.POOL_SOURCES),
    *only_with("MODEL.SPATIALFLOW.REGIONS.ENABLED", True, *REGION_RULES),
    ("MODEL.SPATIALFLOW.MASK_PROPOSAL_IOU", "up to 1, above 0,", lambda v, _: 0 < v <= 1),
    one_of("MODEL.SPATIALFLOW.STUFF_FROM", *options.STUFF_SOURCES),
    one_of("MODEL.SPATIALFLOW.LOSS_NORMALIZER", *options.LOSS_NORMALIZERS),
    one_of("TEST.AMP.DTYPE", *AMP_DTYPES),
)

BACKBONE_RULES: tuple[Rule, ...] = (
    one_of("MODEL.FPN.FUSE_TYPE", "sum"),
    one_of("MODEL.FPN.IN_FEATURES", [], list(TRUNK_FEATURES), list(FINER_TRUNK_FEATURES)),
    *norm("MODEL.FPN.NORM", "MODEL.FPN.OUT_CHANNELS", "BN", "SyncBN"),
    *in_range(0, 5, "MODEL.BACKBONE.FREEZE_AT"),
    one_of("MODEL.RESNETS.NORM", *TRUNK_NORMS, "SyncBN", "GN"),
    (
        "MODEL.RESNETS.NORM",
        f"for a trunk other than 'resnet', which has batch norm, one of {TRUNK_NORMS}",
        lambda v, c: c.MODEL.SPATIALFLOW.TRUNK == "resnet" or v in TRUNK_NORMS,
    ),
    (
        "MODEL.SPATIALFLOW.TRUNK_WEIGHTS",
        "'' for a TRUNK other than 'timm:<model>'",
        lambda v, c: not v or c.MODEL.SPATIALFLOW.TRUNK.startswith("timm:"),
    ),
    *only_with(
        "MODEL.SPATIALFLOW.TRUNK_PRETRAINED", False, one_of("MODEL.SPATIALFLOW.TRUNK_WEIGHTS", "")
    ),
    *only_with(
        "MODEL.SPATIALFLOW.TRUNK",
        "resnet",
        one_of("MODEL.RESNETS.DEPTH", 18, 34, 50, 101, 152),
        *at_least(
            1,
            "MODEL.RESNETS.NUM_GROUPS",
            "MODEL.RESNETS.WIDTH_PER_GROUP",
            "MODEL.RESNETS.STEM_OUT_CHANNELS",
            "MODEL.RESNETS.RES2_OUT_CHANNELS",
        ),
        (
            "MODEL.RESNETS.OUT_FEATURES",
            "res3 to res5, and all of FPN.IN_FEATURES",
            lambda v, c: {*TRUNK_FEATURES, *c.MODEL.FPN.IN_FEATURES} <= {*v},
        ),
        one_of("MODEL.RESNETS.RES5_DILATION", 1),
        (
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE",
            "true or false for each of the four stages, true only from DEPTH 50",
            lambda v, c: len(v) == 4 and (c.MODEL.RESNETS.DEPTH >= 50 or not any(v)),
        ),
        (
            "MODEL.RESNETS.DEFORM_MODULATED",
            "True where a stage is deformable, as only that is built",
            lambda v, c: v or not any(c.MODEL.RESNETS.DEFORM_ON_PER_STAGE),
        ),
        one_of("MODEL.RESNETS.DEFORM_NUM_GROUPS", 1),
    ),
)
