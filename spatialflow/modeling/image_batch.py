"""Batches of images as the model gets them, in Detectron2's format."""

from __future__ import annotations

from typing import Any

from spatialflow.utils.errors import NonFiniteError
from spatialflow.utils.text import printable


def check_images(batched_inputs: list[dict[str, Any]], *, finite: bool = True) -> None:
    """Check the images of a batch.

    Args:
        batched_inputs: One dictionary per image with ``image``, (3, h, w).
        finite: Whether to look for NaN and infinity. The CPU waits for a GPU then, unless pixels
            are bytes.

    Raises:
        NonFiniteError: If an image holds NaN or infinity.
        ValueError: If the batch is empty, or an image has no pixels.
    """
    if not batched_inputs:
        raise ValueError("a batch of one or more images expected, none given")
    for i, item in enumerate(batched_inputs):
        image = item["image"]
        name = printable(str(item.get("file_name", f"image {i} of the batch")))
        if image.numel() == 0:
            raise ValueError(f"{name}: an image of shape {tuple(image.shape)} has no pixels")
        if finite and image.is_floating_point() and not image.isfinite().all():
            raise NonFiniteError(f"{name}: the image holds NaN or infinity")


def of_one_size(batched_inputs: list[dict[str, Any]], stride: int) -> list[list[int]]:
    """Return the indices of the images that have one size after padding, by size.

    Args:
        batched_inputs: One dictionary per image with ``image``, (3, h, w).
        stride: Number of which sizes become multiples by padding; 0 or 1 for no padding.
    """
    alike: dict[tuple[int, int], list[int]] = {}
    for i, item in enumerate(batched_inputs):
        height, width = item["image"].shape[-2:]
        step = max(stride, 1)
        alike.setdefault((-(-height // step), -(-width // step)), []).append(i)
    return list(alike.values())
