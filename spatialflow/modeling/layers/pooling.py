"""Pooling of regions from the level of a pyramid that suits their size."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes
from torch import Tensor


class RegionPooler(ROIPooler):
    """Detectron2's pooler, which does not make the CPU wait for a GPU.

    Detectron2 asks the device which boxes belong to each level. On a GPU all boxes are pooled from
    every level here, and the level's own are kept: the answer takes longer than the arithmetic. On
    a CPU it is Detectron2's.
    """

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Pool.

        Args:
            x: One map per level, (N, C, H, W).
            box_lists: Boxes of each image, M in all.

        Returns:
            (M, C, size, size).
        """
        if x[0].device.type == "cpu" or len(x) == 1:
            return super().forward(x, box_lists)
        boxes = torch.cat(
            [
                torch.cat([image.tensor.new_full((len(image), 1), i), image.tensor], dim=1)
                for i, image in enumerate(box_lists)
            ]
        )
        sizes: Any = (self.min_level, self.max_level, self.canonical_box_size, self.canonical_level)
        levels = assign_boxes_to_levels(box_lists, *sizes)[:, None, None, None]
        pooled = self.level_poolers[0](x[0], boxes)
        for i, pooler in enumerate(self.level_poolers[1:], start=1):
            pooled = torch.where(levels == i, pooler(x[i], boxes), pooled)
        return pooled
