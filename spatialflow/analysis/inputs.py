"""Random images with ground truth, for measurements that need no data set."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.structures import BitMasks, Instances
from torch import Tensor


def random_image(size: tuple[int, int], *, seed: int = 0) -> Tensor:
    """Return a uint8 image (3, H, W) of noise.

    Args:
        size: Height and width in pixels.
        seed: Seed of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)


def training_image(
    size: tuple[int, int],
    *,
    thing_classes: int = 80,
    stuff_classes: int = 54,
    things: int = 20,
    seed: int = 0,
) -> dict[str, Any]:
    """Return one input of training: noise, with squares as things and stripes as stuff.

    Args:
        size: Height and width in pixels.
        thing_classes: Number of thing classes.
        stuff_classes: Number of stuff classes and one, as label 0 means things.
        things: Number of squares.
        seed: Seed of the noise.

    Returns:
        ``image`` (3, H, W), ``instances`` and ``sem_seg`` (H, W), as the mapper returns them.
    """
    height, width = size
    masks = torch.zeros(things, height, width, dtype=torch.bool)
    for i in range(things):
        side, top, left = 24 * (1 + i % 8), i * height // 25, (7 * i % 20) * width // 25
        masks[i, top : top + side, left : left + side] = True
    instances = Instances(size)
    instances.gt_masks = BitMasks(masks)
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    instances.gt_classes = torch.arange(things) % thing_classes
    stripes = 1 + torch.arange(height) * (stuff_classes - 1) // height
    sem_seg = stripes[:, None].repeat(1, width)
    sem_seg[masks.any(dim=0)] = 0
    return {"image": random_image(size, seed=seed), "instances": instances, "sem_seg": sem_seg}
