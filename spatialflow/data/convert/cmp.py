"""Read the CMP Facade Database (Tyleček and Šára 2013), as its two archives unpack.

Each image has three files beside one another: `cmp_b0001.jpg`; `cmp_b0001.png`, a palette image of
the classes' numbers 1 … 12; and `cmp_b0001.xml`, the rectangles that the PNG is painted from:

    <object>
        <points> <x>0.1</x> <x>0.2</x> <y>0.5</y> <y>0.7</y> </points>
        <label>3</label> <labelname>window</labelname> …
    </object>
    <object> …

The XML has no root element. Coordinates are parts of the image's sides, and x is the vertical one.
`label_names.txt` of the archives numbers the classes, and has the order in which they are painted.

H, W: height and width; R: number of rectangles.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from spatialflow.data.convert.writer import WORK_FOLDER, Labelled, Source, reduce_image
from spatialflow.data.images import read_image
from spatialflow.data.validation.decoding import open_file, read_twice
from spatialflow.data.validation.defects import Defect, DefectError
from spatialflow.utils.errors import ConfigError, DataError
from spatialflow.utils.files import why_no_file

SUFFIXES = (".jpg", ".png", ".xml")

# Name in the XML, name and supercategory in the JSON, whether each rectangle is one thing; in the
# order of their numbers, from 1. The JSON has a wall, as every image as a whole shows a facade.
_CLASSES = (
    ("background", "background", "outside", False),
    ("facade", "wall", "surface", False),
    ("window", "window", "opening", True),
    ("door", "door", "opening", True),
    ("cornice", "cornice", "relief", False),
    ("sill", "sill", "relief", False),
    ("balcony", "balcony", "structure", True),
    ("blind", "blind", "cover", False),
    ("deco", "deco", "relief", False),
    ("molding", "molding", "relief", False),
    ("pillar", "pillar", "relief", False),
    ("shop", "shop", "opening", True),
)
CATEGORIES = [
    {"id": number, "name": name, "supercategory": supercategory, "isthing": int(isthing)}
    for number, (_, name, supercategory, isthing) in enumerate(_CLASSES, start=1)
]
_NUMBERS = {label: number for number, (label, *_) in enumerate(_CLASSES, start=1)}
_THINGS = {category["id"] for category in CATEGORIES if category["isthing"]}
_BACKGROUND = _NUMBERS["background"]
_CANVAS = 1
"""Segment id of the background, which is painted everywhere before the rectangles."""
_PAINTED = (
    *("background", "facade", "sill", "balcony", "door", "blind"),
    *("molding", "deco", "shop", "window", "cornice", "pillar"),
)
"""Classes in the order in which they are painted: a later one covers those before."""
_DEPTHS = {_NUMBERS[label]: depth for depth, label in enumerate(_PAINTED)}

_DECLARATION = re.compile(r"\s*<\?xml[^>]*\?>")
_LEAST_AGREEMENT = 0.5


class Rectangle(NamedTuple):
    """A rectangle of the XML.

    Attributes:
        number: Number of the class.
        place: Name of the rectangle in messages.
        rows: First and last vertical coordinate, as parts of the height.
        columns: First and last horizontal coordinate, as parts of the width.
    """

    number: int
    place: str
    rows: tuple[float, float]
    columns: tuple[float, float]


def find_sources(folders: Sequence[Path], max_size: int) -> list[Source]:
    """Find the images of the database in folders and their subfolders.

    Args:
        folders: Folders of the user, such as those of the two archives.
        max_size: Longest side of the converted images in pixels; 0 keeps their size.

    Raises:
        ConfigError: If a folder is missing or has no image, or if two images share a name.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder; that of an unzipped archive expected")
        files = {
            path.with_suffix("")
            for path in folder.rglob("cmp_*")
            # An interrupted conversion may have left its files in a folder inside.
            if path.suffix in SUFFIXES and WORK_FOLDER not in path.parts
        }
        if not files:
            raise ConfigError(
                f"{folder}: no file cmp_*.xml in it; the folder of CMP_facade_DB_base.zip or "
                "CMP_facade_DB_extended.zip, unzipped, expected"
            )
        for path in files:
            known = found.setdefault(path.name, path)
            if known != path:
                raise ConfigError(
                    f"{path}: {known} has the same name; one folder with each image expected"
                )
    return [
        Source(stem, functools.partial(_convert, path, max_size)) for stem, path in found.items()
    ]


def _convert(path: Path, max_size: int) -> Labelled:
    """Convert one image.

    Args:
        path: Path of its three files, without a suffix.
        max_size: As in `find_sources`.

    Raises:
        DataError: If a file is missing or broken, or if they contradict one another.
    """
    jpg, png, xml = (path.with_suffix(suffix) for suffix in SUFFIXES)
    rectangles = read_rectangles(xml)
    labels = _read_labels(png)
    pixels = read_image(jpg, thorough=True)
    height, width = pixels.shape[:2]
    if labels.shape != (height, width):
        raise DataError(
            f"{png}: is {labels.shape[1]} x {labels.shape[0]} px, but {jpg.name} is {width} x "
            f"{height}; files of the same image expected"
        )
    _check_coordinates(xml, rectangles, (height, width))
    _check_labels(xml, png, rectangles, labels)
    small = reduce_image(pixels, max_size)
    height, width = small.shape[:2]
    ids, classes, empty = paint(rectangles, (height, width))
    if not (ids == _CANVAS).any():
        del classes[_CANVAS]  # it is no rectangle that others hide
    remarks = [
        f"{xml}: {rectangle.place} has no pixel in {width} x {height} px and is left out; a larger "
        "--max-size expected"
        for rectangle in empty
    ]
    return Labelled(jpg if small is pixels else small, ids, classes, remarks)


def paint(
    rectangles: Sequence[Rectangle], size: tuple[int, int]
) -> tuple[np.ndarray, dict[int, int], list[Rectangle]]:
    """Paint rectangles over one another, in the order of their classes and then of the XML.

    Args:
        rectangles: R rectangles.
        size: Height and width in pixels.

    Returns:
        (H, W) segment ids: one for each thing, and one for all rectangles of a stuff class; the
        class of each id, of hidden ones too; and the rectangles without a pixel.
    """
    ids = np.full(size, _CANVAS, dtype=np.int32)
    classes = {_CANVAS: _BACKGROUND}
    stuff_ids = {_BACKGROUND: _CANVAS}
    empty = []
    for rectangle in sorted(rectangles, key=lambda rectangle: _DEPTHS[rectangle.number]):
        top, bottom = (_edge(part, size[0]) for part in rectangle.rows)
        left, right = (_edge(part, size[1]) for part in rectangle.columns)
        if top >= bottom or left >= right:
            empty.append(rectangle)
            continue
        segment_id = len(classes) + 1
        if rectangle.number not in _THINGS:
            segment_id = stuff_ids.setdefault(rectangle.number, segment_id)
        classes[segment_id] = rectangle.number
        ids[top:bottom, left:right] = segment_id
    return ids, classes, empty


def _edge(part: float, side: int) -> int:
    """Return the border between two pixels that is nearest to a coordinate."""
    return min(max(math.floor(part * side + 0.5), 0), side)


def read_rectangles(path: Path) -> list[Rectangle]:
    """Read the rectangles of an XML.

    Raises:
        DataError: If the file is missing, is no XML, or has a rectangle that is not complete.
    """
    reason = why_no_file(path)
    if reason is not None:
        raise DataError(f"{path}: {reason}; each image needs {', '.join(SUFFIXES)}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8: {error}") from error
    # Only a document type can define entities, which may grow without end.
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"{path}: has a document type; <object> elements alone expected")
    text = _DECLARATION.sub("", text, count=1)
    try:
        root = ElementTree.fromstring(f"<objects>{text}</objects>")
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path}: is not XML: {error}") from error
    objects = list(root.iter("object"))
    if not objects:
        raise DataError(f"{path}: has no <object>; one for each rectangle expected")
    return [_rectangle(path, element, n) for n, element in enumerate(objects, start=1)]


def _rectangle(path: Path, element: ElementTree.Element, position: int) -> Rectangle:
    label = (element.findtext("labelname") or "").strip().lower()
    place = f"object {position}"
    if label not in _NUMBERS:
        names = ", ".join(_NUMBERS)
        raise DataError(f"{path}: {place}: labelname {label!r} given, one of {names} expected")
    sides = []
    for axis in "xy":
        given = [(one.text or "").strip() for one in element.iterfind(f"points/{axis}")]
        try:
            values = [float(one) for one in given]
        except ValueError:
            values = []
        if len(values) != 2 or not all(map(math.isfinite, values)):
            raise DataError(f"{path}: {place}: {axis} {given} given, two finite numbers expected")
        sides.append((min(values), max(values)))
    return Rectangle(_NUMBERS[label], f"{place} ({label})", *sides)


def _read_labels(path: Path) -> np.ndarray:
    """Return the (H, W) numbers of the classes of a PNG.

    Raises:
        DataError: If it is missing, broken or no palette image.
    """

    def read(_: bool) -> np.ndarray:
        with open_file(str(path), None) as file, Image.open(file, formats=("PNG",)) as picture:
            if picture.mode not in ("P", "L"):
                message = f"has pixels of mode {picture.mode}; a palette image expected"
                raise DefectError([Defect(str(path), message)])
            return np.asarray(picture)

    return read_twice(read, str(path), None, thorough=False)


def _check_coordinates(path: Path, rectangles: Sequence[Rectangle], size: tuple[int, int]) -> None:
    """Refuse a rectangle that is outside of its image by more than a pixel, which is rounding."""
    for rectangle in rectangles:
        for axis, values, side in zip("xy", rectangle[2:], size, strict=True):
            for value in values:
                if not -1 <= value * side <= side + 1:
                    raise DataError(
                        f"{path}: {rectangle.place}: {axis} is {value:g}, a number from 0 to 1 "
                        "expected"
                    )


def _check_labels(
    xml: Path, png: Path, rectangles: Sequence[Rectangle], labels: np.ndarray
) -> None:
    """Refuse rectangles that are not those of the PNG, such as of another image.

    Background and wall would agree by chance, as they cover most of every image.
    """
    ids, classes, _ = paint(rectangles, labels.shape)
    numbers = np.array([0, *classes.values()])[ids]
    counted = ~np.isin(labels, (_BACKGROUND, _NUMBERS["facade"]))
    if counted.any() and (numbers == labels)[counted].mean() < _LEAST_AGREEMENT:
        raise DataError(
            f"{xml}: its rectangles, painted, are not the classes in {png.name}; files of the same "
            "image expected"
        )
