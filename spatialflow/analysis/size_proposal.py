"""Sizes of images that suit a data set: how far to enlarge them, and what to crop.

All sizes are in pixels. The network's scale is how far the evaluation enlarges an image of median
size; trainings vary around it. I: images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode

from spatialflow.analysis.anchor_coverage import resize_factors
from spatialflow.analysis.config_text import Choice
from spatialflow.analysis.data_statistics import DataStatistics

FINEST_STRIDE = 8
"""Stride of P3, the finest level of anchors."""
GRID = 3
"""Size of a thing in strides that the anchors of a level hit: a square of d pixels, on a grid of
stride s, has an anchor of its size with an IoU above 0.5 wherever it lies if d > 2.75 s."""
SMALL = 0.25
"""Quantile of things' sizes that comes to ``GRID`` strides of P3. A lower one would enlarge further
for fewer things, and time and memory grow with the square."""
LARGEST_SCALE = 3.0
"""Interpolation adds no detail, and nuclei of 10 pixels need 2.5."""
TEST_PIXELS = 600_000
"""Highest number of pixels of an image of median size in the evaluation."""
TRAIN_SIDE = 352
"""Side of a crop at the network's scale, and the middle of the sizes in training."""
UNCROPPED_SIDE = 416
"""Shorter side at the network's scale up to which whole images are trained on: the largest size of
a crop."""
VARIATIONS = (0.82, 0.91, 1.0, 1.09, 1.18)
"""Factors of the sizes in training: a step apart of 32 pixels for crops."""
FITTING = 0.95
"""Share of the things that have to fit into a crop, by the longer side of their boxes."""
STEP = 32
"""Sizes of images are multiples of it: the network pads others."""
TEST_KEYS = ("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST")


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


def choose_scale(found: DataStatistics, cfg: CfgNode) -> Scale:
    """Choose the network's scale and the crop of training.

    The scale brings the 25th percentile of things' sizes to three strides of P3, 24 pixels. It is
    at most 3, and lower where the evaluation would have more than 600,000 pixels. It makes no image
    smaller than the base's ``INPUT.MIN_SIZE_TEST``: stuff needs context, and such images take
    little time. Images of more than 416 pixels a side at that scale are cropped in training, unless
    many things do not fit into a crop of 352: then the scale is what whole images of 416² pixels
    have, as a network that sees parts of things only learns parts.
    """
    pixels = float(np.median(found.image_sizes.prod(axis=1)))
    short = float(np.median(found.image_sizes.min(axis=1)))
    small = float(np.quantile(found.thing_sizes, SMALL))
    target = GRID * FINEST_STRIDE
    factor, reason = target / small, f"{SMALL:.0%} of things are under {small:.1f} px"
    reason += f", {target} px at the scale"
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


def nearest_sizes(image_sizes: np.ndarray, factor: float) -> tuple[int, int]:
    """Return lengths of the shorter and the longer edge that bring most images near to a scale.

    Training enlarges crops of all images alike, and the evaluation should, too. Detectron2 has one
    pair of lengths, and an image gets the factor that fits both: images of one length are enlarged
    alike by the longer edge, images of one width by the shorter.

    Args:
        image_sizes: (I, 2) height and width in pixels.
        factor: The scale.

    Returns:
        Values of ``INPUT.MIN_SIZE_TEST`` and ``INPUT.MAX_SIZE_TEST``, multiples of 32.
    """
    edges = np.sort(image_sizes, axis=1)
    wanted = np.quantile(edges * factor, np.linspace(0, 1, 21), axis=0) / STEP
    lengths = [np.unique(np.maximum(np.round(side), 2)).astype(int) * STEP for side in wanted.T]
    pairs = [(int(a), int(b)) for a in lengths[0] for b in lengths[1] if a <= b]
    factors = {pair: resize_factors(image_sizes, *pair) for pair in pairs}
    return min(pairs, key=lambda pair: float(np.abs(np.log(factors[pair] / factor)).mean()))


def whole_sizes(image_sizes: np.ndarray, factor: float) -> tuple[int, int]:
    """Return lengths of the edges that bring an image of median width to a scale.

    Whole images are resized alike in training and evaluation: by the shorter edge, with room for
    95 % of the images.

    Args:
        image_sizes: (I, 2) height and width in pixels.
        factor: The scale.

    Returns:
        Values of ``INPUT.MIN_SIZE_TEST`` and ``INPUT.MAX_SIZE_TEST``, multiples of 32.
    """
    edges = np.sort(image_sizes, axis=1)
    shortest = STEP * max(2, round(factor * float(np.median(edges[:, 0])) / STEP))
    elongation = float(np.quantile(edges[:, 1] / edges[:, 0], 0.95))
    return shortest, STEP * math.ceil(shortest * elongation / STEP)


def input_sizes(found: DataStatistics, scale: Scale) -> list[Choice]:
    """Propose the sizes of images and the crop.

    Training varies around the scale of the evaluation, so that it sees things of the same sizes.
    """
    if scale.crop:
        shortest, longest = nearest_sizes(found.image_sizes, scale.factor)
    else:
        shortest, longest = whole_sizes(found.image_sizes, scale.factor)
    middle = scale.crop * scale.factor if scale.crop else shortest
    train = sorted({max(64, 16 * round(middle * v / 16)) for v in VARIATIONS})
    span = [scale.factor * train[i] / middle for i in (0, -1)]
    choices = []
    if scale.crop:
        crop = [scale.crop, scale.crop]
        reason = f"{scale.crop} px become about {round(middle)}; the crop comes before the resize"
        choices = [
            Choice("INPUT.CROP.ENABLED", True, "whole images at that scale take too long"),
            Choice("INPUT.CROP.TYPE", "absolute", "in pixels of the images"),
            Choice("INPUT.CROP.SIZE", crop, reason),
        ]
    # A crop is longer than wide where an image is narrower than the crop.
    room = 2 * max(train) if scale.crop else STEP * math.ceil(longest * VARIATIONS[-1] / STEP)
    factors = resize_factors(found.image_sizes, shortest, longest)
    low, high = np.quantile(factors, (0.05, 0.95))
    return [
        *choices,
        Choice("INPUT.MIN_SIZE_TRAIN", train, f"scales {span[0]:.2f} to {span[1]:.2f}"),
        Choice("INPUT.MAX_SIZE_TRAIN", room, "room for long images"),
        Choice(TEST_KEYS[0], shortest, f"scale {scale.factor:.2f}: {scale.reason}"),
        Choice(TEST_KEYS[1], longest, f"90% of images get scales {low:.2f} to {high:.2f}"),
    ]
