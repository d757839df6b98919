"""Panoptic fusion: detections and stuff labels to one segment a pixel.

Shape legend: M instances, H and W the size of the original image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import Instances
from torch import Tensor

Segments = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class PanopticFusion:
    """Paints instances by score, then stuff, then (optionally) fills boxes that stayed empty.

    The first two steps are Detectron2's own. Box filling is the reference's: a detection whose box
    is still mostly empty takes the empty pixels of it.

    Attributes:
        score_threshold: Detections below it take no part.
        overlap_threshold: An instance with a larger share of its mask already taken is dropped.
        stuff_area_limit: Stuff segments of fewer pixels are dropped.
        box_fill: Whether to fill boxes.
        box_fill_threshold: The empty share of a box from which it is filled.
    """

    score_threshold: float
    overlap_threshold: float
    stuff_area_limit: int
    box_fill: bool
    box_fill_threshold: float

    def __call__(self, instances: Instances, stuff_labels: Tensor) -> tuple[Tensor, Segments]:
        """Fuse one image.

        Args:
            instances: ``pred_boxes``, ``scores``, ``pred_classes`` and ``pred_masks`` (M, H, W).
            stuff_labels: (H, W), 0 for things.

        Returns:
            Segment ids (H, W) int32, 0 where nothing is, and Detectron2's ``segments_info``.
        """
        ids, segments = combine_semantic_and_instance_outputs(
            instances,
            stuff_labels,
            self.overlap_threshold,
            self.stuff_area_limit,
            self.score_threshold,
        )
        if self.box_fill:
            self._fill_boxes(ids, segments, instances)
        # With an overlap limit of 1 or an area limit of 0, Detectron2 lists segments for which no
        # pixel is left; the evaluator refuses them.
        present = set(ids.unique().tolist())
        return ids, [info for info in segments if info["id"] in present]

    def _fill_boxes(self, ids: Tensor, segments: Segments, instances: Instances) -> None:
        height, width = ids.shape
        limits = torch.as_tensor([width, height, width, height])
        corners = instances.pred_boxes.tensor.cpu().long().clamp(min=0).minimum(limits).tolist()
        scores = instances.scores.tolist()
        classes = instances.pred_classes.tolist()
        painted = {info["instance_id"]: info["id"] for info in segments if info["isthing"]}
        for i in torch.argsort(-instances.scores).tolist():
            if scores[i] < self.score_threshold:
                break
            left, top, right, bottom = corners[i]
            window = ids[top:bottom, left:right]
            empty = window == 0
            # A box without pixels, which the reference divides by, fills nothing.
            count = int(empty.sum())
            if count == 0 or count / empty.numel() < self.box_fill_threshold:
                continue
            if i not in painted:
                painted[i] = len(segments) + 1
                segments.append(
                    {
                        "id": painted[i],
                        "isthing": True,
                        "score": scores[i],
                        "category_id": classes[i],
                        "instance_id": i,
                    }
                )
            window[empty] = painted[i]
