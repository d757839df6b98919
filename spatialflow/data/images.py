"""The reader of images: training, evaluation, prediction, pictures and the checker all use it.

An image that has another form than 8-bit RGB is converted alike everywhere: palettes and CMYK to
RGB, grey and black-and-white to three equal channels; an alpha channel is dropped; of an animation
or a file with several pages the first one counts. EXIF data turn it. Pixels of more than 8 bits,
signed ones and floats are refused, unless a white level says how to scale them: libraries would
clip them, or drop bits, each in its own way.

H, W: height and width.
"""

from __future__ import annotations

import os
import re
from typing import IO, Any, NamedTuple

import cv2
import numpy as np
from detectron2.data import detection_utils
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from spatialflow.data.validation.decoding import (
    PNG_SIGNATURE,
    ListedImage,
    check_bytes,
    open_file,
    read_twice,
    wrong_size,
)
from spatialflow.data.validation.defects import Defect, DefectError

FORMATS = {
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""Pillow's name of each format that is read → suffixes of its files. JPEG includes MPO."""

SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

# Width, height and the value of white of a PGM or PPM; comments go to the end of a line.
_PPM_HEADER = re.compile(rb"P[2356]" + 3 * rb"(?:\s|#[^\r\n]*[\r\n])+(\d+)")
_PPM_HEADER_BYTES = 4096
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Numbers of TIFF's tags and of its sample formats.
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _PLANES, _SAMPLE_FORMAT = 256, 257, 258, 262, 284, 339
_KINDS = {1: "integers", 2: "signed integers", 3: "floats"}
# (bits, sample format) of deep TIFFs that OpenCV decodes.
_SCALABLE = ((16, 1), (16, 2), (32, 3), (64, 3))
_ORIENTATION = 274
_MANY_COLORS = 3
_WHITE = 255


class Picture(NamedTuple):
    """An image as it was read.

    Attributes:
        pixels: (H, W, channels) pixels.
        turned_unseen: Whether EXIF data have turned it, and its size is the same as before.
    """

    pixels: np.ndarray
    turned_unseen: bool


class _Deep(NamedTuple):
    """The pixels that the header of a deep image describes.

    Attributes:
        bits: Bits of a channel.
        kind: Sample format of TIFF.
        size: (height, width) in the file, before EXIF data turn it.
        readable: Whether the decoder reads exactly these values.
    """

    bits: int
    kind: int
    size: tuple[int, int]
    readable: bool


def read_image(
    path: str | os.PathLike[str],
    format: str = "RGB",
    *,
    listed: ListedImage | None = None,
    white_level: float | None = None,
    thorough: bool = False,
) -> np.ndarray:
    """Read an image, turned as its EXIF data demand.

    Args:
        path: Image file in one of `FORMATS`.
        format: "RGB", "BGR", "L" or "YUV-BT.601", as in `INPUT.FORMAT`.
        listed: Facts that a JSON lists about the image; None accepts any size.
        white_level: Value of a pixel of more than 8 bits, or a float, that becomes 255; the others
            are scaled alike and clipped. None refuses such images. See `INPUT.WHITE_LEVEL`.
        thorough: Whether to compare the checksums of a PNG, too.

    Returns:
        (H, W, channels) pixels, uint8; floats in the format "YUV-BT.601".

    Raises:
        DataError: If the file is missing or no regular file, cannot be decoded, has more than 8
            bits a channel without a white level, or has another size than in the JSON.
    """
    return read_picture(
        path, format, listed=listed, white_level=white_level, thorough=thorough
    ).pixels


def read_picture(
    path: str | os.PathLike[str],
    format: str = "RGB",
    *,
    listed: ListedImage | None = None,
    white_level: float | None = None,
    thorough: bool = False,
) -> Picture:
    """Read an image as `read_image` does, and tell whether EXIF data have turned it."""
    path = os.fspath(path)
    return read_twice(
        lambda full: _read(path, format, listed, white_level, full), path, listed, thorough
    )


def channel_bits(path: str | os.PathLike[str]) -> int:
    """Return the bits of a channel, from the header of an image: 8 also for fewer.

    Raises:
        DataError: If the file is missing, no regular file, or one of more than 8 bits that no
            `INPUT.WHITE_LEVEL` makes readable.
    """
    path = os.fspath(path)

    def read(_: bool) -> int:
        with open_file(path, None) as file:
            deep = _deep_pixels(file)
        if deep is not None and not deep.readable:
            raise DefectError([Defect(path, _refusal(deep))])
        return 8 if deep is None else deep.bits

    return read_twice(read, path, None, thorough=False)


def largest_value(path: str | os.PathLike[str]) -> float:
    """Return the largest value of a pixel in an image of more than 8 bits a channel.

    Raises:
        DataError: If the file cannot be decoded.
    """
    path = os.fspath(path)

    def read(_: bool) -> float:
        with open_file(path, None) as file:
            return float(_values(file.read()).max())

    return read_twice(read, path, None, thorough=False)


def _read(
    path: str, format: str, listed: ListedImage | None, white_level: float | None, thorough: bool
) -> Picture:
    name = None if listed is None else listed.name
    with open_file(path, name) as file:
        if thorough:
            data = file.read()
            check_bytes(data, path, name, png=data.startswith(PNG_SIGNATURE))
            file.seek(0)
        deep = _deep_pixels(file)
        file.seek(0)
        if deep is None:
            return _read_bytes(file, path, format, listed)
        if white_level is None or not deep.readable:
            raise DefectError([Defect(path, _refusal(deep), name)])
        scaled = _scaled(file, path, deep, listed, white_level)
        return _turned(scaled, path, format, listed, deep.size)


def _read_bytes(file: IO[bytes], path: str, format: str, listed: ListedImage | None) -> Picture:
    try:
        picture = Image.open(file, formats=tuple(FORMATS))
    except UnidentifiedImageError:
        names = ", ".join(FORMATS)
        message = f"is not a picture of a known format ({names}, of 8 bits a channel), or its first"
        message += " bytes are broken; convert it to PNG or JPEG"
        name = None if listed is None else listed.name
        raise DefectError([Defect(path, message, name)]) from None
    with picture:
        width, height = picture.size
        _check_raw_size(path, (height, width), listed)
        # Detectron2's read_image ignores errors in EXIF data. Reading those of a PNG decodes
        # the pixels, so it would ignore broken pixels, too. Decode them before.
        picture.load()
        # Pillow would warn that it drops the transparency of a palette.
        picture.info.pop("transparency", None)
        return _turned(picture, path, format, listed, (height, width))


def _check_raw_size(path: str, size: tuple[int, int], listed: ListedImage | None) -> None:
    """Refuse a size that no turn makes right: a small file can claim more than fits into memory."""
    if listed is not None and listed.size not in (size, size[::-1]):
        raise wrong_size(path, size, listed)


def _turned(
    picture: Image.Image,
    path: str,
    format: str,
    listed: ListedImage | None,
    raw_size: tuple[int, int],
) -> Picture:
    """Turn a decoded picture, convert it, and compare its size."""
    turned = detection_utils._apply_exif_orientation(picture)
    pixels = detection_utils.convert_PIL_to_numpy(turned, format)
    if listed is not None and pixels.shape[:2] != listed.size:
        turned_by = "its EXIF orientation" if raw_size == listed.size else ""
        raise wrong_size(path, pixels.shape[:2], listed, turned_by)
    return Picture(pixels, turned is not picture and pixels.shape[:2] == raw_size)


def _deep_pixels(file: IO[bytes]) -> _Deep | None:
    """Return what the header of a PNG, TIFF or PPM describes, None for unsigned channels of 8 bits.

    Pillow's mode does not tell: it reads some images of 16 bits as if they had 8. Files of
    other formats have at most 8 bits, or Pillow does not read them.
    """
    head = file.read(26)
    if head[:2] in (b"P2", b"P3", b"P5", b"P6", b"Pf", b"PF"):
        return _deep_ppm(head + file.read(_PPM_HEADER_BYTES))
    if head.startswith(PNG_SIGNATURE):
        if len(head) < 26 or head[24] <= 8:
            return None
        size = int.from_bytes(head[20:24]), int.from_bytes(head[16:20])
        return _Deep(head[24], 1, size, readable=True)
    if head[:4] not in _TIFF_SIGNATURES:
        return None
    head = head[: 16 if b"+" in head[2:4] else 8]
    tags = TiffImagePlugin.ImageFileDirectory_v2(head)
    file.seek(tags.next)
    tags.load(file)
    all_bits, kinds = tags.get(_BITS, (1,)), tags.get(_SAMPLE_FORMAT, (1,))
    bits, kind = max(all_bits), max(kinds)
    if bits <= 8 and kind not in (2, 3):
        return None
    readable = (
        (bits, kind) in _SCALABLE
        and len({*all_bits}) == len({*kinds}) == 1
        and tags.get(_PLANES, 1) == 1
        and tags.get(_PHOTOMETRIC) in (1, 2)
    )
    return _Deep(bits, kind, (tags.get(_HEIGHT, 0), tags.get(_WIDTH, 0)), readable)


def _deep_ppm(head: bytes) -> _Deep | None:
    """Return what the header of a PGM, a PPM or a map of floats describes, as `_deep_pixels`."""
    if head[1:2] in b"fF":
        return _Deep(32, 3, (0, 0), readable=False)
    found = _PPM_HEADER.match(head)
    if found is None or int(found[3]) <= _WHITE:
        return None
    return _Deep(16, 1, (int(found[2]), int(found[1])), readable=False)


def _refusal(deep: _Deep) -> str:
    what = f"has channels of {deep.bits} bits ({_KINDS.get(deep.kind, 'of unknown type')})"
    if deep.readable:
        return (
            f"{what}; 8 bits are expected: convert it, or give the value of white, such as 65535, "
            "as INPUT.WHITE_LEVEL"
        )
    return f"{what}, which are not read; 8 bits are expected: convert it"


def _decoded(data: bytes) -> np.ndarray | None:
    """Decode a deep image by OpenCV, which would print what is wrong with a file."""
    opencv: Any = cv2
    log = opencv if hasattr(cv2, "setLogLevel") else opencv.utils.logging  # in OpenCV 5
    level = log.getLogLevel()
    log.setLogLevel(0)
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    finally:
        log.setLogLevel(level)


def _values(data: bytes) -> np.ndarray:
    """Return the values of a deep image as they are stored, (H, W) or (H, W, 3), without alpha."""
    values = _decoded(data)
    if values is None:
        raise ValueError("its pixels are broken, or compressed in an unknown way")
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinity")
    if values.ndim == 3:
        # Channels are blue, green, red and perhaps alpha.
        values = values[:, :, 2::-1] if values.shape[2] >= _MANY_COLORS else values[:, :, 0]
    return values


def _scaled(
    file: IO[bytes], path: str, deep: _Deep, listed: ListedImage | None, white_level: float
) -> Image.Image:
    """Return a deep image with 8 bits; it still has to be turned, with the EXIF data it has."""
    _check_raw_size(path, deep.size, listed)
    limit = 2 * (Image.MAX_IMAGE_PIXELS or np.inf)
    if deep.size[0] * deep.size[1] > limit:
        raise ValueError(f"{deep.size[0] * deep.size[1]} pixels, at most {limit} are read")
    data = file.read()
    # OpenCV turns a TIFF itself, and no PNG.
    exif = None
    if data.startswith(PNG_SIGNATURE):
        file.seek(0)
        with Image.open(file, formats=("PNG",)) as picture:
            picture.load()
            exif = picture.getexif()
    values = _values(data)
    scaled = np.clip(values.astype(np.float32) * np.float32(255 / white_level), 0, 255)
    result = Image.fromarray(np.round(scaled).astype(np.uint8))
    if exif is not None and _ORIENTATION in exif:
        result.getexif()[_ORIENTATION] = exif[_ORIENTATION]
    return result
