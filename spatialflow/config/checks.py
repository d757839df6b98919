"""Which values a config may have: tables of rules, and one error that names all that is wrong.

What only a file or a package can tell (genotypes, timm's models, data) is checked where it is read.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY

from spatialflow.config import rules
from spatialflow.config.options import GROUP_NORM_GROUPS as GROUPS
from spatialflow.config.options import LOSS_NORMALIZERS, STUFF_SOURCES, TRUNK_FEATURES
from spatialflow.config.rules import Rule, number, one_of, positive, whole
from spatialflow.utils.precision import AMP_DTYPES

RESNET_DEPTHS = (18, 34, 50, 101, 152)
RESNET_NORMS = ("EvalBN", "FrozenBN", "BN", "SyncBN", "GN")
TRUNK_NORMS = ("EvalBN", "FrozenBN", "BN")
FROM_DATA = "; spatialflow.engine.prepare_config(cfg) takes -1 from the data"


def check_config(cfg: CfgNode) -> None:
    """Check that a SpatialFlow model can be built, trained and run as a config says.

    Raises:
        ValueError: Naming each wrong key, what was given and what was expected.
    """
    check_rules(cfg, (*MODEL_RULES, *(BACKBONE_RULES if rules.has_own_backbone(cfg) else ())))


def check_backbone_config(cfg: CfgNode) -> None:
    """Check the keys of ``build_spatialflow_fpn_backbone`` alone, whatever model it is part of.

    Raises:
        ValueError: As :func:`check_config`.
    """
    check_rules(cfg, BACKBONE_RULES)


def check_training_config(cfg: CfgNode, world_size: int) -> None:
    """Check ``SOLVER``, ``DATALOADER``, ``INPUT`` and ``TEST.EVAL_PERIOD``, of any model.

    Args:
        cfg: With SpatialFlow's keys.
        world_size: Number of processes that share a batch.

    Raises:
        ValueError: As :func:`check_config`.
    """
    # A config written for another number of processes is scaled from that one.
    processes = cfg.SOLVER.REFERENCE_WORLD_SIZE or world_size
    batch = Rule(
        "SOLVER.IMS_PER_BATCH",
        f"a multiple of the number of processes, {processes},",
        lambda v, _: whole(1)(v, cfg) and v % processes == 0,
    )
    check_rules(cfg, (batch, *TRAINING_RULES))


def check_rules(cfg: CfgNode, table: Iterable[Rule]) -> None:
    """Check a config by a table.

    Raises:
        ValueError: As :func:`check_config`.
    """
    problems: dict[str, str] = {}
    for rule in table:
        value: Any = cfg
        for name in rule.key.split("."):
            value = value[name]
        # A key's later rules suppose that the earlier ones hold.
        if rule.key not in problems and not _holds(rule, value, cfg):
            given = textwrap.shorten(repr(value), 100, placeholder=" …")
            problems[rule.key] = f"{rule.key}: {given} given, {rule.expected} expected{rule.hint}"
    if problems:
        raise ValueError("; also ".join(problems.values()))


def _holds(rule: Rule, value: Any, cfg: CfgNode) -> bool:
    try:
        return rule.holds(value, cfg)
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError):
        # A list with something else in it than the rule, or one it relates to, expects.
        return False


def _norm(key: str, width_key: str, width: rules.Width, *more: str) -> tuple[Rule, Rule]:
    return (
        Rule(key, *one_of(("", "GN", "LN", "FrozenBN", *more))),
        Rule(key, f"{width_key} a multiple of {GROUPS} or another norm", rules.divisible(width)),
    )


def _only(key: str, *known: Any) -> Rule:
    """Return the rule of one of Detectron2's keys with values of which not all are built."""
    return Rule(key, " or ".join(map(repr, known)), lambda v, _: v in known)


def _at_least(low: int, *keys: str) -> tuple[Rule, ...]:
    return tuple(Rule(key, f"{low} or more", whole(low)) for key in keys)


def _shares(*keys: str) -> tuple[Rule, ...]:
    return tuple(Rule(key, "0 to 1", number(0, 1)) for key in keys)


def _factors(*keys: str) -> tuple[Rule, ...]:
    return tuple(Rule(key, "0 or more", number(0)) for key in keys)


MODEL_RULES: tuple[Rule, ...] = (
    Rule("MODEL.DEVICE", "a device of this machine", rules.device_exists),
    Rule("MODEL.BACKBONE.NAME", "a registered backbone", lambda v, _: v in BACKBONE_REGISTRY),
    Rule("MODEL.PIXEL_MEAN", "3 numbers", rules.pixel_numbers(rules.is_number)),
    Rule("MODEL.PIXEL_STD", "3 numbers above 0", rules.pixel_numbers(rules.is_positive)),
    Rule("MODEL.RETINANET.NUM_CLASSES", "1 or more", whole(1), FROM_DATA),
    Rule("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "1 or more", whole(1), FROM_DATA),
    *_at_least(
        1,
        "MODEL.FPN.OUT_CHANNELS",
        "MODEL.RETINANET.NUM_CONVS",
        "MODEL.RETINANET.TOPK_CANDIDATES_TEST",
        "MODEL.SEM_SEG_HEAD.CONVS_DIM",
        "MODEL.ROI_MASK_HEAD.CONV_DIM",
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION",
        "TEST.DETECTIONS_PER_IMAGE",
    ),
    *_at_least(0, "MODEL.ROI_MASK_HEAD.NUM_CONV", "MODEL.SPATIALFLOW.MASK_CANONICAL_LEVEL"),
    # torchvision takes any sampling ratio below 1 for "as many as there are pixels".
    *_at_least(-1, "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO"),
    *_shares(
        "MODEL.RETINANET.SCORE_THRESH_TEST",
        "MODEL.RETINANET.NMS_THRESH_TEST",
        "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH",
        "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH",
        "MODEL.SPATIALFLOW.BOX_FILL.THRESH",
    ),
    *_factors(
        "MODEL.RETINANET.FOCAL_LOSS_GAMMA",
        "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA",
        "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT",
        "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT",
    ),
    Rule("MODEL.RETINANET.IN_FEATURES", rules.LEVEL_NAMES, rules.consecutive_levels),
    _only("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "smooth_l1"),
    _only("MODEL.PANOPTIC_FPN.COMBINE.ENABLED", True),
    _only("MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT", 1.0),
    Rule("MODEL.RETINANET.FOCAL_LOSS_ALPHA", "0 to 1, or -1 for none,", rules.focal_alpha),
    Rule("MODEL.RETINANET.PRIOR_PROB", "between 0 and 1", lambda v, _: 0 < v < 1),
    Rule("MODEL.RETINANET.IOU_THRESHOLDS", "rising numbers up to 1, above 0,", rules.thresholds),
    Rule(
        "MODEL.RETINANET.IOU_LABELS",
        "one more than IOU_THRESHOLDS of -1, 0 and 1",
        rules.threshold_labels,
    ),
    Rule(
        "MODEL.RETINANET.BBOX_REG_WEIGHTS",
        "4 numbers above 0",
        lambda v, _: len(v) == 4 and all(map(rules.is_positive, v)),
    ),
    *_norm("MODEL.RETINANET.NORM", "MODEL.FPN.OUT_CHANNELS", lambda c: c.MODEL.FPN.OUT_CHANNELS),
    Rule(
        "MODEL.ANCHOR_GENERATOR.NAME",
        "a registered generator of boxes that are not rotated",
        lambda v, _: v in ANCHOR_GENERATOR_REGISTRY and "Rotated" not in v,
    ),
    Rule("MODEL.ANCHOR_GENERATOR.OFFSET", "0 to 1, without 1,", lambda v, _: 0 <= v < 1),
    Rule(
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
        "numbers of 0.01 to 100, one list or one for each of MODEL.RETINANET.IN_FEATURES,",
        rules.anchor_numbers(0.01, 100),
    ),
    Rule(
        "MODEL.ANCHOR_GENERATOR.SIZES",
        "numbers from 0.1 on, one list or one for each of MODEL.RETINANET.IN_FEATURES,",
        rules.anchor_numbers(0.1, 1e6),
    ),
    Rule(
        "MODEL.ANCHOR_GENERATOR.SIZES",
        "equally many anchors on each level",
        rules.equally_many_anchors,
    ),
    Rule("MODEL.SEM_SEG_HEAD.IN_FEATURES", "some of p3, p4 and p5 in order", rules.stuff_levels),
    Rule(
        "MODEL.SEM_SEG_HEAD.COMMON_STRIDE",
        "a power of two up to the stride of the first of IN_FEATURES",
        rules.common_stride,
    ),
    Rule(
        "MODEL.SEM_SEG_HEAD.IGNORE_VALUE",
        "a number that is not of a class (0 to NUM_CLASSES - 1)",
        lambda v, c: rules.is_whole(v) and v not in range(c.MODEL.SEM_SEG_HEAD.NUM_CLASSES),
    ),
    *_norm(
        "MODEL.SEM_SEG_HEAD.NORM",
        "CONVS_DIM",
        lambda c: c.MODEL.SEM_SEG_HEAD.CONVS_DIM,
        "BN",
        "SyncBN",
    ),
    Rule("MODEL.ROI_MASK_HEAD.POOLER_TYPE", *one_of(("ROIAlignV2", "ROIAlign", "ROIPool"))),
    _only("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False),
    # Not SyncBN: a batch without proposals has nothing to share.
    *_norm("MODEL.ROI_MASK_HEAD.NORM", "CONV_DIM", lambda c: c.MODEL.ROI_MASK_HEAD.CONV_DIM, "BN"),
    Rule("MODEL.SPATIALFLOW.MASK_IN_FEATURES", rules.LEVEL_NAMES, rules.consecutive_levels),
    Rule("MODEL.SPATIALFLOW.MASK_CANONICAL_BOX_SIZE", "a number above 0", positive),
    Rule("MODEL.SPATIALFLOW.MASK_PROPOSAL_IOU", "up to 1, above 0,", lambda v, _: 0 < v <= 1),
    Rule("MODEL.SPATIALFLOW.STUFF_FROM", *one_of(STUFF_SOURCES)),
    Rule("MODEL.SPATIALFLOW.LOSS_NORMALIZER", *one_of(LOSS_NORMALIZERS)),
    Rule("TEST.AMP.DTYPE", *one_of(tuple(AMP_DTYPES))),
)

BACKBONE_RULES: tuple[Rule, ...] = (
    *_at_least(1, "MODEL.FPN.OUT_CHANNELS"),
    _only("MODEL.FPN.FUSE_TYPE", "sum"),
    _only("MODEL.FPN.IN_FEATURES", [], list(TRUNK_FEATURES)),
    *_norm(
        "MODEL.FPN.NORM",
        "OUT_CHANNELS",
        lambda c: c.MODEL.FPN.OUT_CHANNELS,
        "BN",
        "SyncBN",
    ),
    Rule("MODEL.BACKBONE.FREEZE_AT", "0 to 5", lambda v, _: v in range(6)),
    Rule("MODEL.RESNETS.NORM", *one_of(RESNET_NORMS)),
    Rule(
        "MODEL.RESNETS.NORM",
        f"for a trunk other than 'resnet', which has batch norm, {one_of(TRUNK_NORMS)[0]}",
        lambda v, c: c.MODEL.SPATIALFLOW.TRUNK == "resnet" or v in TRUNK_NORMS,
    ),
    *(
        Rule(f"MODEL.RESNETS.{name}", expected, rules.of_resnet(test))
        for name, expected, test in (
            ("DEPTH", *one_of(RESNET_DEPTHS)),
            ("OUT_FEATURES", "res3, res4 and res5", lambda v, _: {*TRUNK_FEATURES} <= {*v}),
            ("RES5_DILATION", "1", lambda v, _: v == 1),
            (
                "DEFORM_ON_PER_STAGE",
                "true or false for each of the four stages, true only from DEPTH 50",
                lambda v, c: len(v) == 4 and (c.MODEL.RESNETS.DEPTH >= 50 or not any(v)),
            ),
            (
                "DEFORM_MODULATED",
                "True where a stage is deformable, as only that is built",
                lambda v, c: v or not any(c.MODEL.RESNETS.DEFORM_ON_PER_STAGE),
            ),
            ("DEFORM_NUM_GROUPS", "1", lambda v, _: v == 1),
            ("NUM_GROUPS", "1 or more", whole(1)),
            ("WIDTH_PER_GROUP", "1 or more", whole(1)),
            ("STEM_OUT_CHANNELS", "1 or more", whole(1)),
            ("RES2_OUT_CHANNELS", "1 or more", whole(1)),
            (
                "NORM",
                "STEM_OUT_CHANNELS, RES2_OUT_CHANNELS and (from DEPTH 50) NUM_GROUPS × "
                f"WIDTH_PER_GROUP multiples of {GROUPS} or another norm",
                rules.divisible(
                    lambda c: c.MODEL.RESNETS.STEM_OUT_CHANNELS,
                    lambda c: c.MODEL.RESNETS.RES2_OUT_CHANNELS,
                    rules.bottleneck_width,
                ),
            ),
        )
    ),
)

TRAINING_RULES: tuple[Rule, ...] = (
    Rule("INPUT.FORMAT", *one_of(("RGB", "BGR", "L", "YUV-BT.601"))),
    Rule("INPUT.MIN_SIZE_TRAIN_SAMPLING", *one_of(("choice", "range"))),
    Rule(
        "INPUT.MIN_SIZE_TRAIN",
        "sizes, with MIN_SIZE_TRAIN_SAMPLING 'range' two in order,",
        rules.min_sizes,
    ),
    Rule("INPUT.RANDOM_FLIP", *one_of(("horizontal", "vertical", "none"))),
    Rule("INPUT.CROP.TYPE", *one_of(("relative_range", "relative", "absolute", "absolute_range"))),
    Rule(
        "INPUT.CROP.SIZE",
        "two numbers up to 1, above 0, or for an absolute crop two sizes of 1 or more",
        rules.crop_size,
    ),
    # 0 leaves an image as it is.
    *_at_least(0, "INPUT.MIN_SIZE_TEST"),
    *_at_least(1, "INPUT.MAX_SIZE_TRAIN", "INPUT.MAX_SIZE_TEST"),
    *_at_least(
        1,
        "SOLVER.MAX_ITER",
        "SOLVER.CHECKPOINT_PERIOD",
        "SOLVER.ACCUMULATION_STEPS",
        "SOLVER.NUM_DECAYS",
    ),
    *_at_least(
        0,
        "SOLVER.WARMUP_ITERS",
        "SOLVER.REFERENCE_WORLD_SIZE",
        "DATALOADER.NUM_WORKERS",
        "TEST.EVAL_PERIOD",
    ),
    Rule("SOLVER.OPTIMIZER", *one_of(("SGD", "AdamW"))),
    Rule("SOLVER.AMP.DTYPE", *one_of(tuple(AMP_DTYPES))),
    Rule("SOLVER.BASE_LR", "a finite number above 0", positive),
    *_factors(
        "SOLVER.BASE_LR_END",
        "SOLVER.BIAS_LR_FACTOR",
        "SOLVER.TRUNK_MULTIPLIER",
        "SOLVER.GAMMA",
        "SOLVER.MOMENTUM",
        "SOLVER.WARMUP_FACTOR",
        "SOLVER.WEIGHT_DECAY",
        "DATALOADER.REPEAT_THRESHOLD",
    ),
    *(
        Rule(f"SOLVER.{key}", "0 or more, or None,", lambda v, c: v is None or number(0)(v, c))
        for key in ("WEIGHT_DECAY_NORM", "WEIGHT_DECAY_BIAS")
    ),
    Rule(
        "SOLVER.MOMENTUM",
        "with NESTEROV a number above 0",
        lambda v, c: not c.SOLVER.NESTEROV or v > 0,
    ),
    Rule(
        "SOLVER.LR_SCHEDULER_NAME",
        *one_of(("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")),
    ),
    Rule("SOLVER.STEPS", "rising iterations, none of them MAX_ITER,", rules.steps),
    Rule(
        "SOLVER.BASE_LR_END",
        "up to BASE_LR",
        lambda v, c: c.SOLVER.LR_SCHEDULER_NAME != "WarmupCosineLR" or v <= c.SOLVER.BASE_LR,
    ),
    Rule("SOLVER.WARMUP_METHOD", *one_of(("linear", "constant"))),
    *(
        Rule(f"SOLVER.CLIP_GRADIENTS.{key}", expected, rules.where_clipped(test))
        for key, expected, test in (
            ("CLIP_TYPE", *one_of(("value", "norm"))),
            ("CLIP_VALUE", "a number above 0", positive),
            ("NORM_TYPE", "a number above 0", lambda v, _: v > 0),
        )
    ),
)
