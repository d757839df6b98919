"""Heads that predict boxes, masks and stuff from the branches."""

from spatialflow.modeling.heads.boxes import BoxSelection, DenseBoxHead
from spatialflow.modeling.heads.masks import ProposalMaskHead
from spatialflow.modeling.heads.regions import RegionHead
from spatialflow.modeling.heads.stuff import StuffHead, resize_logits

__all__ = [
    "BoxSelection",
    "DenseBoxHead",
    "ProposalMaskHead",
    "RegionHead",
    "StuffHead",
    "resize_logits",
]
