"""Generate panoptic scenes, and write them as a COCO panoptic data set.

Four stuff classes (cloud, brick, gravel, water) fill the image in bands with wavy borders. Things
of five classes (disc, ring, square, triangle, star) lie on them and on each other. All classes use
the same colours, and things have textures like those of stuff. So the class of a thing follows from
its shape only, and the class of stuff from texture and place.

H, W: height and width of a scene in pixels.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from spatialflow.data.panoptic_png import write_panoptic_png
from spatialflow.data.synthetic.textures import SHAPES, STUFF_TEXTURES, THING_TEXTURES
from spatialflow.utils.errors import ConfigError
from spatialflow.utils.files import errors_name, write_json

logger = logging.getLogger(__name__)

SCENE_COLORS = np.array(
    [
        (44, 62, 96),
        (64, 132, 138),
        (222, 188, 130),
        (190, 92, 64),
        (124, 140, 70),
        (126, 82, 122),
        (238, 228, 206),
        (134, 150, 166),
    ],
    dtype=np.float64,
)
"""(8, 3) RGB colours that all classes share."""

_SUPERCATEGORIES = {
    **dict.fromkeys(("disc", "ring"), "round"),
    **dict.fromkeys(("square", "triangle", "star"), "angular"),
    **dict.fromkeys(("cloud", "brick"), "upper"),
    **dict.fromkeys(("gravel", "water"), "lower"),
}
_LABEL_COLORS = {
    "disc": (220, 60, 60),
    "ring": (250, 150, 40),
    "square": (60, 90, 220),
    "triangle": (160, 60, 200),
    "star": (245, 215, 50),
    "cloud": (130, 190, 230),
    "brick": (150, 110, 90),
    "gravel": (140, 140, 140),
    "water": (40, 130, 150),
}

SCENE_CATEGORIES = [
    {
        "id": i + 1,
        "name": name,
        "isthing": int(name in SHAPES),
        "color": list(_LABEL_COLORS[name]),
        "supercategory": _SUPERCATEGORIES[name],
    }
    for i, name in enumerate([*SHAPES, *STUFF_TEXTURES])
]
"""List `categories` of the JSON."""

_CATEGORY_IDS = {c["name"]: c["id"] for c in SCENE_CATEGORIES}

# Sizes and areas are for scenes of 192 px; others scale them by their shorter side.
_NOMINAL_SIDE = 192
_THINGS = (4, 9)
_SMALL = (15.0, 26.0)
_LARGE = (28.0, 62.0)
_MIN_VISIBLE_PIXELS = 80
_MIN_VISIBLE_SHARE = 0.45
_MIN_INSIDE_SHARE = 0.75  # the rest may lie outside the image
_STRETCH = 0.08  # length over width of a thing is at most exp(2 * 0.08)
_MIN_STUFF_PIXELS = 400
_PLACING_ATTEMPTS = 12


@dataclass
class Scene:
    """One scene.

    Attributes:
        image: (H, W, 3) uint8 RGB pixels.
        ids: (H, W) int32 segment ids.
        segments: List `segments_info` of the JSON.
    """

    image: np.ndarray
    ids: np.ndarray
    segments: list[dict]


def generate_scenes(
    root: str | Path, *, count: int, seed: int = 0, size: tuple[int, int] = (192, 192)
) -> None:
    """Write scenes as a COCO panoptic data set, for `register_panoptic`.

    Scene i depends on seed and i only: a larger `count` adds scenes and does not change the others.

    Args:
        root: Folder to write `images/*.png`, `panoptic/*.png` and `panoptic.json` into.
        count: Number of scenes, 1 or more.
        seed: Seed of the set. Sets with different seeds share no scene.
        size: Height and width in pixels, each 64 or more.

    Raises:
        ConfigError: If count or size is too small.
    """
    if count < 1:
        raise ConfigError(f"count is {count}; 1 or more is expected")
    root = Path(root)
    for folder in ("images", "panoptic"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(count):
        scene = generate_scene(seed, index, size)
        file_name = f"{index:06d}.png"
        with errors_name(root / "images" / file_name):
            Image.fromarray(scene.image).save(root / "images" / file_name)
        with errors_name(root / "panoptic" / file_name):
            write_panoptic_png(root / "panoptic" / file_name, scene.ids)
        images.append(
            {"id": index + 1, "file_name": file_name, "height": size[0], "width": size[1]}
        )
        annotations.append(
            {"image_id": index + 1, "file_name": file_name, "segments_info": scene.segments}
        )
    content = {
        "info": {"description": f"generated panoptic scenes, seed {seed}"},
        "images": images,
        "annotations": annotations,
        "categories": SCENE_CATEGORIES,
    }
    write_json(root / "panoptic.json", content, indent=None)
    logger.info("wrote %d scenes to %s", count, root)


def generate_scene(seed: int, index: int, size: tuple[int, int] = (192, 192)) -> Scene:
    """Draw one scene.

    Args:
        seed: Seed of the set.
        index: Number of the scene in the set, from 0.
        size: Height and width in pixels, each 64 or more.

    Raises:
        ConfigError: If the size is too small.
    """
    if min(size) < 64:
        raise ConfigError(f"size is {size}; height and width of at least 64 px are expected")
    rng = np.random.default_rng([seed, index])
    while True:
        painter = _Painter(rng, size)
        painter.paint_stuff()
        painter.paint_things()
        segments = painter.segments()
        # Things may cover a band up to a part too small to label: then draw another scene.
        if all(
            s["area"] >= _MIN_STUFF_PIXELS * painter.scale**2
            for s in segments
            if not SCENE_CATEGORIES[s["category_id"] - 1]["isthing"]
        ):
            return Scene(painter.finish(), painter.ids, segments)


class _Painter:
    """Draw a scene from back to front."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng = rng
        self.scale = min(size) / _NOMINAL_SIDE
        self.y, self.x = np.mgrid[: size[0], : size[1]].astype(np.float64)
        self.color = np.zeros((*size, 3))
        self.ids = np.zeros(size, dtype=np.int32)
        self.classes: dict[int, str] = {}  # segment id → class
        self.full_areas: dict[int, float] = {}  # thing's id → its area if nothing hid it

    def paint_stuff(self) -> None:
        """Fill the image with two to four bands."""
        names = list(STUFF_TEXTURES)
        number = int(self.rng.choice([2, 3, 4], p=[0.3, 0.5, 0.2]))
        chosen = sorted(self.rng.choice(len(names), number, replace=False))
        if self.rng.random() < 0.2:  # the place is a hint, not a rule
            self.rng.shuffle(chosen)
        band = self._bands(number)
        for position, choice in enumerate(chosen):
            where = band == position
            name = names[choice]
            self.ids[where] = self._new_id(name)
            texture = STUFF_TEXTURES[name](self.y, self.x, self.rng, self.scale)
            first, second = self._two_colors()
            blended = first + texture[..., None] * (second - first)
            self.color[where] = blended[where]

    def _bands(self, number: int) -> np.ndarray:
        """Return the (H, W) number of the band of each pixel."""
        height, width = self.ids.shape
        slope = self.rng.uniform(-0.3, 0.3)
        level = self.y / height + slope * (self.x / width - 0.5)
        shares = 1.0 / number * self.rng.uniform(0.75, 1.25, number)
        borders = np.cumsum(shares / shares.sum())[:-1]
        band = np.zeros(self.ids.shape, dtype=int)
        for border in borders:
            wave = np.zeros(width)
            for waves, swing in ((1, 0.03), (2, 0.02), (4, 0.012)):
                phase = self.rng.uniform(0, 2 * np.pi)
                frequency = waves * self.rng.uniform(0.7, 1.3)
                wave += swing * np.sin(2 * np.pi * frequency * self.x[0] / width + phase)
            band += level > border + wave
        return band

    def paint_things(self) -> None:
        """Draw things onto the image, mostly large ones first."""
        number = int(self.rng.integers(_THINGS[0], _THINGS[1] + 1))
        small = self.rng.random(number) < 0.4
        sizes = np.where(
            small,
            np.exp(self.rng.uniform(math.log(_SMALL[0]), math.log(_SMALL[1]), number)),
            np.exp(self.rng.uniform(math.log(_LARGE[0]), math.log(_LARGE[1]), number)),
        )
        order = np.argsort(-sizes * self.rng.uniform(0.5, 1.5, number))
        for side in sizes[order] * self.scale:
            name = str(self.rng.choice(list(SHAPES)))
            for _ in range(_PLACING_ATTEMPTS):
                if self._try_thing(name, float(side)):
                    break

    def _try_thing(self, name: str, side: float) -> bool:
        """Draw a thing if it does not hide another one too much.

        Args:
            name: Class of the thing.
            side: Square root of its area in pixels.

        Returns:
            Whether the thing was drawn.
        """
        window, distance = self._outline_distance(name, side)
        inside = distance < 0
        if inside.sum() < _MIN_INSIDE_SHARE * side**2:
            return False
        least = _MIN_VISIBLE_PIXELS * self.scale**2
        for hidden_id in np.unique(self.ids[window][inside]):
            if hidden_id in self.full_areas:
                left = (self.ids == hidden_id).sum() - (self.ids[window][inside] == hidden_id).sum()
                if left < max(least, _MIN_VISIBLE_SHARE * self.full_areas[hidden_id]):
                    return False
        self._draw_thing(window, distance)
        segment_id = self._new_id(name)
        self.ids[window][inside] = segment_id
        self.full_areas[segment_id] = side**2
        return True

    def _outline_distance(self, name: str, side: float) -> tuple[tuple[slice, slice], np.ndarray]:
        """Choose a place for an outline.

        Args:
            name: Class of the thing.
            side: Square root of its area in pixels.

        Returns:
            Window of the image with the thing and its shadow, and the (h, w) signed distance of
            its pixels to the outline, in pixels, negative inside.
        """
        shape, unit_area = SHAPES[name]
        radius = side / np.sqrt(unit_area)
        size = np.array(self.ids.shape)
        center = self.rng.uniform(0.05, 0.95, 2) * size
        angle = self.rng.uniform(0, 2 * np.pi)
        stretch = np.exp(self.rng.uniform(-_STRETCH, _STRETCH))
        # The corner of a square is the most distant point of all outlines.
        reach = np.sqrt(2) * np.exp(_STRETCH) * radius + 8 * self.scale
        first = np.maximum(center - reach, 0).astype(int)
        last = np.minimum(center + reach + 1, size).astype(int)
        window = slice(first[0], last[0]), slice(first[1], last[1])
        dy, dx = self.y[window] - center[0], self.x[window] - center[1]
        v = (np.cos(angle) * dy - np.sin(angle) * dx) / (radius * stretch)
        u = (np.sin(angle) * dy + np.cos(angle) * dx) / (radius / stretch)
        return window, shape(v, u) * radius

    def _draw_thing(self, window: tuple[slice, slice], distance: np.ndarray) -> None:
        """Blend a thing and its shadow into the image."""
        rng, scale, color = self.rng, self.scale, self.color[window]
        drop = max(1, round(2 * scale))
        height, width = distance.shape
        moved = np.pad(distance, ((drop, 0), (drop, 0)), mode="edge")[:height, :width]
        shadow = np.clip(0.5 - moved / (4 * scale), 0, 1)
        color *= 1 - 0.35 * shadow[..., None]
        texture = THING_TEXTURES[rng.integers(len(THING_TEXTURES))]
        blend = texture(self.y[window], self.x[window], rng, scale)[..., None]
        first, second = self._two_colors(away_from=color[distance < 0].mean(axis=0))
        paint = first + blend * (second - first)
        # A darker rim makes a thing visible on a ground of its own colour.
        rim = np.clip(1 + distance / (2.2 * scale), 0, 1)
        paint *= 1 - 0.5 * rim[..., None]
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        color += cover * (paint - color)

    def _two_colors(self, away_from: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return two different colours of the palette, slightly changed.

        Args:
            away_from: (3,) colour that the first one should differ from.
        """
        colors = SCENE_COLORS + self.rng.normal(0, 8, SCENE_COLORS.shape)
        order = self.rng.permutation(len(colors))
        if away_from is not None:
            far = np.linalg.norm(colors[order] - away_from, axis=1) > 90
            order = np.concatenate([order[far], order[~far]])
        first = colors[order[0]]
        distances = np.linalg.norm(colors[order[1:]] - first, axis=1)
        second = colors[order[1:]][np.argmax(distances > 60)]
        return first, second

    def _new_id(self, name: str) -> int:
        """Return an unused segment id; its colour in the PNG is similar to that of the class."""
        while True:
            near = np.array(_LABEL_COLORS[name]) + self.rng.integers(-25, 26, 3)
            red, green, blue = (int(v) for v in near.clip(1, 255))
            segment_id = red + 256 * green + 65536 * blue
            if segment_id not in self.classes:
                self.classes[segment_id] = name
                return segment_id

    def segments(self) -> list[dict]:
        """Return the `segments_info` of the scene."""
        segments = []
        for segment_id, name in self.classes.items():
            rows, columns = np.nonzero(self.ids == segment_id)
            if rows.size == 0:
                # Only stuff can be hidden completely; generate_scene then draws another scene.
                box = [0, 0, 0, 0]
            else:
                left, top = int(columns.min()), int(rows.min())
                box = [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]
            segments.append(
                {
                    "id": segment_id,
                    "category_id": _CATEGORY_IDS[name],
                    "iscrowd": 0,
                    "bbox": box,
                    "area": int(rows.size),
                }
            )
        return segments

    def finish(self) -> np.ndarray:
        """Return the (H, W, 3) uint8 image, with light and grain."""
        height, width = self.ids.shape
        angle = self.rng.uniform(0, 2 * np.pi)
        light = np.cos(angle) * (self.y / height - 0.5) + np.sin(angle) * (self.x / width - 0.5)
        picture = self.color * (1 + 0.22 * light[..., None])
        picture = cv2.GaussianBlur(picture, (0, 0), 0.5)
        picture += self.rng.normal(0, 5, picture.shape)
        return picture.clip(0, 255).astype(np.uint8)
