"""Heads on the four branches."""

from spatialflow.heads.dense import BoxSelection, DenseBoxHead
from spatialflow.heads.mask import ProposalMaskHead
from spatialflow.heads.stuff import StuffHead, resize_logits

__all__ = ["BoxSelection", "DenseBoxHead", "ProposalMaskHead", "StuffHead", "resize_logits"]
