"""What a config's values may be: the rules that :mod:`spatialflow.config.checks` is a table of."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode

from spatialflow.config.options import GROUP_NORM_GROUPS as GROUPS

Test = Callable[[Any, CfgNode], bool]
"""Tells whether a value is allowed, given also the whole config."""

Width = Callable[[CfgNode], int]

OWN_BACKBONE = "build_spatialflow_fpn_backbone"
LEVEL_NAMES = "names of p3 to p7, finest first and without a gap,"


class Rule(NamedTuple):
    """What is expected of one key's value.

    Attributes:
        key: The key.
        expected: What the message says was expected.
        holds: Whether a value is that, given also the whole config.
        hint: What the message ends with.
    """

    key: str
    expected: str
    holds: Test
    hint: str = ""


def is_whole(value: Any) -> bool:
    """Tell whether a value is an integer."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Tell whether a value is a finite number in a closed range."""
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value) and low <= value <= high


def is_positive(value: Any) -> bool:
    """Tell whether a value is a finite number above 0."""
    return is_number(value, 0) and value > 0


def whole(low: int) -> Test:
    """Return the test for integers from a lowest one on."""
    return lambda value, _: is_whole(value) and value >= low


def number(low: float, high: float = math.inf) -> Test:
    """Return the test for finite numbers in a closed range."""
    return lambda value, _: is_number(value, low, high)


def one_of(options: Sequence[Any]) -> tuple[str, Test]:
    """Return what a message expects and the test, for a choice."""
    return f"one of {', '.join(map(repr, options))}", lambda value, _: value in options


def positive(value: Any, _: CfgNode) -> bool:
    """Test for finite numbers above 0."""
    return is_positive(value)


def rising(values: Sequence[float]) -> bool:
    """Tell whether no number is smaller than the one before."""
    return all(first <= second for first, second in itertools.pairwise(values))


def has_own_backbone(cfg: CfgNode) -> bool:
    """Tell whether the pyramid is this package's."""
    return cfg.MODEL.BACKBONE.NAME == OWN_BACKBONE


def levels(cfg: CfgNode, last: int) -> tuple[str, ...]:
    """Return the levels that a pyramid may have, up to a last one."""
    return tuple(f"p{i}" for i in range(3 if has_own_backbone(cfg) else 2, last + 1))


def consecutive_levels(value: Any, cfg: CfgNode) -> bool:
    """Test for levels that follow each other."""
    known = levels(cfg, 7)
    first = known.index(value[0])
    return tuple(value) == known[first : first + len(value)]


def stuff_levels(value: Any, cfg: CfgNode) -> bool:
    """Test for levels that fit into each other; P6 is not half of a P5 of odd size."""
    return len(value) > 0 and list(value) == [x for x in levels(cfg, 5) if x in value]


def common_stride(value: Any, cfg: CfgNode) -> bool:
    """Test for a stride that every level of the stuff head can be enlarged to."""
    finest = 2 ** int(cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES[0][1:])
    return is_whole(value) and 1 <= value <= finest and value & (value - 1) == 0


def by_level(value: Any, cfg: CfgNode) -> list[Sequence[float]]:
    """Return one list a level, spread as Detectron2 does; a ValueError if there are too few."""
    count = len(cfg.MODEL.RETINANET.IN_FEATURES)
    lists = list(value) if isinstance(value[0], Sequence) else [value]
    if len(lists) not in (1, count):
        raise ValueError
    return lists * (count if len(lists) == 1 else 1)


def anchor_numbers(low: float, high: float) -> Test:
    """Return the test for lists, one a level, of numbers that round no anchor to nothing."""
    return lambda value, cfg: all(
        len(numbers) > 0 and all(is_number(x, low, high) for x in numbers)
        for numbers in by_level(value, cfg)
    )


def equally_many_anchors(value: Any, cfg: CfgNode) -> bool:
    """Test for sizes that, with the ratios, give every level as many anchors."""
    ratios = by_level(cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS, cfg)
    sizes = by_level(value, cfg)
    return len({len(s) * len(r) for s, r in zip(sizes, ratios, strict=True)}) == 1


def focal_alpha(value: Any, _: CfgNode) -> bool:
    """Test for the share of positives in the focal loss; -1 weighs none."""
    return is_number(value, 0, 1) or value == -1


def thresholds(value: Any, _: CfgNode) -> bool:
    """Test for the borders between classes of overlaps."""
    in_range = all(is_number(x, 0, 1) and x > 0 for x in value)
    return len(value) > 0 and in_range and rising(value)


def threshold_labels(value: Any, cfg: CfgNode) -> bool:
    """Test for a label below, between and above the thresholds."""
    known = all(label in (-1, 0, 1) for label in value)
    return known and len(value) == len(cfg.MODEL.RETINANET.IOU_THRESHOLDS) + 1


def pixel_numbers(test: Callable[[Any], bool]) -> Test:
    """Return the test for one number a channel; grey images may have one channel."""

    def holds(value: Any, cfg: CfgNode) -> bool:
        lengths = (1, 3) if cfg.INPUT.FORMAT == "L" else (3,)
        same = len(cfg.MODEL.PIXEL_MEAN) == len(cfg.MODEL.PIXEL_STD)
        return same and len(value) in lengths and all(map(test, value))

    return holds


def device_exists(value: Any, _: CfgNode) -> bool:
    """Test for a device that a tensor can be put on."""
    try:
        torch.empty(0, device=value)
    except (AssertionError, RuntimeError, NotImplementedError):  # PyTorch has no common error
        return False
    return True


def divisible(*widths: Width) -> Test:
    """Return the test that, with group norm, its groups divide all widths."""
    return lambda norm, cfg: norm != "GN" or all(width(cfg) % GROUPS == 0 for width in widths)


def of_resnet(test: Test) -> Test:
    """Return a test that holds for every other trunk."""
    return lambda value, cfg: cfg.MODEL.SPATIALFLOW.TRUNK != "resnet" or test(value, cfg)


def bottleneck_width(cfg: CfgNode) -> int:
    """Return the channels inside the first bottleneck, where there is one."""
    keys = cfg.MODEL.RESNETS
    return GROUPS if keys.DEPTH < 50 else keys.NUM_GROUPS * keys.WIDTH_PER_GROUP


def crop_size(value: Any, cfg: CfgNode) -> bool:
    """Test for the size of a crop of the config's type, where there is a crop."""
    crop = cfg.INPUT.CROP
    if not crop.ENABLED:
        return True
    if crop.TYPE.startswith("relative"):
        right = all(is_number(x, 0, 1) and x > 0 for x in value)
    else:
        right = all(is_whole(x) and x >= 1 for x in value)
    return len(value) == 2 and right and (crop.TYPE != "absolute_range" or rising(value))


def min_sizes(value: Any, cfg: CfgNode) -> bool:
    """Test for lengths of the shorter side; 0 leaves an image as it is."""
    sizes = value if isinstance(value, Sequence) else [value]
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and (len(sizes) != 2 or not rising(sizes)):
        return False
    return len(sizes) > 0 and all(is_whole(x) and x >= 0 for x in sizes)


def steps(value: Any, cfg: CfgNode) -> bool:
    """Test for steps, where they are used: one at MAX_ITER fails, later ones are left out."""
    if cfg.SOLVER.LR_SCHEDULER_NAME != "WarmupMultiStepLR":
        return True
    iterations = all(is_whole(x) and x >= 1 for x in value) and cfg.SOLVER.MAX_ITER not in value
    return iterations and rising(value) and len(set(value)) == len(value)


def where_clipped(test: Test) -> Test:
    """Return a test that holds where gradients are not clipped."""
    return lambda value, cfg: not cfg.SOLVER.CLIP_GRADIENTS.ENABLED or test(value, cfg)
