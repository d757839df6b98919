"""The focal loss, and the normalisation of the losses of all heads."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor
from torch.nn import functional as F

from spatialflow.config.options import LOSS_NORMALIZERS
from spatialflow.utils.errors import ConfigError


class LossNormalizer:
    """Compute the denominator of a summed loss from a count of this process's batch.

    ``per_process`` is the reference's rule: each process divides by its own count, at least 1.
    ``global`` divides by the mean count over processes. Distributed training averages gradients, so
    the result is that of one process with the combined batch.
    """

    def __init__(self, mode: str = "per_process") -> None:
        """Keep the mode.

        Args:
            mode: ``per_process`` or ``global``.

        Raises:
            ValueError: If the mode is unknown.
        """
        if mode not in LOSS_NORMALIZERS:
            raise ConfigError(
                f"MODEL.SPATIALFLOW.LOSS_NORMALIZER: {mode!r} given, {LOSS_NORMALIZERS} expected"
            )
        self.mode = mode

    def __call__(self, count: Tensor) -> Tensor:
        """Return the denominator, a scalar in float32 on the device of ``count``.

        Args:
            count: Number of anchors, proposals or pixels in this process's batch, a scalar.
        """
        count = count.float()
        world_size = comm.get_world_size()
        if self.mode == "per_process" or world_size == 1:
            return count.clamp(min=1)
        total = count.clone()
        torch.distributed.all_reduce(total)
        return total.clamp(min=1) / world_size


def focal_loss(logits: Tensor, classes: Tensor, *, dim: int, alpha: float, gamma: float) -> Tensor:
    """Return the focal loss (arXiv 1708.02002, eq. 5), summed, without a tensor of targets.

    It is that of fvcore's ``sigmoid_focal_loss``. Nearly all logits are of other classes than their
    anchor's. So all are counted as such, and those of the anchors' own classes are put right.

    Args:
        logits: Logits of K classes, which are dimension ``dim``.
        classes: Class of each anchor, of the same shape with 1 in that dimension; K for background,
            -1 for what is left out.
        dim: Dimension of the classes.
        alpha: Weight of an anchor's own class, and 1 less the weight of others; negative for none.
        gamma: Exponent of how wrong a score is.

    Returns:
        A scalar in float32.
    """
    count = logits.shape[dim]
    positive = ((classes >= 0) & (classes < count)).float()
    own = logits.gather(dim, classes.clamp(0, count - 1)).float()
    of_own = (1 - own.sigmoid()) ** gamma * F.softplus(-own)
    weights = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)
    as_others: Tensor = _FocalLossOfOthers.apply(logits, (classes >= 0).float(), gamma)
    own_as_others: Tensor = _FocalLossOfOthers.apply(own, positive, gamma)
    return weights[0] * (of_own * positive).sum() + weights[1] * (as_others - own_as_others)


class _FocalLossOfOthers(torch.autograd.Function):
    """Sum of σ(x)^γ · softplus(x) over logits x of classes that are not their anchor's.

    The graph of these operations would keep several tensors of the size of the logits for the
    backward pass. This keeps the logits.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, weights: Tensor, gamma: float) -> Tensor:
        """Return the sum of losses times weights, which broadcast to the logits."""
        ctx.save_for_backward(logits, weights)
        ctx.gamma = gamma
        x = logits.float()
        return (x.sigmoid() ** gamma * F.softplus(x) * weights).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the logits, in operations that have gradients themselves."""
        logits, weights = ctx.saved_tensors
        x = logits.float()
        p = x.sigmoid()
        slope = p**ctx.gamma * (ctx.gamma * (1 - p) * F.softplus(x) + p)
        return (gradient * weights * slope).to(logits.dtype), None, None
