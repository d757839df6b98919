"""How well the anchors of a config fit the things of a data set, by the training's own assignment.

Shape legend: R anchors of all levels, T things.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou

from spatialflow.analysis.data_statistics import DataStatistics, evenly
from spatialflow.modeling.heads.adaptive_matching import match_by
from spatialflow.utils.console import report_progress

MOST_IMAGES = 32
"""Images that are measured, evenly chosen: one of 600,000 pixels takes half a second."""
SMALL = 0.25
"""Share of the things that count as small: the smallest ones."""
FOUND = 0.5
"""Intersection over union with an anchor from which a thing counts as covered."""


@dataclass(frozen=True)
class Coverage:
    """The anchors of things at the size of the evaluation.

    Attributes:
        things: Number of things that were measured.
        positives: Mean number of positive anchors of a thing.
        small_positives: The same of the smallest quarter of the things.
        missed: Share of things whose best anchor has an IoU below 0.5.
        small_missed: The same of the smallest quarter.
    """

    things: int
    positives: float
    small_positives: float
    missed: float
    small_missed: float


def resize_factors(image_sizes: np.ndarray, shortest: int, longest: int) -> np.ndarray:
    """Return how far Detectron2 enlarges images.

    Args:
        image_sizes: (I, 2) height and width in pixels.
        shortest: Length of the shorter edge, as in ``INPUT.MIN_SIZE_TEST``.
        longest: Highest length of the longer edge, as in ``INPUT.MAX_SIZE_TEST``.

    Returns:
        (I,) factors, below 1 where an image is made smaller.
    """
    short, long = image_sizes.min(axis=1), image_sizes.max(axis=1)
    return np.minimum(shortest / short, longest / long)


def measure_coverage(found: DataStatistics, cfg: CfgNode, what: str) -> Coverage:
    """Assign the anchors of a config to things of whole images, as training does.

    The images have the size of the evaluation, ``INPUT.MIN_SIZE_TEST``, which is also the middle of
    the sizes in training that are proposed. Which things are small is decided at the original size,
    so two configs are measured on the same things.

    Args:
        found: Statistics with at least one thing.
        cfg: A config; ``INPUT``, ``MODEL.ANCHOR_GENERATOR`` and ``MODEL.RETINANET`` are read.
        what: Name of the measurement in the progress.
    """
    keys = cfg.MODEL.RETINANET
    strides = [2 ** int(level[1:]) for level in keys.IN_FEATURES]
    generator = build_anchor_generator(cfg, [ShapeSpec(stride=stride) for stride in strides])
    matcher = Matcher(keys.IOU_THRESHOLDS, keys.IOU_LABELS)
    owners, boxes = found.image[found.is_thing], found.thing_boxes
    images = np.unique(owners)
    chosen = images[evenly(len(images), MOST_IMAGES)]
    counts, overlaps, areas = [], [], []
    for done, image in enumerate(chosen):
        report_progress(what, done, len(chosen))
        own = boxes[owners == image]
        size = found.image_sizes[image]
        height, width = ResizeShortestEdge.get_output_shape(
            int(size[0]), int(size[1]), cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        )
        scale = np.array([width / size[1], height / size[0]])
        corners = np.concatenate((own[:, :2] * scale, (own[:, :2] + own[:, 2:]) * scale), axis=1)
        maps = [torch.zeros(1, 1, -(-height // s), -(-width // s)) for s in strides]
        truth, levels = Boxes(torch.from_numpy(corners).float()), generator(maps)
        anchors = Boxes.cat(levels)
        iou = pairwise_iou(truth, anchors)
        matches, labels = match_by(
            cfg.MODEL.SPATIALFLOW.ASSIGNMENT,
            truth,
            anchors,
            iou,
            matcher=matcher,
            levels=[len(level) for level in levels],
            anchors_per_position=generator.num_cell_anchors[0],
        )
        counts.append(torch.bincount(matches[labels == 1], minlength=len(own)).numpy())
        overlaps.append(iou.amax(dim=1).numpy())
        areas.append(own[:, 2] * own[:, 3])
    report_progress(what, len(chosen), len(chosen), ended=True)
    positives, best, area = map(np.concatenate, (counts, overlaps, areas))
    small = area <= np.quantile(area, SMALL)
    return Coverage(
        things=len(area),
        positives=float(positives.mean()),
        small_positives=float(positives[small].mean()),
        missed=float((best < FOUND).mean()),
        small_missed=float((best[small] < FOUND).mean()),
    )
