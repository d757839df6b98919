"""Normalisation of the losses of all heads."""

from __future__ import annotations

import torch
from detectron2.utils import comm
from torch import Tensor

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
