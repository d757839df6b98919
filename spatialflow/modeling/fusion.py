"""Panoptic fusion: from detections and stuff labels to one segment per pixel.

Shape legend: M detections, H and W the size of the original image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor

from spatialflow.modeling.pixel_runs import PixelRuns

Segments = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class PanopticFusion:
    """Merge detections and stuff labels into one panoptic map.

    Paint instances from the best score to the worst, then stuff, then optionally fill boxes that
    are still mostly empty. The first two steps follow Panoptic FPN (arXiv 1901.02446, section 3)
    and give the same results as Detectron2's ``combine_semantic_and_instance_outputs``. Box filling
    follows the reference: a detection takes the empty pixels of its box. All of it is decided on
    :class:`PixelRuns` on the CPU.

    Attributes:
        score_threshold: Lowest score of a detection that takes part.
        overlap_threshold: Largest share of an instance's mask that other instances may already
            cover; an instance with more is dropped.
        stuff_area_limit: Smallest number of pixels of a stuff segment; smaller ones are dropped.
        box_fill: Whether to fill boxes.
        box_fill_threshold: Smallest share of empty pixels in a box that is filled.
    """

    score_threshold: float
    overlap_threshold: float
    stuff_area_limit: int
    box_fill: bool
    box_fill_threshold: float

    def __call__(self, instances: Instances, stuff_labels: Tensor) -> tuple[Tensor, Segments]:
        """Fuse one image.

        Args:
            instances: Detections with ``pred_boxes``, ``scores``, ``pred_classes`` and
                ``pred_masks`` (M, H, W).
            stuff_labels: Stuff class of each pixel, (H, W); 0 for things.

        Returns:
            Segment ids (H, W) in int32, 0 for pixels without a segment, and Detectron2's
            ``segments_info``, one dictionary per segment.
        """
        detections = _detections(instances, self.score_threshold)
        # The detections come best first as a rule, so that no mask is copied here.
        masks = instances.pred_masks[: max((d.position + 1 for d in detections), default=0)]
        runs = PixelRuns(stuff_labels, masks.to(dtype=torch.bool))
        ids = np.zeros(len(runs.lengths), dtype=np.int32)
        segments: Segments = []
        self._paint_things(ids, segments, runs, detections)
        self._paint_stuff(ids, segments, runs)
        # With an overlap limit of 1 or an area limit of 0, some segments have no pixel. The
        # evaluator refuses these.
        present = {*np.unique(ids).tolist()}
        if self.box_fill and detections and 0 in present:
            image = runs.image(ids)
            corners = _whole_pixels(instances.pred_boxes.tensor, stuff_labels.shape)
            present |= self._fill_boxes(image, segments, corners, detections)
            fused = torch.from_numpy(image).to(stuff_labels.device, non_blocking=True)
        else:
            fused = runs.image_on_device(ids)
        return fused, [info for info in segments if info["id"] in present]

    def _paint_things(
        self, ids: np.ndarray, segments: Segments, runs: PixelRuns, detections: list[_Detection]
    ) -> None:
        """Paint instances into ids (R,), and add their segments."""
        for detection in detections:
            inside = runs.under(detection.position)
            area = int(runs.lengths[inside].sum())
            if area == 0:
                continue
            free = inside[ids[inside] == 0]
            if (area - int(runs.lengths[free].sum())) / area > self.overlap_threshold:
                continue
            segments.append(detection.segment(len(segments) + 1))
            ids[free] = len(segments)

    def _paint_stuff(self, ids: np.ndarray, segments: Segments, runs: PixelRuns) -> None:
        """Paint stuff into the empty runs of ids (R,), and add its segments."""
        free = ids == 0
        areas = np.bincount(runs.labels[free], runs.lengths[free], runs.labels.max(initial=0) + 1)
        # Label 0 is for things. A class that things cover everywhere still counts, with area 0.
        present = np.flatnonzero(np.bincount(runs.labels))
        id_of = np.zeros(len(areas), dtype=np.int32)
        for label in present[present > 0].tolist():
            area = int(areas[label])
            if area < self.stuff_area_limit:
                continue
            id_of[label] = len(segments) + 1
            segments.append(
                {"id": len(segments) + 1, "isthing": False, "category_id": label, "area": area}
            )
        np.copyto(ids, id_of[runs.labels], where=free)

    def _fill_boxes(
        self,
        ids: np.ndarray,
        segments: Segments,
        corners: list[list[int]],
        detections: list[_Detection],
    ) -> set[int]:
        """Fill boxes that are mostly empty in ids (H, W), and add segments of new instances.

        Returns:
            Ids of the boxes that are filled.
        """
        id_of = {info["instance_id"]: info["id"] for info in segments if info["isthing"]}
        filled = set()
        for detection in detections:
            left, top, right, bottom = corners[detection.position]
            window = ids[top:bottom, left:right]
            empty = window == 0
            # A box without pixels fills nothing. The reference divides by zero here.
            count = np.count_nonzero(empty)
            if count == 0 or count / empty.size < self.box_fill_threshold:
                continue
            if detection.position not in id_of:
                id_of[detection.position] = len(segments) + 1
                segments.append(detection.segment(len(segments) + 1))
            window[empty] = id_of[detection.position]
            filled.add(id_of[detection.position])
        return filled


def _whole_pixels(boxes: Tensor, size: torch.Size) -> list[list[int]]:
    """Return the corners of boxes (M, 4) in whole pixels inside of an image of a size (H, W)."""
    height, width = size
    return boxes.cpu().long().clamp(min=0).minimum(torch.tensor([width, height] * 2)).tolist()


class _Detection(NamedTuple):
    """A detection that takes part.

    Attributes:
        position: Its index in the given instances.
        score: Its score.
        thing_class: Its class.
    """

    position: int
    score: float
    thing_class: int

    def segment(self, segment_id: int) -> dict[str, Any]:
        """Return the entry of its segment in Detectron2's ``segments_info``."""
        return {
            "id": segment_id,
            "isthing": True,
            "score": self.score,
            "category_id": self.thing_class,
            "instance_id": self.position,
        }


def _detections(instances: Instances, score_threshold: float) -> list[_Detection]:
    """Return the detections from a score on, best first, as plain numbers."""
    # One copy from the device. A class is exact in single precision.
    facts = torch.stack([instances.scores.float(), instances.pred_classes.float()], dim=1).tolist()
    # Python's numbers, like those that Detectron2 compares, are in double precision.
    kept = [
        _Detection(i, score, int(thing_class))
        for i, (score, thing_class) in enumerate(facts)
        if score >= score_threshold
    ]
    # Equal scores stay in the order of the detections.
    return sorted(kept, key=lambda detection: -detection.score)
