"""Reading images and panoptic PNGs so that whatever is wrong with them becomes a `Problem`.

H, W: height and width.
"""

import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from spatialflow.data.validation.defects import Problem
from spatialflow.data.validation.entry_rules import MAX_SEGMENT_ID

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey and alpha", 6: "RGB and alpha"}
# Pillow would cut their values off at 255.
_DEEP_MODES = ("I", "F")


@dataclass(frozen=True)
class ImageFiles:
    """What the rules need to know of an image.

    Attributes:
        name: what problems call the image.
        size: (height, width) in the JSON.
        where: the JSON, for messages.
    """

    name: str
    size: tuple[int, int]
    where: str = "the JSON"


def read_image(path: str, image: ImageFiles, format: str = "RGB") -> np.ndarray | Problem:
    """Reads an image as Detectron2 does, turned as its EXIF data say.

    Args:
        path: the file.
        image: what the JSON says of it.
        format: "RGB", "BGR" or "L".

    Returns:
        (H, W, channels) pixels, or what is wrong with the file.
    """
    try:
        with PathManager.open(path, "rb") as file:
            start = file.read(len(_PNG_SIGNATURE))
            if not start:
                return Problem(path, "is empty", image.name)
            damage = png_damage(start + file.read()) if start == _PNG_SIGNATURE else None
            if damage is not None:
                return Problem(path, damage, image.name)
            file.seek(0)
            with Image.open(file) as picture:
                mode, (width, height) = picture.mode, picture.size
        if mode.split(";")[0] in _DEEP_MODES:
            message = f"has pixels of more than 8 bits (Pillow's mode {mode}); 8 bits are expected"
            return Problem(path, message, image.name)
        # EXIF data may swap the sides. Pixels of any other size are not unpacked: a small file can
        # claim to hold a picture that no memory holds.
        if image.size not in ((height, width), (width, height)):
            return _wrong_size(path, (height, width), image)
        pixels = detection_utils.read_image(path, format=format)
    except Exception as error:  # broken bytes make a decoder raise almost anything
        return Problem(path, _reason(error), image.name)
    if pixels.shape[:2] != image.size:
        return _wrong_size(path, pixels.shape[:2], image)
    return pixels


def read_ids(path: str, image: ImageFiles | None = None) -> np.ndarray | Problem:
    """Reads the segment ids of a panoptic PNG.

    Args:
        path: the file.
        image: what the JSON says of its image; None leaves out the check of the size.

    Returns:
        (H, W) int32 ids, or what is wrong with the file.
    """
    name = None if image is None else image.name
    try:
        with PathManager.open(path, "rb") as file:
            data = file.read()
        if not data:
            return Problem(path, "is empty", name)
        damage = png_damage(data)
        if damage is not None:
            return Problem(path, damage, name)
        width, height, depth, color_type = struct.unpack(">IIBB", data[16:26])
        if depth != 8 or color_type not in (2, 6):
            kind = _COLOR_TYPES.get(color_type, f"colour type {color_type}")
            message = f"is a PNG of {depth} bits, {kind}; 8 bits, RGB are expected"
            return Problem(path, f"{message}: segment id = R + 256 G + 65536 B", name)
        if image is not None and (height, width) != image.size:
            return _wrong_size(path, (height, width), image)
        with Image.open(BytesIO(data), formats=("PNG",)) as picture:
            # Four bytes a pixel, of which the last says nothing: a number of the lowest byte first.
            pixels = np.asarray(picture.convert("RGB").convert("RGBX"))
    except Exception as error:  # broken bytes make a decoder raise almost anything
        return Problem(path, _reason(error), name)
    return pixels.view("<i4")[..., 0] & MAX_SEGMENT_ID


def _wrong_size(path: str, found: Sequence[int], image: ImageFiles) -> Problem:
    (height, width), expected = found, image.size
    message = f"is {width} x {height} px, but {image.where} says {expected[1]} x {expected[0]}"
    return Problem(path, message, image.name)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):  # its text has an address in memory
        return "is not a picture of a known format, or its first bytes are broken"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return f"cannot be decoded: {str(error) or type(error).__name__}"


def png_damage(data: bytes) -> str | None:
    """Compares a PNG's checksums, which Pillow does for a part of them only.

    Args:
        data: the whole file.

    Returns:
        what is wrong, or None.
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


def missing_files(files: Iterable[tuple[str, str]], where: str) -> list[Problem]:
    """Looks for files by listing folders, since a data set may have 100,000 of them.

    Args:
        files: paths, and what problems call the image.
        where: the JSON that lists them.
    """
    listed: dict[str, set[str]] = {}
    problems = []
    for path, image in files:
        folder, name = os.path.split(path)
        if folder not in listed:
            listed[folder] = _files_in(folder)
        # A file system may not care about case or about the form of accents.
        if name not in listed[folder] and not os.path.isfile(path):
            message = "is not a file" if os.path.exists(path) else "no such file"
            problems.append(Problem(path, f"{message}; {where} lists it", image))
    return problems


def _files_in(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()
