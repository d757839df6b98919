"""Heads on the four branches."""

from spatialflow.modeling.heads.boxes import BoxSelection, DenseBoxHead
from spatialflow.modeling.heads.masks import ProposalMaskHead
from spatialflow.modeling.heads.stuff import StuffHead, resize_logits

__all__ = ["BoxSelection", "DenseBoxHead", "ProposalMaskHead", "StuffHead", "resize_logits"]
