"""Open and decode a file of a data set: facts to compare it with, damage, reasons in words."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, TypeVar

from detectron2.utils.file_io import PathManager
from PIL import UnidentifiedImageError

from spatialflow.data.validation.defects import Defect, DefectError
from spatialflow.utils.files import why_no_file

T = TypeVar("T")

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


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


def read_twice(
    read: Callable[[bool], T], path: str, image: ListedImage | None, thorough: bool
) -> T:
    """Call a reader; after an error call it again with all checks, for the checker's message.

    Args:
        read: Reader; its argument tells whether to make all checks.
        path: File that it reads.
        image: Facts that the JSON lists about the image; None for a file of no data set.
        thorough: Whether the first call makes all checks, too.

    Raises:
        DefectError: If the reader raises any error.
    """
    name = None if image is None else image.name
    for full in [True] if thorough else [False, True]:
        try:
            return read(full)
        except DefectError as error:
            failure = error
        except Exception as error:  # broken bytes make a decoder raise almost anything
            failure = DefectError([Defect(path, _reason(error), name)])
    raise failure


def open_file(path: str, name: str | None) -> IO[bytes]:
    """Open a regular file; a FIFO or a device could block for ever.

    Args:
        path: File, or a name for Detectron2's `PathManager`, such as a URL.
        name: Name of the image in a `Defect`.

    Raises:
        DefectError: If the path is no regular file.
    """
    message = None if "://" in path else why_no_file(path)
    if message is not None:
        raise DefectError([Defect(path, message, name)])
    return PathManager.open(path, "rb")


def wrong_size(
    path: str, found: Sequence[int], image: ListedImage, turned_by: str = ""
) -> DefectError:
    """Return the error for a file of another size than in the JSON.

    Args:
        path: The file.
        found: Its (height, width) in pixels.
        image: Facts that the JSON lists about the image.
        turned_by: What has turned the image, if only its turned size is wrong.
    """
    (height, width), expected = found, image.size
    message = f"is {width} x {height} px, but {image.where} says {expected[1]} x {expected[0]}"
    if turned_by:
        message = (
            f"is {width} x {height} px after the turn that {turned_by} asks for, but "
            f"{image.where} says {expected[1]} x {expected[0]}, as before the turn: turn the "
            f"annotations, or remove {turned_by} from the file"
        )
    return DefectError([Defect(path, message, image.name)])


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):  # its text contains a memory address
        return "is not a picture of a known format, or its first bytes are broken"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    if isinstance(error, MemoryError):
        return "does not fit into memory"
    return f"cannot be decoded: {str(error) or type(error).__name__}"


def check_bytes(data: bytes, path: str, name: str | None, *, png: bool) -> None:
    """Check that a file is not empty and, of a PNG, all checksums.

    Raises:
        DefectError: With the first damage.
    """
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
    if not data.startswith(PNG_SIGNATURE):
        return "is not a PNG"
    position, kind = len(PNG_SIGNATURE), b""
    while kind != b"IEND":
        head = data[position : position + 8]
        if len(head) < 8:
            return "is truncated: the file ends before its IEND chunk"
        length, kind = struct.unpack(">I4s", head)
        if (position == len(PNG_SIGNATURE)) != (kind == b"IHDR" and length == 13):
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
