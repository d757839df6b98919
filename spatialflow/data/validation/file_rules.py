"""Read images and panoptic PNGs, and refuse those that would give wrong labels.

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
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TypeVar

import numpy as np
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from spatialflow.data.panoptic_png import MAX_SEGMENT_ID, index_map
from spatialflow.data.validation.defects import Defect, DefectError, enumeration, shown

T = TypeVar("T")

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey and alpha", 6: "RGB and alpha"}
# Pillow would cut the values of these modes off at 255.
_DEEP_MODES = ("I", "F")
# Boxes of some converters count the last pixel, those of others do not.
_BOX_TOLERANCE = 1


@dataclass(frozen=True)
class ListedImage:
    """The facts that a JSON lists about an image, to compare its files with.

    Attributes:
        name: Name of the image in a `Defect`.
        size: (height, width) in pixels.
        where: Path of the JSON, for messages.
    """

    name: str
    size: tuple[int, int]
    where: str = "the JSON"


@dataclass(frozen=True)
class SegmentMap:
    """The pixels of a panoptic PNG, matched with the segments of the JSON.

    Attributes:
        ids: (H, W) int32 segment ids, 0 for void.
        index: (H, W) positions in the JSON's list of segments, S for void, in an unsigned type.
    """

    ids: np.ndarray
    index: np.ndarray


def read_image(
    path: str, image: ListedImage, format: str = "RGB", *, thorough: bool = False
) -> np.ndarray:
    """Read an image as Detectron2 does, turned as its EXIF data demand.

    Args:
        path: Image file.
        image: Facts that the JSON lists about the image.
        format: "RGB", "BGR" or "L".
        thorough: Whether to compare the checksums of a PNG, too.

    Returns:
        (H, W, channels) pixels.

    Raises:
        DefectError: If the file cannot be decoded, has more than 8 bits for each channel, or has
            another size than in the JSON.
    """
    return _read(lambda full: _read_image(path, image, format, full), path, image, thorough)


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
    return _read(lambda full: _read_ids(path, image, full), path, image, thorough)


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
    return _read(lambda full: _read_segments(path, segments, image, full), path, image, thorough)


def _read(read: Callable[[bool], T], path: str, image: ListedImage | None, thorough: bool) -> T:
    """Call a reader; after an error call it again with all checks, for the checker's message."""
    name = None if image is None else image.name
    for full in [True] if thorough else [False, True]:
        try:
            return read(full)
        except DefectError as error:
            failure = error
        except Exception as error:  # broken bytes make a decoder raise almost anything
            failure = DefectError([Defect(path, _reason(error), name)])
    raise failure


def _read_image(path: str, image: ListedImage, format: str, thorough: bool) -> np.ndarray:
    with PathManager.open(path, "rb") as file:
        if thorough:
            data = file.read()
            _check_bytes(data, path, image.name, png=data.startswith(_PNG_SIGNATURE))
            file.seek(0)
        with Image.open(file) as picture:
            mode, (width, height) = picture.mode, picture.size
            if mode.split(";")[0] in _DEEP_MODES:
                message = f"has pixels of more than 8 bits (Pillow's mode {mode})"
                message += "; 8 bits are expected"
                raise DefectError([Defect(path, message, image.name)])
            # EXIF data may swap the sides. Do not unpack pixels of any other size: a small file can
            # claim more pixels than fit into memory.
            if image.size not in ((height, width), (width, height)):
                raise _wrong_size(path, (height, width), image)
            # Detectron2's read_image ignores errors in EXIF data. Reading those of a PNG decodes
            # the pixels, so it would ignore broken pixels, too. Decode them before.
            picture.load()
            turned = detection_utils._apply_exif_orientation(picture)
            pixels = detection_utils.convert_PIL_to_numpy(turned, format)
    if pixels.shape[:2] != image.size:
        raise _wrong_size(path, pixels.shape[:2], image)
    return pixels


def _read_ids(path: str, image: ListedImage | None, thorough: bool) -> np.ndarray:
    name = None if image is None else image.name
    with PathManager.open(path, "rb") as file:
        data = file.read()
    if thorough:
        _check_bytes(data, path, name, png=True)
    width, height, depth, color_type = struct.unpack(">IIBB", data[16:26])
    if depth != 8 or color_type not in (2, 6):
        kind = _COLOR_TYPES.get(color_type, f"colour type {color_type}")
        message = f"is a PNG of {depth} bits, {kind}; 8 bits, RGB are expected"
        message += ": segment id = R + 256 G + 65536 B"
        raise DefectError([Defect(path, message, name)])
    if image is not None and (height, width) != image.size:
        raise _wrong_size(path, (height, width), image)
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


def _wrong_size(path: str, found: Sequence[int], image: ListedImage) -> DefectError:
    (height, width), expected = found, image.size
    message = f"is {width} x {height} px, but {image.where} says {expected[1]} x {expected[0]}"
    return DefectError([Defect(path, message, image.name)])


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):  # its text contains a memory address
        return "is not a picture of a known format, or its first bytes are broken"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return f"cannot be decoded: {str(error) or type(error).__name__}"


def _check_bytes(data: bytes, path: str, name: str | None, *, png: bool) -> None:
    damage = png_damage(data) if png and data else None
    if not data:
        damage = "is empty"
    if damage is not None:
        raise DefectError([Defect(path, damage, name)])


def png_damage(data: bytes) -> str | None:
    """Compare all checksums of a PNG; Pillow compares only a part of them.

    Args:
        data: Content of the whole file.

    Returns:
        Description of the first damage, or None.
    """
    if not data.startswith(_PNG_SIGNATURE):
        return "is not a PNG"
    position, kind = len(_PNG_SIGNATURE), b""
    while kind != b"IEND":
        head = data[position : position + 8]
        if len(head) < 8:
            return "is truncated: the file ends before its IEND chunk"
        length, kind = struct.unpack(">I4s", head)
        if (position == len(_PNG_SIGNATURE)) != (kind == b"IHDR" and length == 13):
            return "is damaged: a PNG begins with an IHDR chunk of 13 bytes"
        end = position + 8 + length
        if end + 4 > len(data):
            name = kind.decode("latin-1")
            return f"is truncated: the file ends inside its {name} chunk at byte {position}"
        if zlib.crc32(memoryview(data)[position + 4 : end]) != int.from_bytes(data[end : end + 4]):
            name = kind.decode("latin-1")
            return f"is damaged: the checksum of its {name} chunk at byte {position} is wrong"
        position = end + 4
    return None


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
            message = "is not a file" if os.path.exists(path) else "no such file"
            defects.append(Defect(path, f"{message}; {where} lists it", image))
    return defects


def _files_in(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()
