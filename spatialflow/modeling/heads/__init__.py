"""Heads that predict boxes, masks and stuff from the branches."""

from spatialflow.modeling.heads.boxes import DenseBoxHead
from spatialflow.modeling.heads.masks import ProposalMaskHead, detections_at_size
from spatialflow.modeling.heads.regions import RegionHead
from spatialflow.modeling.heads.selection import BoxSelection, Candidates, candidates_inside
from spatialflow.modeling.heads.stuff import StuffHead, resize_logits

__all__ = [
    "BoxSelection",
    "Candidates",
    "DenseBoxHead",
    "ProposalMaskHead",
    "RegionHead",
    "StuffHead",
    "candidates_inside",
    "detections_at_size",
    "resize_logits",
]
