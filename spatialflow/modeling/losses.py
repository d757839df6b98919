"""What the losses of all heads share: how their sums are normalised."""

from __future__ import annotations

import torch
from detectron2.utils import comm
from torch import Tensor

from spatialflow.config.options import LOSS_NORMALIZERS


class LossNormalizer:
    """Turns a count of this process's batch into the denominator of a summed loss.

    ``per_process`` is the reference's rule: each process divides by its own count, at least 1.
    ``global`` divides by the mean count over processes. As distributed training averages
    gradients, the result is then that of one process with the combined batch.
    """

    def __init__(self, mode: str = "per_process") -> None:
        if mode not in LOSS_NORMALIZERS:
            raise ValueError(
                f"MODEL.SPATIALFLOW.LOSS_NORMALIZER: {mode!r} given, {LOSS_NORMALIZERS} expected"
            )
        self.mode = mode

    def __call__(self, count: Tensor) -> Tensor:
        """Return the denominator, a float scalar on the device of ``count``.

        Args:
            count: How many units (anchors, pixels) this process's batch has, a scalar.
        """
        count = count.float()
        world_size = comm.get_world_size()
        if self.mode == "per_process" or world_size == 1:
            return count.clamp(min=1)
        total = count.clone()
        torch.distributed.all_reduce(total)
        return total.clamp(min=1) / world_size
