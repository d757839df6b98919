"""Pictures of panoptic results: overlays by Detectron2's ``Visualizer``, and tables of pictures.

Shape legend: H and W the size of an image in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.utils.visualizer import Visualizer
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# Pictures whose longer side is shorter are drawn larger: text does not fit into 200 pixels.
LEGIBLE_SIDE = 640
# Least size of names in points, as Detectron2's default is; it draws those of small objects at 0.6.
FONT_SIZE = 14.0
# Where there are more segments, their names would hide them.
NAMED = 40
# Share of a segment's colour in an overlay.
OPACITY = 0.55
# How much the colours of one class's instances differ, of 1.
COLOR_CHANGE = 0.16

# Of a table of pictures, in pixels.
MARGIN = 12
TITLE_HEIGHT = 44
TITLE_SIZE = 26
PAPER, INK = (255, 255, 255), (33, 37, 41)


class _RepeatableVisualizer(Visualizer):
    """Detectron2's visualizer, drawing the same picture every time."""

    def __init__(self, image_rgb: np.ndarray, metadata: Metadata, *, named: bool) -> None:
        super().__init__(image_rgb, metadata)
        self._named = named
        self._default_font_size = max(FONT_SIZE, math.sqrt(math.prod(image_rgb.shape[:2])) / 90)
        self._generator = np.random.default_rng(0)

    def draw_text(self, *args: Any, **options: Any) -> Any:
        """Write a name, if there are not too many."""
        return super().draw_text(*args, **options) if self._named else self.output

    def _jitter(self, color: Sequence[float]) -> tuple[float, ...]:
        """Vary a class's colour, so that its instances can be told apart.

        Detectron2 takes numpy's global generator: each run another picture, and, during training,
        another run.
        """
        change = self._generator.uniform(-COLOR_CHANGE, COLOR_CHANGE, 3)
        return tuple(np.clip(np.asarray(color) + change, 0, 1).tolist())


def draw_panoptic(
    image_rgb: np.ndarray,
    panoptic_seg: Tensor | np.ndarray,
    segments_info: Sequence[dict[str, Any]],
    metadata: Metadata,
) -> np.ndarray:
    """Draw segments over an image, with their class names where they are no more than 40.

    Args:
        image_rgb: (H, W, 3) uint8.
        panoptic_seg: (H, W) segment ids, of a model or of
            :func:`spatialflow.data.panoptic_ground_truth`.
        segments_info: The segments, in Detectron2's form.
        metadata: Of the data set; names and colours of the classes.

    Returns:
        (H', W', 3) uint8 RGB: the image's size, or larger where the image is too small for text.

    Raises:
        ValueError: If image and segments differ in size.
    """
    ids = torch.as_tensor(panoptic_seg).cpu().numpy()
    if ids.shape != image_rgb.shape[:2]:
        raise ValueError(
            f"segments of {ids.shape} (height, width) given for an image of "
            f"{image_rgb.shape[:2]}; the same size is expected"
        )
    # Not the visualizer's own scale, with which it takes all objects for small ones.
    size = _larger(ids.shape)
    image_rgb = cv2.resize(image_rgb, size, interpolation=cv2.INTER_CUBIC)
    ids = cv2.resize(ids.astype(np.int32), size, interpolation=cv2.INTER_NEAREST)
    # The visualizer writes areas into the dicts that it is given.
    segments = [dict(segment) for segment in segments_info]
    drawing = _RepeatableVisualizer(image_rgb, metadata, named=len(segments) <= NAMED)
    return drawing.draw_panoptic_seg(torch.from_numpy(ids), segments, alpha=OPACITY).get_image()


def side_by_side(
    rows: Sequence[Sequence[np.ndarray]],
    *,
    titles: Sequence[str] = ("image", "ground truth", "prediction"),
) -> np.ndarray:
    """Put pictures into a table with a title over each column.

    Args:
        rows: In each row one picture per title, (H, W, 3) uint8 RGB of any size; each is scaled
            into a cell that is as large as the largest picture.
        titles: Of the columns.

    Returns:
        (H', W', 3) uint8 RGB.

    Raises:
        ValueError: If there is no row, or one has not a picture for each title.
    """
    if not rows:
        raise ValueError("no rows of pictures given; at least one is expected")
    for row in rows:
        if len(row) != len(titles):
            raise ValueError(
                f"a row of {len(row)} pictures given, {len(titles)} expected: {titles}"
            )
    sizes = [picture.shape[:2] for row in rows for picture in row]
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    fitted = [[_fit(picture, height, width) for picture in row] for row in rows]
    heights = [max(picture.shape[0] for picture in row) for row in fitted]
    paper = Image.new(
        "RGB",
        (
            MARGIN + len(titles) * (width + MARGIN),
            TITLE_HEIGHT + sum(heights) + MARGIN * len(rows),
        ),
        PAPER,
    )
    draw = ImageDraw.Draw(paper)
    centers = [MARGIN + i * (width + MARGIN) + width // 2 for i in range(len(titles))]
    for title, center in zip(titles, centers, strict=True):
        font = ImageFont.load_default(TITLE_SIZE)
        draw.text((center, TITLE_HEIGHT // 2), title, INK, font, anchor="mm")
    top = TITLE_HEIGHT
    for row, row_height in zip(fitted, heights, strict=True):
        for picture, center in zip(row, centers, strict=True):
            below = top + (row_height - picture.shape[0]) // 2
            paper.paste(Image.fromarray(picture), (center - picture.shape[1] // 2, below))
        top += row_height + MARGIN
    return np.asarray(paper)


def _larger(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the (width, height) to draw an (H, W) image at."""
    factor = max(1.0, LEGIBLE_SIDE / max(shape))
    return round(shape[1] * factor), round(shape[0] * factor)


def _fit(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale a picture, keeping its shape, until it fills a cell's height or width."""
    factor = min(height / picture.shape[0], width / picture.shape[1])
    size = (round(picture.shape[1] * factor), round(picture.shape[0] * factor))
    if size == picture.shape[1::-1]:
        return picture
    return cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
