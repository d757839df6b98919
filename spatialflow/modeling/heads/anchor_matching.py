"""The reference's assignment of anchors to ground truth.

Shape legend: R anchors of all levels, M ground-truth boxes of an image.
"""

from __future__ import annotations

import torch
from detectron2.modeling.matcher import Matcher
from torch import Tensor


def match_anchors(iou: Tensor, matcher: Matcher) -> tuple[Tensor, Tensor]:
    """Assign anchors to ground truth by IoU; each ground truth also gets its best anchors.

    Detectron2's own low-quality matches change only the label of a best anchor. The reference also
    assigns it to the ground truth whose best anchor it is; where it is the best anchor of several,
    the last one gets it. A ground truth that overlaps no anchor gets none.

    Args:
        iou: IoU of ground truth and anchors, (M, R), M at least 1.
        matcher: IoU thresholds, without low-quality matches.

    Returns:
        Index of the ground truth of each anchor, and label of each anchor (1 positive, 0 negative,
        -1 ignored), both (R,).
    """
    matches, labels = matcher(iou)
    best = iou.amax(dim=1, keepdim=True)  # (M, 1)
    claims = (iou == best) & (best > 0)
    order = torch.arange(1, len(iou) + 1, device=iou.device)[:, None]
    last_claim = (claims * order).amax(dim=0)  # (R,), 0 where there is none
    claimed = last_claim > 0
    matches = torch.where(claimed, last_claim - 1, matches)
    labels = torch.where(claimed, torch.ones_like(labels), labels)
    return matches, labels
