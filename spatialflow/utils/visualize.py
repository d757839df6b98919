"""Draw panoptic results with Detectron2's ``Visualizer``, and put pictures side by side.

H, W: Height and width of an image in pixels.
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
from matplotlib import rc_context
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from spatialflow.utils.text import printable

LEGIBLE_SIDE = 640
"""Least length of an overlay's longer side in pixels; names do not fit into a smaller picture."""

FONT_SIZE = 14.0
"""Least font size of names in points."""

NAMED = 40
"""Largest number of segments whose names are drawn; more names would hide the segments."""

OPACITY = 0.55
"""Share of a segment's colour in an overlay."""

COLOR_CHANGE = 0.16
"""Largest change of a colour channel (0 to 1) between instances of one class."""

# Sizes in a table of pictures, in pixels.
MARGIN = 12
TITLE_HEIGHT = 44
TITLE_SIZE = 26
PAPER, INK = (255, 255, 255), (33, 37, 41)


class _RepeatableVisualizer(Visualizer):
    """Detectron2's visualizer with repeatable colours.

    Detectron2 varies colours with NumPy's global generator. Its pictures differ from run to run,
    and drawing during a training changes the training.
    """

    def __init__(self, image_rgb: np.ndarray, metadata: Metadata, *, named: bool) -> None:
        super().__init__(image_rgb, metadata)
        self._named = named
        self._default_font_size = max(FONT_SIZE, math.sqrt(math.prod(image_rgb.shape[:2])) / 90)
        self._generator = np.random.default_rng(0)

    def draw_text(self, text: str, *args: Any, **options: Any) -> Any:
        """Draw a name as it is, no formula, unless names are switched off."""
        if not self._named:
            return self.output
        with rc_context({"text.parse_math": False}):
            return super().draw_text(printable(text), *args, **options)

    def _jitter(self, color: Sequence[float]) -> tuple[float, ...]:
        """Vary the colour of a class, so that its instances differ."""
        change = self._generator.uniform(-COLOR_CHANGE, COLOR_CHANGE, 3)
        return tuple(np.clip(np.asarray(color) + change, 0, 1).tolist())


def draw_panoptic(
    image_rgb: np.ndarray,
    panoptic_seg: Tensor | np.ndarray,
    segments_info: Sequence[dict[str, Any]],
    metadata: Metadata,
) -> np.ndarray:
    """Draw segments over an image, with their class names if there are at most 40 segments.

    Args:
        image_rgb: (H, W, 3) uint8 RGB.
        panoptic_seg: (H, W) segment ids, from a model or from
            :func:`spatialflow.data.panoptic_ground_truth`.
        segments_info: Segments in Detectron2's format.
        metadata: Detectron2's metadata with names and colours of the classes.

    Returns:
        (H', W', 3) uint8 RGB. The size is that of the image, or larger if the image is too small
        for text.

    Raises:
        ValueError: If image and segments differ in size.
    """
    ids = torch.as_tensor(panoptic_seg).cpu().numpy()
    if ids.shape != image_rgb.shape[:2]:
        raise ValueError(
            f"segments of {ids.shape} (height, width) given for an image of "
            f"{image_rgb.shape[:2]}; the same size is expected"
        )
    # The visualizer's own scale would make it treat all objects as small ones.
    size = _larger(ids.shape)
    image_rgb = cv2.resize(image_rgb, size, interpolation=cv2.INTER_CUBIC)
    ids = cv2.resize(ids.astype(np.int32), size, interpolation=cv2.INTER_NEAREST)
    # The visualizer adds areas to its input dicts: give it copies.
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
        rows: Rows of pictures, one picture per title, (H, W, 3) uint8 RGB of any size. Each picture
            is scaled to fit into a cell as large as the largest picture.
        titles: Titles of the columns.

    Returns:
        (H', W', 3) uint8 RGB.

    Raises:
        ValueError: If there is no row, or a row does not have one picture per title.
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
        draw.text((center, TITLE_HEIGHT // 2), printable(title), INK, font, anchor="mm")
    top = TITLE_HEIGHT
    for row, row_height in zip(fitted, heights, strict=True):
        for picture, center in zip(row, centers, strict=True):
            below = top + (row_height - picture.shape[0]) // 2
            paper.paste(Image.fromarray(picture), (center - picture.shape[1] // 2, below))
        top += row_height + MARGIN
    return np.asarray(paper)


def _larger(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the (width, height) in pixels at which to draw an (H, W) image."""
    factor = max(1.0, LEGIBLE_SIDE / max(shape))
    return round(shape[1] * factor), round(shape[0] * factor)


def _fit(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale a picture to the height or width of a cell, and keep its aspect ratio."""
    factor = min(height / picture.shape[0], width / picture.shape[1])
    size = (round(picture.shape[1] * factor), round(picture.shape[0] * factor))
    if size == picture.shape[1::-1]:
        return picture
    return cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
