"""Detectron2's augmentations, which leave an image at least one pixel high and wide.

Detectron2 rounds the short side of a thin image, such as 5000 × 1, to 0, and Pillow then refuses to
resize it. The same random numbers are drawn as in Detectron2's own classes.
"""

from __future__ import annotations

import numpy as np
from detectron2.data import transforms as T


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's ``ResizeShortestEdge``; neither side becomes 0."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return the resize of an (H, W, channels) image."""
        resize = super().get_transform(image)
        if isinstance(resize, T.ResizeTransform) and 0 in (resize.new_h, resize.new_w):
            new_size = max(resize.new_h, 1), max(resize.new_w, 1)
            return T.ResizeTransform(resize.h, resize.w, *new_size, resize.interp)
        return resize


class RandomCrop(T.RandomCrop):
    """Detectron2's ``RandomCrop``; neither side becomes 0."""

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) of the crop of an image of (height, width)."""
        height, width = super().get_crop_size(image_size)
        return max(height, 1), max(width, 1)


_OWN = {T.ResizeShortestEdge: ResizeShortestEdge, T.RandomCrop: RandomCrop}


def keep_a_pixel(augmentation: T.Augmentation | T.Transform) -> T.Augmentation | T.Transform:
    """Return an augmentation of Detectron2 that could leave no pixel as one that cannot."""
    own = _OWN.get(type(augmentation))
    if own is None:
        return augmentation
    replaced = own.__new__(own)
    vars(replaced).update(vars(augmentation))
    return replaced
