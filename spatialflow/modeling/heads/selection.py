"""Selection of detections from boxes and scores, of either box stage.

Shape legend: P candidate boxes of an image, K thing classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from detectron2.layers import batched_nms, nms
from detectron2.structures import Boxes, Instances
from torch import Tensor

NO_SCORE = -1.0
"""Score of what is no box: it is below every threshold."""


class Candidates(NamedTuple):
    """What the detections of an image are selected from.

    Attributes:
        boxes: Box of each candidate for each class, (P, K, 4), or one for all classes, (P, 1, 4).
        scores: Score of each class, (P, K).
    """

    boxes: Tensor
    scores: Tensor


def clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return boxes (..., 4) inside of an image of a size (height, width).

    Detectron2's ``Boxes.clip`` first asks a GPU whether all are finite, and waits for the answer.
    """
    height, width = size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x, y], dim=-1).flatten(-2)


def candidates_inside(boxes: Tensor, scores: Tensor, image_size: tuple[int, int]) -> Candidates:
    """Return candidates that are clipped to their image.

    A box that is not finite belongs to a model that diverges, which the trainer reports. It gets no
    score here, as taking it out would make the CPU wait for a GPU.

    Args:
        boxes: (P, K, 4) or (P, 1, 4).
        scores: (P, K).
        image_size: (height, width) of the image without padding.
    """
    finite = boxes.isfinite().all(dim=-1)
    inside = clipped(boxes.masked_fill(~finite[..., None], 0), image_size)
    return Candidates(inside, scores.masked_fill(~finite, NO_SCORE))


def first_of_nms(boxes: Tensor, scores: Tensor, threshold: float, count: int) -> Tensor:
    """Return the first boxes that NMS keeps, by index, best score first.

    A box suppresses only those after it. On a CPU the search ends where enough are kept, as the
    time of NMS grows with the square of the boxes; a GPU compares all at once.

    Args:
        boxes: (P, 4).
        scores: (P,).
        threshold: IoU above which a box suppresses another one.
        count: Largest number of boxes to return.
    """
    if boxes.device.type == "cpu" and len(boxes) > 2 * count:
        best = scores.argsort(descending=True, stable=True)[: 2 * count]
        keep = nms(boxes[best], scores[best], threshold)
        if len(keep) >= count:
            return best[keep[:count]]
    return nms(boxes, scores, threshold)[:count]


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

    @torch.no_grad()
    def select(self, candidates: Candidates, image_size: tuple[int, int]) -> Instances:
        """Select detections from the candidates of one image, by score and NMS per class.

        Args:
            candidates: Candidates inside the image.
            image_size: (height, width) of the image without padding.

        Returns:
            ``pred_boxes``, ``scores`` and ``pred_classes``, best score first.
        """
        boxes, scores = candidates
        index, classes = (scores > self.score_threshold).nonzero().unbind(dim=1)
        boxes = boxes.expand(-1, scores.shape[1], -1)[index, classes]
        scores = scores[index, classes]
        keep = batched_nms(boxes, scores, classes, self.nms_threshold)[: self.detections]
        return Instances(
            image_size,
            pred_boxes=Boxes(boxes[keep]),
            scores=scores[keep],
            pred_classes=classes[keep],
        )
