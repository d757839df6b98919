"""Values of config keys that suit a data set: pure functions from its statistics.

All sizes are in pixels. The network's scale is how far the evaluation enlarges an image of median
size; trainings vary around it. I: images, T: things.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from spatialflow.analysis.anchor_coverage import resize_factors
from spatialflow.analysis.data_statistics import DataStatistics

GRID = 3
"""Size of a thing in strides that the anchors of a level hit: a square of d pixels, on a grid of
stride s, has an anchor of its size with an IoU above 0.5 wherever it lies if d > 2.75 s."""
SMALL = 0.25
"""Quantile of things' sizes that comes to ``GRID`` strides of the finest level: 24 pixels. A higher
scale costs its square in time and memory, and the smallest things are few or badly annotated."""
LARGEST_SCALE = 3.0
"""Enlarged further, an image has no more to show."""
TEST_PIXELS = 600_000
"""Highest number of pixels of an image of median size in the evaluation: about 2 GB of memory."""
TRAIN_SIDE = 352
"""Side of a crop at the network's scale: four of them fit into 4 GB, 5 to 10 s a step."""
UNCROPPED_SIDE = 416
"""Shorter side at the network's scale up to which whole images are trained on."""
VARIATIONS = (0.82, 0.91, 1.0, 1.09, 1.18)
"""Factors of the sizes in training."""
FITTING = 0.95
"""Share of the things that have to fit into a crop, by the longer side of their boxes."""
FINEST_STRIDE, COARSER_STRIDES = 8, (16, 32, 64, 128)
"""Strides of P3 and of P4 to P7, the levels of anchors."""
SMALLEST_ANCHOR = 1.5
"""Least size of an anchor in strides: below it a thing falls between the anchors anyway."""
COMMON_RATIO = 2.25
"""Factor between the height-to-width ratios of two boxes of one area whose IoU is 0.5."""
UNCOVERED = 0.05
"""Share of things too long for the default ratios, from which the ratios are of the data."""
EPOCHS = 20
"""Times that a training sees each image, or a crop of it."""
ITERATIONS = (1000, 5000)
"""Fewest and most: below, AdamW has hardly begun; above, a CPU takes a day."""
MARGIN = 1.5
"""Detections per thing of the fullest images: the fusion drops those too many."""
WHITES = (1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)
"""Usual values of white: of floats, and of cameras and scanners of 10, 12, 14 and 16 bits."""


@dataclass(frozen=True)
class Choice:
    """A proposed value.

    Attributes:
        key: Key of the config.
        value: Its value.
        reason: Why, in numbers of the data; one short line.
    """

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Scale:
    """How large images are for the network.

    Attributes:
        factor: Enlargement of an image of median size.
        crop: Side of the square crop of training in original pixels; 0 for none.
        reason: What has decided the factor.
    """

    factor: float
    crop: int
    reason: str


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
    return [
        anchor_sizes(at_network),
        *aspect_ratios(boxes, cfg),
        *stuff_area_limit(found, cfg),
        Choice("MODEL.SPATIALFLOW.BOX_FILL.ENABLED", False, "as in the other refined configs"),
        *sizes,
        *white_level(found),
        iterations(found, cfg),
        detections(found),
    ]


TEST_KEYS = ("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST")


def choose_scale(found: DataStatistics, cfg: CfgNode) -> Scale:
    """Choose the network's scale and the crop of training.

    The scale brings the 25th percentile of things' sizes to three strides of the finest level. It
    is at most 3, and is lower where the evaluation would have more than 600,000 pixels. It makes no
    image smaller than the base's ``INPUT.MIN_SIZE_TEST``: stuff needs context, and time is short
    there anyway. Images of more than 416 pixels a side at that scale are cropped in training,
    unless many things do not fit into a crop of 352: then the scale is what whole images of 416²
    pixels have, as a network that sees parts of things only learns parts.
    """
    pixels = float(np.median(found.image_sizes.prod(axis=1)))
    short = float(np.median(found.image_sizes.min(axis=1)))
    small = float(np.quantile(found.thing_sizes, SMALL))
    target = GRID * FINEST_STRIDE
    factor, reason = target / small, f"{SMALL:.0%} of things are under {small:.1f} px"
    reason += f", under {target} px then"
    least = min(1.0, cfg.INPUT.MIN_SIZE_TEST / short)
    if factor > LARGEST_SCALE:
        factor, reason = LARGEST_SCALE, f"the highest; {reason.partition(',')[0]}"
    elif factor < least:
        factor, reason = least, f"not below the base's size; {reason.partition(',')[0]}"
    limit = math.sqrt(TEST_PIXELS / pixels)
    if factor > limit:
        factor, reason = limit, f"at most {TEST_PIXELS / 1e6} Mpx; {reason.partition(',')[0]}"
    if factor * short <= UNCROPPED_SIDE:
        return Scale(factor, 0, reason)
    crop = 16 * round(TRAIN_SIDE / factor / 16)
    long_sides = found.thing_boxes[:, 2:].max(axis=1)
    if np.quantile(long_sides, FITTING) <= crop:
        return Scale(factor, crop, reason)
    whole = UNCROPPED_SIDE / math.sqrt(pixels)
    reason = f"whole images of {UNCROPPED_SIDE}² px: over {1 - FITTING:.0%} of things are longer "
    return Scale(min(factor, whole), 0, f"{reason}than a crop of {crop} px")


def input_sizes(found: DataStatistics, scale: Scale) -> list[Choice]:
    """Propose the sizes of images and the crop."""
    short, long = found.image_sizes.min(axis=1), found.image_sizes.max(axis=1)
    shortest = max(64, 32 * round(scale.factor * float(np.median(short)) / 32))
    elongation = float(np.quantile(long / short, 0.95))
    longest = 32 * math.ceil(shortest * elongation / 32)
    middle = scale.crop * scale.factor if scale.crop else shortest
    train = sorted({max(64, 16 * round(middle * v / 16)) for v in VARIATIONS})
    span = f"{min(train) / middle:.2f} to {max(train) / middle:.2f} of the scale"
    choices = []
    if scale.crop:
        crop = [scale.crop, scale.crop]
        reason = f"{scale.crop} px become about {round(middle)}; the crop comes before the resize"
        choices = [
            Choice("INPUT.CROP.ENABLED", True, f"whole images of {shortest} px take too long"),
            Choice("INPUT.CROP.TYPE", "absolute", "in pixels of the images"),
            Choice("INPUT.CROP.SIZE", crop, reason),
        ]
    times = f"{scale.factor:.2f} times the median short side of {np.median(short):.0f} px"
    # A crop is longer where an image is narrower than it.
    room = 2 * max(train) if scale.crop else math.ceil(max(train) * elongation / 32) * 32
    return [
        *choices,
        Choice("INPUT.MIN_SIZE_TRAIN", train, span),
        Choice("INPUT.MAX_SIZE_TRAIN", room, "room for long images"),
        Choice(TEST_KEYS[0], shortest, f"{times}: {scale.reason}"),
        Choice(TEST_KEYS[1], longest, f"95% of images are at most {elongation:.2f} times as long"),
    ]


def anchor_sizes(things: np.ndarray) -> Choice:
    """Propose three sizes for each of the levels p3 to p7.

    From P4 on they are 3 strides and two steps of 2^(1/3) up to the next level: smaller things fall
    between the anchors of so coarse a grid, and belong to the level below. P3 has the rest in equal
    ratios: from 34 pixels, √2 below P4, down to the 2nd percentile of the things or 12 pixels.

    Args:
        things: (T,) square roots of the areas of boxes, at the network's scale.
    """
    low = float(np.quantile(things, 0.02))
    first = min(max(low, SMALLEST_ANCHOR * FINEST_STRIDE), GRID * FINEST_STRIDE)
    last = GRID * COARSER_STRIDES[0] / math.sqrt(2)
    finest = [round(first * (last / first) ** (step / 2)) for step in range(3)]
    coarser = [
        [round(GRID * stride * 2 ** (step / 3)) for step in range(3)] for stride in COARSER_STRIDES
    ]
    reason = f"2% of things are under {low:.0f} px there; P4 on: {GRID} strides"
    return Choice("MODEL.ANCHOR_GENERATOR.SIZES", [finest, *coarser], reason)


def aspect_ratios(boxes: np.ndarray, cfg: CfgNode) -> list[Choice]:
    """Propose ratios of height to width, if those of the config are far from the data's.

    Args:
        boxes: (T, 4) left, top, width and height.
        cfg: Config whose ratios stay if 95 % of the things have an IoU of 0.5 with one of them.
    """
    ratios = boxes[:, 3] / boxes[:, 2]
    given = np.array(cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS[0])
    distance = np.abs(np.log(ratios[:, None] / given)).min(axis=1)
    share = float((distance > math.log(COMMON_RATIO)).mean())
    if share <= UNCOVERED:
        return []
    own = [float(f"{ratio:.2g}") for ratio in np.quantile(ratios, (0.1, 0.5, 0.9))]
    reason = f"{share:.0%} of things are longer than {given.tolist()} cover; 10, 50, 90 %"
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
