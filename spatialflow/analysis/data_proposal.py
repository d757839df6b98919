"""Values of config keys that suit a data set: pure functions from its statistics.

All sizes are in pixels; the network's scale is that of :mod:`spatialflow.analysis.size_proposal`.
T: things.
"""

from __future__ import annotations

import math

import numpy as np
from detectron2.config import CfgNode

from spatialflow.analysis.anchor_coverage import resize_factors
from spatialflow.analysis.config_text import Choice
from spatialflow.analysis.data_statistics import DataStatistics
from spatialflow.analysis.size_proposal import (
    FINEST_STRIDE,
    GRID,
    TEST_KEYS,
    choose_scale,
    input_sizes,
)

COARSER_STRIDES = (16, 32, 64, 128)
"""Strides of P4 to P7, the coarser levels of anchors."""
SMALLEST_THINGS = 0.02
"""Quantile of things' sizes from which anchors start."""
SMALLEST_ANCHOR = 2
"""Least size of an anchor in strides. With 16 instead of 12 pixels on P3 the smallest quarter of
the things gets a third more anchors above the thresholds of IoU (4.1 instead of 3.2 on nuclei, 5.7
instead of 4.3 on facades), and no more things are left without a good one."""
COMMON_RATIO = 2.25
"""Factor between the height-to-width ratios of two boxes of one area whose IoU is 0.5."""
UNCOVERED = 0.05
"""Share of things too wide or too tall for the ratios of the config, from which one is added."""
EPOCHS = 20
"""Times that a training sees each image, or a crop of it; nuclei/spatialflow.yaml has 17."""
ITERATIONS = (1000, 5000)
"""Fewest, of which the base's warm-up is a tenth, and most, as hours of a CPU count."""
PROPOSALS = 2
"""Proposals for each detection: some of them are of the same thing, or of none."""
MARGIN = 1.5
"""Detections for each thing of the fullest images: others may be fuller."""
WHITES = (1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)
"""Usual values of white: of floats, and of cameras and scanners of 10, 12, 14 and 16 bits."""


def propose(found: DataStatistics, cfg: CfgNode) -> list[Choice]:
    """Propose values of keys.

    ``MASK_CANONICAL_BOX_SIZE`` stays the base's: it is in pixels of the network, as the strides
    are, and the scale brings the things there. The learning rate stays, too.

    Args:
        found: Statistics of the training images, with at least one thing.
        cfg: The config that the values change, such as ``Base-Refined-Small.yaml``.

    Returns:
        One choice for each key that is worth a line, in the order of a config file.
    """
    scale = choose_scale(found, cfg)
    sizes = input_sizes(found, scale)
    shortest, longest = (next(c.value for c in sizes if c.key == key) for key in TEST_KEYS)
    boxes = found.thing_boxes
    factors = resize_factors(found.image_sizes, shortest, longest)
    if scale.crop:
        factors = np.full(len(factors), scale.factor)
    areas = boxes[:, 2] * boxes[:, 3]
    at_network = np.sqrt(areas) * factors[found.image[found.is_thing]]
    found_things = detections(found)
    return [
        anchor_sizes(at_network),
        *aspect_ratios(found, cfg),
        *proposals(found_things.value, cfg),
        *stuff_area_limit(found, cfg),
        Choice("MODEL.SPATIALFLOW.BOX_FILL.ENABLED", False, "as in the other refined configs"),
        *sizes,
        *white_level(found),
        iterations(found, cfg),
        found_things,
    ]


def anchor_sizes(things: np.ndarray) -> Choice:
    """Propose three sizes for each of the levels p3 to p7.

    From P4 on they are 3 strides and two steps of 2^(1/3) up to the next level: smaller things fall
    between the anchors of so coarse a grid, and belong to the level below. P3 has the rest in equal
    ratios: from 34 pixels, √2 below P4, down to the 2nd percentile of the things, or 2 strides.

    Args:
        things: (T,) square roots of the areas of boxes, at the network's scale.
    """
    low = float(np.quantile(things, SMALLEST_THINGS))
    least, most = SMALLEST_ANCHOR * FINEST_STRIDE, GRID * FINEST_STRIDE
    first = min(max(low, least), most)
    last = GRID * COARSER_STRIDES[0] / math.sqrt(2)
    finest = [round(first * (last / first) ** (step / 2)) for step in range(3)]
    coarser = [
        [round(GRID * stride * 2 ** (step / 3)) for step in range(3)] for stride in COARSER_STRIDES
    ]
    start = "there" if first == low else f"at {first} px"
    reason = (
        f"{SMALLEST_THINGS:.0%} of things are under {low:.0f} px at the scale; P3 starts {start}"
    )
    return Choice("MODEL.ANCHOR_GENERATOR.SIZES", [finest, *coarser], reason)


def aspect_ratios(found: DataStatistics, cfg: CfgNode) -> list[Choice]:
    """Propose further ratios of height to width, where those of the config are far from the data's.

    The ratios of the config stay. A ratio of half the lowest is added if more than 5 % of the
    things are so wide that none has an IoU of 0.5 with them, and one of twice the highest for
    tall things. The share is a mean over classes, as PQ is.
    """
    ratios = found.thing_boxes[:, 3] / found.thing_boxes[:, 2]
    labels = found.label[found.is_thing]
    given = sorted(cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS[0])

    def share(outside: np.ndarray) -> float:
        return float(np.mean([outside[labels == label].mean() for label in np.unique(labels)]))

    wide, tall = share(ratios < given[0] / COMMON_RATIO), share(ratios > given[-1] * COMMON_RATIO)
    own = [
        *([given[0] / 2] if wide > UNCOVERED else []),
        *given,
        *([given[-1] * 2] if tall > UNCOVERED else []),
    ]
    if len(own) == len(given):
        return []
    reason = f"mean of classes: {wide:.0%} of things are wider, {tall:.0%} taller than others cover"
    return [Choice("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [own], reason)]


def stuff_area_limit(found: DataStatistics, cfg: CfgNode) -> list[Choice]:
    """Propose the least area of a stuff segment, below nearly all true ones of every class.

    PQ is a mean over classes: a limit by all segments together could drop a class of small ones.
    It is half of the 5th percentile of the class whose segments are smallest, as a predicted
    segment may be smaller than the true one, and at most the base's.
    """
    base = int(cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT)
    areas = {name: found.stuff_areas(number) for number, name in enumerate(found.stuff_classes)}
    low = {name: float(np.quantile(a, 0.05)) for name, a in areas.items() if len(a)}
    if not low:
        return []
    name = min(low, key=lambda one: low[one])
    limit = min(base, _rounded_down(low[name] / 2))
    reason = f"5% of {name} are under {low[name]:.0f} px of the image"
    return [Choice("MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", limit, reason)]


def _rounded_down(value: float) -> int:
    """Return a number with one significant digit."""
    if value < 1:
        return 0
    step = 10 ** math.floor(math.log10(value))
    return int(value // step * step)


def white_level(found: DataStatistics) -> list[Choice]:
    """Propose the value of white for images of more than 8 bits: the first usual one that fits."""
    largest = found.largest_value
    if largest is None:
        return []
    white = next((white for white in WHITES if largest <= white), largest)
    return [Choice("INPUT.WHITE_LEVEL", white, f"largest value {largest:g}")]


def iterations(found: DataStatistics, cfg: CfgNode) -> Choice:
    """Propose the length of a training, by the number of images with a thing."""
    images = int((found.things_per_image > 0).sum())
    batch = cfg.SOLVER.IMS_PER_BATCH
    wanted = EPOCHS * images / batch
    steps = 100 * round(min(max(wanted, ITERATIONS[0]), ITERATIONS[1]) / 100)
    reason = f"{steps * batch / images:.0f} times {images} images with things, {batch} a step"
    return Choice("SOLVER.MAX_ITER", steps, reason)


def detections(found: DataStatistics) -> Choice:
    """Propose the number of detections, with a margin over the things of nearly all images."""
    counts = found.things_per_image
    most, usual = int(counts.max()), float(np.quantile(counts, 0.99))
    number = max(20, 10 * math.ceil(max(most, MARGIN * usual) / 10))
    reason = f"99% of images have at most {usual:.0f} things, the fullest {most}"
    return Choice("TEST.DETECTIONS_PER_IMAGE", number, reason)


def proposals(detections: int, cfg: CfgNode) -> list[Choice]:
    """Propose the number of boxes that the second stage looks at, where the config's is too low.

    Args:
        detections: Proposed number of detections of an image.
        cfg: The config that is changed.
    """
    key = "MODEL.RPN.POST_NMS_TOPK_TEST"
    wanted = 100 * math.ceil(PROPOSALS * detections / 100)
    if wanted <= cfg.MODEL.RPN.POST_NMS_TOPK_TEST:
        return []
    return [Choice(key, wanted, f"for {detections} detections")]
