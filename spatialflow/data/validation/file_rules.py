"""Read panoptic PNGs, and refuse those that would give wrong labels.

Training reads each file once and checks what costs next to nothing: size, bits, format, and whether
PNG and JSON name the same segments. With `thorough`, the functions also compare

- the checksums of a PNG, of which Pillow looks at a part only;
- the end of a PNG behind its last pixel;
- the `area` and `bbox` of segments in the JSON with the pixels of the PNG.

The check command and the truth of an evaluation use `thorough`. A file that fails in training is
read again with `thorough`, so that training and the check command give the same message.

H, W: height and width; S: number of segments that the JSON lists for the image.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from spatialflow.data.panoptic_png import MAX_SEGMENT_ID, index_map
from spatialflow.data.validation.decoding import (
    ListedImage,
    check_bytes,
    open_file,
    read_twice,
    wrong_size,
)
from spatialflow.data.validation.defects import Defect, DefectError, enumeration, shown
from spatialflow.utils.files import why_no_file

_COLOR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey and alpha", 6: "RGB and alpha"}
# Boxes of some converters count the last pixel, those of others do not.
_BOX_TOLERANCE = 1


@dataclass(frozen=True)
class SegmentMap:
    """The pixels of a panoptic PNG, matched with the segments of the JSON.

    Attributes:
        ids: (H, W) int32 segment ids, 0 for void.
        index: (H, W) positions in the JSON's list of segments, S for void, in an unsigned type.
    """

    ids: np.ndarray
    index: np.ndarray


def read_panoptic_png(
    path: str | os.PathLike[str], image: ListedImage | None = None, *, thorough: bool = False
) -> np.ndarray:
    """Read the segment ids of a panoptic PNG.

    Args:
        path: PNG file.
        image: Facts that the JSON lists about the image. None accepts any size.
        thorough: Whether to compare the checksums, too.

    Returns:
        (H, W) int32 segment ids, 0 for void.

    Raises:
        DefectError: If the file cannot be decoded, is not an 8-bit RGB PNG (an alpha channel is
            ignored), or has another size than in the JSON.
    """
    path = os.fspath(path)
    return read_twice(lambda full: _read_ids(path, image, full), path, image, thorough)


def read_segments(
    path: str, segments: Sequence[dict], image: ListedImage, *, thorough: bool = False
) -> SegmentMap:
    """Read a panoptic PNG and compare it with the segments of the JSON.

    Args:
        path: PNG file.
        segments: The image's `segments_info`, with unique ids. `area` and `bbox` may be missing.
        image: Facts that the JSON lists about the image.
        thorough: Whether to compare checksums, areas and boxes, too.

    Raises:
        DefectError: If `read_panoptic_png` raises it, if the PNG has an id that is not listed, or
            if a listed segment has no pixel. It carries all defects of the PNG.
    """
    return read_twice(
        lambda full: _read_segments(path, segments, image, full), path, image, thorough
    )


def _read_ids(path: str, image: ListedImage | None, thorough: bool) -> np.ndarray:
    name = None if image is None else image.name
    with open_file(path, name) as file:
        data = file.read()
    if thorough:
        check_bytes(data, path, name, png=True)
    width, height, depth, color_type = struct.unpack(">IIBB", data[16:26])
    if depth != 8 or color_type not in (2, 6):
        kind = _COLOR_TYPES.get(color_type, f"colour type {color_type}")
        message = f"is a PNG of {depth} bits, {kind}; 8 bits, RGB are expected"
        message += ": segment id = R + 256 G + 65536 B"
        raise DefectError([Defect(path, message, name)])
    if image is not None and (height, width) != image.size:
        raise wrong_size(path, (height, width), image)
    with Image.open(BytesIO(data), formats=("PNG",)) as picture:
        rgb = picture if picture.mode == "RGB" else picture.convert("RGB")
        # Four bytes for each pixel are one number, lowest byte first. The last byte means nothing.
        pixels = np.frombuffer(rgb.tobytes("raw", "RGBX"), dtype="<i4")
    return pixels.reshape(height, width) & MAX_SEGMENT_ID


def _read_segments(
    path: str, segments: Sequence[dict], image: ListedImage, thorough: bool
) -> SegmentMap:
    ids = _read_ids(path, image, thorough)
    index = index_map(ids, [s["id"] for s in segments])
    counts = np.bincount(index.ravel(), minlength=len(segments) + 1)
    areas, unlisted = counts[:-1], counts[-1] - np.count_nonzero(ids == 0)
    messages = []
    if unlisted:
        found = np.unique(ids[index == len(segments)])
        text = enumeration([int(i) for i in found if i != 0])
        messages.append(f"has segment ids that {image.where} does not list: {text}")
    empty = [s["id"] for s, area in zip(segments, areas, strict=True) if area == 0]
    if empty:
        text = enumeration(empty)
        messages.append(f"has no pixel of segments that {image.where} lists: {text}")
    if thorough:
        other = _other_areas(areas.tolist(), segments)
        if other:
            text = enumeration(other)
            messages.append(f"has other areas than {image.where} lists for its segments: {text}")
        moved = [] if messages else _moved_boxes(index, segments)
        if moved:
            text = enumeration(moved)
            messages.append(f"has other boxes than {image.where} lists for its segments: {text}")
    if messages:
        raise DefectError([Defect(path, m, image.name) for m in messages])
    return SegmentMap(ids=ids, index=index)


def _other_areas(areas: Sequence[int], segments: Sequence[dict]) -> list[str]:
    """Return the segments with another area in the JSON than in the PNG."""
    return [
        f"{s['id']} (has {area}, listed {shown(s['area'])})"
        for s, area in zip(segments, areas, strict=True)
        if area and s.get("area", area) != area
    ]


def _moved_boxes(index: np.ndarray, segments: Sequence[dict]) -> list[str]:
    """Return the segments with another box in the JSON than in the PNG.

    A PNG that was turned or shifted keeps its areas, but not its boxes.
    """
    count = len(segments) + 1
    # One pass for rows and one for columns is faster than a mask for each segment.
    seen = []
    for axis, length in enumerate(index.shape):
        lines = np.arange(length).reshape((-1, 1) if axis == 0 else (1, -1))
        touched = np.zeros(length * count, dtype=bool)
        touched[lines * count + index] = True
        seen.append(touched.reshape(length, count))
    in_row, in_column = seen
    moved = []
    for i, segment in enumerate(segments):
        if "bbox" not in segment:
            continue
        (xs,), (ys,) = in_column[:, i].nonzero(), in_row[:, i].nonzero()
        left, top, right, bottom = (int(v) for v in (xs[0], ys[0], xs[-1] + 1, ys[-1] + 1))
        x, y, width, height = segment["bbox"]
        pairs = ((left, x), (top, y), (right, x + width), (bottom, y + height))
        if max(abs(measured - listed) for measured, listed in pairs) > _BOX_TOLERANCE:
            box = [left, top, right - left, bottom - top]
            moved.append(f"{segment['id']} (has {box}, listed {shown(segment['bbox'])})")
    return moved


def missing_files(files: Iterable[tuple[str, str]], where: str) -> list[Defect]:
    """Look for files; list their folders once, since a data set may have 100,000 files.

    Args:
        files: Path of each file, and the name of its image in a `Defect`.
        where: Path of the JSON that lists the files, for messages.

    Returns:
        One defect for each path without a file.
    """
    listed: dict[str, set[str]] = {}
    defects = []
    for path, image in files:
        folder, name = os.path.split(path)
        if folder not in listed:
            listed[folder] = _files_in(folder)
        # Some file systems ignore case, or the form of accents.
        if name not in listed[folder] and not os.path.isfile(path):
            message = why_no_file(path) or "no such file"
            defects.append(Defect(path, f"{message}; {where} lists it", image))
    return defects


def _files_in(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()
