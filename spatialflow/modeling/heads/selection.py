"""Selection of detections from boxes and scores, of either box stage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor


@dataclass(frozen=True, slots=True)
class BoxSelection:
    """Thresholds and limits for the selection of detections from raw predictions.

    Attributes:
        score_threshold: Score that a pair of box and class must exceed.
        candidates: Largest number of anchors per level that enter NMS, ranked by their best class.
        nms_threshold: IoU above which NMS suppresses a box of the same class.
        detections: Largest number of detections per image.
    """

    score_threshold: float
    candidates: int
    nms_threshold: float
    detections: int

    def select_all(
        self, candidates: list[tuple[Boxes, Tensor]], image_sizes: list[tuple[int, int]]
    ) -> list[Instances]:
        """Select the detections of each image, as :meth:`select` does of one."""
        return [
            self.select(boxes, scores, size)
            for (boxes, scores), size in zip(candidates, image_sizes, strict=True)
        ]

    @torch.no_grad()
    def select(self, boxes: Boxes, scores: Tensor, image_size: tuple[int, int]) -> Instances:
        """Select detections from the candidates of one image, by score and NMS per class.

        Args:
            boxes: Candidate boxes.
            scores: Score of each class for each box, (boxes, K).
            image_size: (height, width) of the image without padding.

        Returns:
            ``pred_boxes``, ``scores`` and ``pred_classes``, best score first.
        """
        index, classes = (scores > self.score_threshold).nonzero(as_tuple=True)
        pair_scores = scores[index, classes]
        keep = batched_nms(boxes.tensor[index], pair_scores, classes, self.nms_threshold)[
            : self.detections
        ]
        return Instances(
            image_size,
            pred_boxes=boxes[index[keep]],
            scores=pair_scores[keep],
            pred_classes=classes[keep],
        )
