"""Rules for ``INPUT``, ``DATASETS``, ``DATALOADER``, ``SOLVER`` and ``TEST``, of any model.

The reasons for a rule are those of :mod:`spatialflow.config.checks`.
"""

from __future__ import annotations

import math
from typing import Any

from detectron2.config import CfgNode

from spatialflow.config.rules import (
    Rule,
    above_zero,
    at_least,
    check_rules,
    in_range,
    names,
    one_of,
    only_with,
    rising,
)
from spatialflow.utils.precision import AMP_DTYPES


def check_training_config(cfg: CfgNode, processes: int) -> None:
    """Check ``INPUT``, ``SOLVER``, ``DATALOADER`` and ``TEST``, for any model.

    Args:
        cfg: Config with SpatialFlow's keys.
        processes: Number of processes that share a batch.

    Raises:
        ValueError: If a value is not allowed; the error names each wrong key, the value given and
            the value expected.
    """
    # Detectron2 scales a config with REFERENCE_WORLD_SIZE to the number of processes.
    batch: Rule = (
        "SOLVER.IMS_PER_BATCH",
        f"a multiple of the number of processes, {processes},",
        lambda v, c: v >= 1 and (v % processes == 0 or c.SOLVER.REFERENCE_WORLD_SIZE > 0),
    )
    check_rules(cfg, (batch, *TRAINING_RULES))


def _are_expected_results(value: Any, cfg: CfgNode) -> bool:
    tasks = ("panoptic_seg", "bbox", "segm")
    right = all(row[0] in tasks and math.isfinite(row[2] + row[3]) for row in value)
    return (
        right and all(len(row) == 4 for row in value) and (not value or len(cfg.DATASETS.TEST) == 1)
    )


def _is_crop_size(value: Any, cfg: CfgNode) -> bool:
    kind = cfg.INPUT.CROP.TYPE
    right = all(0 < x <= 1 if "relative" in kind else x >= 1 and x == int(x) for x in value)
    return len(value) == 2 and right and (kind != "absolute_range" or rising(value))


TRAINING_RULES: tuple[Rule, ...] = (
    names("DATASETS.TRAIN"),
    names("DATASETS.TEST"),
    *at_least(0, "DATASETS.FOLDER.SPLIT_SEED", "DATASETS.FOLDER.LIMIT"),
    *at_least(1, "DATASETS.SCENES.TRAIN", "DATASETS.SCENES.VAL"),
    *in_range(64, 4096, "DATASETS.SCENES.SIZE"),
    *in_range(0, 1024, "DATALOADER.NUM_WORKERS"),
    one_of("INPUT.FORMAT", "RGB", "BGR", "L", "YUV-BT.601"),
    one_of("INPUT.MIN_SIZE_TRAIN_SAMPLING", "choice", "range"),
    (
        "INPUT.MIN_SIZE_TRAIN",
        "sizes of 0 or more",
        lambda v, _: len(v) > 0 and all(0 <= size < math.inf for size in v),
    ),
    *only_with(
        "INPUT.MIN_SIZE_TRAIN_SAMPLING",
        "range",
        ("INPUT.MIN_SIZE_TRAIN", "two sizes in order", lambda v, _: len(v) == 2 and rising(v)),
    ),
    one_of("INPUT.RANDOM_FLIP", "horizontal", "vertical", "none"),
    *only_with(
        "INPUT.CROP.ENABLED",
        True,
        one_of("INPUT.CROP.TYPE", "relative_range", "relative", "absolute", "absolute_range"),
        (
            "INPUT.CROP.SIZE",
            "two shares up to 1, above 0, or for an absolute crop two sizes of 1 or more,",
            _is_crop_size,
        ),
    ),
    ("INPUT.WHITE_LEVEL", "None, or a number above 0,", lambda v, _: v is None or 0 < v < math.inf),
    *at_least(0, "INPUT.MIN_SIZE_TEST"),
    *at_least(1, "INPUT.MAX_SIZE_TRAIN", "INPUT.MAX_SIZE_TEST"),
    *only_with("TEST.PRECISE_BN.ENABLED", True, *at_least(1, "TEST.PRECISE_BN.NUM_ITER")),
    (
        "TEST.EXPECTED_RESULTS",
        "lists of a task (panoptic_seg, bbox, segm), a metric, a value and a tolerance, of one "
        "data set in DATASETS.TEST",
        _are_expected_results,
    ),
    (
        "SOLVER.REFERENCE_WORLD_SIZE",
        "0 or a number of processes that divides IMS_PER_BATCH",
        lambda v, c: v == 0 or (v > 0 and c.SOLVER.IMS_PER_BATCH % v == 0),
    ),
    *at_least(1, "SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.ACCUMULATION_STEPS"),
    one_of("SOLVER.OPTIMIZER", "SGD", "AdamW"),
    ("SOLVER.EMA.DECAY", "a number from 0 to below 1", lambda v, _: 0 <= v < 1),
    one_of("SOLVER.AMP.DTYPE", *AMP_DTYPES),
    *above_zero("SOLVER.BASE_LR"),
    *at_least(0, "SOLVER.WARMUP_ITERS", "DATALOADER.REPEAT_THRESHOLD"),
    # Larger factors of a learning rate do not fit 32 bits.
    *in_range(
        0,
        1e6,
        "SOLVER.BASE_LR",
        "SOLVER.WARMUP_FACTOR",
        "SOLVER.GAMMA",
        "SOLVER.BIAS_LR_FACTOR",
        "SOLVER.TRUNK_MULTIPLIER",
        "SOLVER.WEIGHT_DECAY",
    ),
    *in_range(0, 1, "SOLVER.MOMENTUM"),
    # Detectron2 has WarmupStepWithFixedGammaLR, too, which ends by an error after the last step.
    one_of("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "WarmupCosineLR"),
    one_of("SOLVER.WARMUP_METHOD", "linear", "constant"),
    *only_with(
        "TEST.AUG.ENABLED",
        True,
        (
            "TEST.AUG.MIN_SIZES",
            "whole numbers from 1 on",
            lambda v, _: len(v) > 0 and all(isinstance(x, int) and x >= 1 for x in v),
        ),
        *at_least(1, "TEST.AUG.MAX_SIZE"),
    ),
    ("SOLVER.WEIGHT_DECAY_NORM", "None, or 0 or more,", lambda v, _: v is None or v >= 0),
    ("SOLVER.WEIGHT_DECAY_BIAS", "None, or 0 or more,", lambda v, _: v is None or v >= 0),
    ("SOLVER.STEPS", "iterations from 1 on", lambda v, _: all(step >= 1 for step in v)),
    *only_with(
        "SOLVER.LR_SCHEDULER_NAME",
        "WarmupCosineLR",
        ("SOLVER.BASE_LR_END", "0 to BASE_LR", lambda v, c: 0 <= v <= c.SOLVER.BASE_LR),
    ),
    *only_with(
        "SOLVER.CLIP_GRADIENTS.ENABLED",
        True,
        one_of("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value", "norm"),
        *above_zero("SOLVER.CLIP_GRADIENTS.CLIP_VALUE"),
        # Infinity is the norm of the largest value.
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", "more than 0", lambda v, _: v > 0),
    ),
)
