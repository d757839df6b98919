"""Textures and shapes of the generated scenes, as functions of pixel coordinates.

A texture returns values from 0 to 1 that blend two colours, so any class can have any colour.
h, w: height and width of the window to draw.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Texture = Callable[[np.ndarray, np.ndarray, np.random.Generator, float], np.ndarray]
"""Function from y (h, w), x (h, w), generator and scale to (h, w) values from 0 to 1.

Scale 1 fits scenes of 192 px.
"""


def _soft_step(value: np.ndarray, width: float) -> np.ndarray:
    """Return 0 for negative and 1 for positive values, with a soft step of a given width."""
    return np.clip(0.5 + value / width, 0.0, 1.0)


def _rotated(y: np.ndarray, x: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    cosine, sine = np.cos(angle), np.sin(angle)
    return cosine * y - sine * x, sine * y + cosine * x


def clouds(y: np.ndarray, x: np.ndarray, rng: np.random.Generator, scale: float) -> np.ndarray:
    """Return smooth blobs without direction."""
    del x
    value = np.zeros(y.shape)
    for sigma, weight in ((7.0, 1.0), (3.0, 0.45)):
        noise = cv2.GaussianBlur(rng.standard_normal(y.shape), (0, 0), sigma * scale)
        value += weight * noise / max(float(noise.std()), 1e-6)
    return _soft_step(value, 2.2)


def bricks(y: np.ndarray, x: np.ndarray, rng: np.random.Generator, scale: float) -> np.ndarray:
    """Return rows of bricks, each row shifted by half a brick."""
    height = rng.uniform(8, 10) * scale
    width = 2.1 * height
    y, x = _rotated(y, x, rng.uniform(-0.08, 0.08))
    y, x = y + rng.uniform(0, height), x + rng.uniform(0, width)
    row = np.floor(y / height)
    across = (x + row * width / 2) % width
    mortar = np.minimum(
        np.minimum(y % height, height - y % height), np.minimum(across, width - across)
    )
    return _soft_step(mortar - 1.1 * scale, 1.0)


def water(y: np.ndarray, x: np.ndarray, rng: np.random.Generator, scale: float) -> np.ndarray:
    """Return wavy, nearly horizontal stripes."""
    period = rng.uniform(8, 11) * scale
    swing = rng.uniform(0.18, 0.3) * period
    length = rng.uniform(26, 38) * scale
    bend = swing * np.sin(2 * np.pi * x / length + rng.uniform(0, 2 * np.pi))
    y, _ = _rotated(y + bend, x, rng.uniform(-0.12, 0.12))
    return 0.5 + 0.5 * np.sin(2 * np.pi * y / period + rng.uniform(0, 2 * np.pi))


def gravel(y: np.ndarray, x: np.ndarray, rng: np.random.Generator, scale: float) -> np.ndarray:
    """Return pebbles of different sizes on an irregular grid."""
    pitch = rng.uniform(7.5, 9.5) * scale
    rows, columns = (int(v.max() / pitch) + 3 for v in (y, x))
    shift = rng.uniform(-0.22, 0.22, (2, rows, columns))
    radius = rng.uniform(0.26, 0.42, (rows, columns))
    row, column = np.floor(y / pitch).astype(int), np.floor(x / pitch).astype(int)
    dy = y / pitch - row - 0.5 - shift[0, row, column]
    dx = x / pitch - column - 0.5 - shift[1, row, column]
    return _soft_step((radius[row, column] - np.hypot(dy, dx)) * pitch, 1.2)


def plain(y: np.ndarray, x: np.ndarray, rng: np.random.Generator, scale: float) -> np.ndarray:
    """Return a soft gradient."""
    angle = rng.uniform(0, 2 * np.pi)
    y, _ = _rotated(y - y.mean(), x - x.mean(), angle)
    return np.clip(0.25 + 0.35 * y / (40 * scale), 0.0, 1.0)


def stripes(y: np.ndarray, x: np.ndarray, rng: np.random.Generator, scale: float) -> np.ndarray:
    """Return straight stripes in a random direction."""
    period = rng.uniform(6, 11) * scale
    y, _ = _rotated(y, x, rng.uniform(0, np.pi))
    return _soft_step(np.sin(2 * np.pi * y / period + rng.uniform(0, 2 * np.pi)), 0.8)


def checks(y: np.ndarray, x: np.ndarray, rng: np.random.Generator, scale: float) -> np.ndarray:
    """Return a checkerboard in a random direction."""
    period = rng.uniform(10, 15) * scale
    y, x = _rotated(y, x, rng.uniform(0, np.pi))
    product = np.sin(2 * np.pi * y / period) * np.sin(2 * np.pi * x / period)
    return _soft_step(product, 0.35)


def dots(y: np.ndarray, x: np.ndarray, rng: np.random.Generator, scale: float) -> np.ndarray:
    """Return round dots on a grid in a random direction."""
    pitch = rng.uniform(8, 11) * scale
    y, x = _rotated(y, x, rng.uniform(0, np.pi))
    distance = np.hypot(y % pitch - pitch / 2, x % pitch - pitch / 2)
    return _soft_step(0.3 * pitch - distance, 1.2)


STUFF_TEXTURES: dict[str, Texture] = {
    "cloud": clouds,
    "brick": bricks,
    "gravel": gravel,
    "water": water,
}
"""Texture of each stuff class, in the order from top to bottom of most scenes."""

THING_TEXTURES: tuple[Texture, ...] = (plain, plain, plain, stripes, checks, dots, clouds)
"""Textures of things; each thing class can have each of them."""


def _disc(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.hypot(y, x) - 1


def _ring(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(y, x) - 0.72) - 0.28


def _square(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(y), np.abs(x)) - 1


def _triangle(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.maximum(y, np.abs(x) * np.sqrt(0.75) - 0.5 * y) - 0.5


def _star(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the distance to a star with five points.

    The plane is folded onto one half of a point, whose edge is a straight line.
    """
    inner, wedge = 0.45, np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + wedge) % (2 * wedge) - wedge)
    radius = np.hypot(y, x)
    along, across = radius * np.cos(angle), radius * np.sin(angle)
    # The edge runs from (1, 0) to the inner corner.
    corner = inner * np.cos(wedge), inner * np.sin(wedge)
    normal = np.array([corner[1], 1 - corner[0]]) / np.hypot(corner[1], 1 - corner[0])
    return normal[0] * (along - 1) + normal[1] * across


SHAPES: dict[str, tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], float]] = {
    "disc": (_disc, np.pi),
    "ring": (_ring, np.pi * (1 - 0.44**2)),
    "square": (_square, 4.0),
    "triangle": (_triangle, 3 * np.sqrt(3) / 4),
    "star": (_star, 5 * 0.45 * np.sin(np.pi / 5)),
}
"""Outline and area of each thing class at unit size.

The outline is a function from y and x to the signed distance, negative inside.
"""
