"""Assignment of anchors by the statistics of each ground truth (ATSS, arXiv 1912.02424).

Shape legend: R anchors of all levels, A anchors per position, M ground-truth boxes of an image, C
candidates of a ground truth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes
from torch import Tensor

from spatialflow.modeling.heads.anchor_matching import match_anchors

POSITIONS = 3
"""Positions of each level whose anchors are candidates for a ground truth; the paper has 9, with
one anchor at each."""


def match_by(
    assignment: str,
    truth: Boxes,
    anchors: Boxes,
    iou: Tensor,
    *,
    matcher: Matcher,
    levels: Sequence[int],
    anchors_per_position: int,
) -> tuple[Tensor, Tensor]:
    """Assign anchors to ground truth by ``MODEL.SPATIALFLOW.ASSIGNMENT``.

    Args:
        assignment: ``iou`` for the thresholds of ``matcher``, ``atss`` for a threshold of each
            ground truth.
        truth: M ground-truth boxes, M at least 1.
        anchors: R anchors of all levels, by position.
        iou: IoU of ground truth and anchors, (M, R).
        matcher: IoU thresholds of positive and negative anchors.
        levels: Number of anchors of each level.
        anchors_per_position: A.

    Returns:
        Index of the ground truth of each anchor, and label of each anchor (1 positive, 0 negative,
        -1 ignored), both (R,).
    """
    if assignment == "atss":
        return match_adaptively(truth, anchors, iou, levels, anchors_per_position)
    return match_anchors(iou, matcher)


def match_adaptively(
    truth: Boxes,
    anchors: Boxes,
    iou: Tensor,
    levels: Sequence[int],
    anchors_per_position: int,
) -> tuple[Tensor, Tensor]:
    """Assign anchors to ground truth by a threshold of IoU that each ground truth has for itself.

    Candidates of a ground truth are the anchors at the positions of each level that are nearest to
    its centre. Those whose IoU reaches the mean and the standard deviation of all candidates
    together are positive, if their centre is inside the ground truth. An anchor of several belongs
    to the one with the highest IoU. Unlike in the paper, a ground truth without a positive
    candidate claims the anchor with the highest IoU, before those with candidates. It gets none
    where another one of them overlaps this anchor more.

    Args:
        truth: M ground-truth boxes, M at least 1.
        anchors: R anchors of all levels, by position.
        iou: IoU of ground truth and anchors, (M, R).
        levels: Number of anchors of each level.
        anchors_per_position: A.

    Returns:
        Index of the ground truth of each anchor, and label of each anchor (1 positive, 0 negative),
        both (R,).
    """
    centers = anchors.get_centers()  # (R, 2)
    candidates = _nearest(truth, centers, levels, anchors_per_position)
    own = iou.gather(1, candidates)  # (M, C)
    # A single candidate has no deviation, and is above no threshold.
    threshold = own.mean(dim=1) + own.std(dim=1, correction=min(1, own.shape[1] - 1))
    low, high = truth.tensor[:, None, :2], truth.tensor[:, None, 2:]
    inside = ((centers[candidates] > low) & (centers[candidates] < high)).all(dim=-1)
    positive = (own >= threshold[:, None]) & inside
    claims = torch.full_like(iou, -1.0).scatter(1, candidates, torch.where(positive, own, -1.0))
    # Ground truth without a positive candidate claims its best anchor.
    left = ~positive.any(dim=1) & (iou.amax(dim=1) > 0)
    best = iou.argmax(dim=1, keepdim=True)
    claims = torch.where(left[:, None], claims.scatter(1, best, 1 + iou.gather(1, best)), claims)
    highest, matches = claims.max(dim=0)
    return matches, (highest >= 0).to(torch.int8)


def _nearest(
    truth: Boxes, centers: Tensor, levels: Sequence[int], anchors_per_position: int
) -> Tensor:
    """Return the indices of the candidates of each ground truth, (M, C)."""
    at_position = torch.arange(anchors_per_position, device=centers.device)
    found, first = [], 0
    for count in levels:
        positions = centers[first : first + count : anchors_per_position]
        # Equal distances are frequent on a grid; the order among them must not depend on a device,
        # nor on a matrix product, by which PyTorch computes many distances.
        distance = torch.cdist(
            truth.get_centers(), positions, compute_mode="donot_use_mm_for_euclid_dist"
        )
        nearest = distance.sort(dim=1, stable=True).indices[:, :POSITIONS]
        found.append(first + (nearest[..., None] * anchors_per_position + at_position).flatten(1))
        first += count
    return torch.cat(found, dim=1)
