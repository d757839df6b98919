"""The one reader of images: what it converts, what it refuses, and who uses it."""

import os
import re
import socket
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from spatialflow.data import read_image
from spatialflow.data.images import FORMATS, SUFFIXES, channel_bits, largest_value
from spatialflow.utils.errors import DataError
from spatialflow.utils.files import why_no_file

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)
COLORS = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = COLORS[..., 0]
DEEP = RNG.integers(0, 65536, (6, 9), dtype=np.uint16)


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def write_tiff(path, pixels, **tags):
    """Write an uncompressed little-endian TIFF with any sample format; tags by number."""
    kinds = {"u": 1, "i": 2, "f": 3}
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    directory = ImageFileDirectory_v2()
    values = {
        256: pixels.shape[1],
        257: pixels.shape[0],
        258: (pixels.dtype.itemsize * 8,) * channels,
        259: 1,
        262: 1 if channels == 1 else 2,
        273: 0,  # tobytes adds the place of what follows
        277: channels,
        278: pixels.shape[0],
        279: pixels.nbytes,
        339: (kinds[pixels.dtype.kind],) * channels,
        **{int(key[1:]): value for key, value in tags.items()},
    }
    for key, value in values.items():
        directory[key] = value
    path.write_bytes(b"II*\0\x08\0\0\0" + directory.tobytes(8) + pixels.tobytes())
    return path


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_format_is_read(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", COLORS)
    with Image.open(path) as picture:
        assert picture.format in FORMATS
        expected = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(read_image(path), expected)
    np.testing.assert_array_equal(read_image(path, "BGR"), expected[..., ::-1])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode, recwarn):
    path = tmp_path / f"a.{'tif' if mode == 'CMYK' else 'png'}"
    picture = Image.fromarray(COLORS).convert(mode)
    options = {"transparency": b"\0\x80\xff"} if mode == "P" else {}
    picture.save(path, **options)
    np.testing.assert_array_equal(read_image(path), np.asarray(picture.convert("RGB")))
    assert not recwarn.list


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_the_first_picture_counts(tmp_path, suffix):
    first, second = Image.new("RGB", (9, 6), (0, 0, 0)), Image.new("RGB", (9, 6), (255, 255, 255))
    options = {"lossless": True} if suffix == ".webp" else {}
    first.save(tmp_path / f"a{suffix}", save_all=True, append_images=[second], **options)
    assert read_image(tmp_path / f"a{suffix}").max() == 0


def turn(pixels, orientation):
    """Turn pixels as EXIF demands, by NumPy alone."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    down, right = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if down else 1, :: -1 if right else 1]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_exif_turns_pixels_of_any_depth(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[274] = orientation
    path = save(tmp_path / f"a{suffix}", COLORS, exif=exif)
    np.testing.assert_array_equal(read_image(path), turn(COLORS, orientation))
    if suffix == ".png":
        save(path, DEEP, exif=exif)
    else:
        write_tiff(path, DEEP, t274=orientation)
    expected = np.round(turn(DEEP, orientation) / 257).astype(np.uint8)
    np.testing.assert_array_equal(read_image(path, white_level=65535)[..., 1], expected)


def deep_files(folder):
    """Write one file of each kind of deep pixels; return (path, values, bits) of each."""
    colors = RNG.integers(0, 65536, (6, 9, 3), dtype=np.uint16)
    alpha = RNG.integers(0, 65536, (6, 9, 4), dtype=np.uint16)
    floats = RNG.random((6, 9)).astype(np.float32)
    signed = RNG.integers(-999, 999, (6, 9), dtype=np.int16)
    for name, pixels in (("grey", DEEP), ("colours", colors), ("alpha", alpha)):
        path = folder / f"{name}.png"
        cv2.imwrite(
            str(path), pixels[..., [2, 1, 0, 3][: pixels.shape[-1]]] if pixels.ndim > 2 else pixels
        )
        yield path, pixels, 16
    for name, pixels in (
        ("grey", DEEP),
        ("colours", colors),
        ("alpha", alpha),
        ("signed", signed),
        ("float32", floats),
        ("float64", floats.astype(np.float64)),
        ("colours32", colors.astype(np.float32)),
    ):
        options = {"t338": 2} if name == "alpha" else {}
        path = write_tiff(folder / f"{name}.tif", pixels, **options)
        yield path, pixels, pixels.dtype.itemsize * 8


def test_deep_pixels_are_refused_or_scaled(tmp_path):
    for path, pixels, bits in deep_files(tmp_path):
        with pytest.raises(DataError) as error:
            read_image(path)
        text = str(error.value)
        assert text.startswith(f"{path}: has channels of {bits} bits ("), text
        assert "INPUT.WHITE_LEVEL" in text
        assert "\n" not in text
        white = 1.0 if pixels.max() <= 1 else 4095
        expected = np.round(np.clip(pixels / white, 0, 1) * 255)
        expected = expected[..., :3] if expected.ndim == 3 else expected[..., None]
        given = read_image(path, white_level=white).astype(float)
        assert np.abs(given - expected).max() <= 1, path


def test_deep_pixels_that_no_decoder_reads_right_are_always_refused(tmp_path):
    colors = np.stack([DEEP] * 3)
    cases = {
        "signed8": (RNG.integers(-99, 99, (6, 9), dtype=np.int8), {}),
        "half": (DEEP.astype(np.float16), {}),
        "integers32": (DEEP.astype(np.uint32), {}),
        "white_is_0": (DEEP, {"t262": 0}),
        "planes": (colors.reshape(6, 9, 3), {"t284": 2}),
        "bits12": (np.zeros((6, 14), np.uint8), {"t256": 9, "t258": (12,)}),
    }
    for name, (pixels, tags) in cases.items():
        path = write_tiff(tmp_path / f"{name}.tif", pixels, **tags)
        for white in (None, 65535):
            with pytest.raises(DataError, match=r"tif: has channels of \d+ bits .*convert it$"):
                read_image(path, white_level=white)
    path = write_tiff(tmp_path / "nan.tif", np.full((6, 9), np.nan, np.float32))
    with pytest.raises(DataError, match="holds NaN or infinity"):
        read_image(path, white_level=1)


def test_other_formats_are_refused(tmp_path):
    for suffix in (".jp2", ".tga", ".ico"):
        path = save(tmp_path / f"a{suffix}", COLORS)
        with pytest.raises(DataError, match="is not a picture of a known format .BMP, GIF, JPEG"):
            read_image(path)


def special_files(folder):
    """Make what is no regular file; return path and word for it."""
    os.mkfifo(folder / "fifo.png")
    (folder / "folder.png").mkdir()
    (folder / "link.png").symlink_to(folder / "absent.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.png"))
    return {
        "fifo": "is a FIFO, not a file",
        "folder": "is a folder, not a file",
        "link": "is a link to no file",
        "loop": "cannot be read: Too many levels",
        "zero": "is a device, not a file",
        "socket": "is a socket, not a file",
        "absent": "no such file",
    }


def test_what_is_no_file_never_blocks(tmp_path):
    for name, text in special_files(tmp_path).items():
        path = tmp_path / f"{name}.png"
        with pytest.raises(DataError, match=f"{re.escape(str(path))}: {text}"):
            read_image(path)
        assert why_no_file(path).startswith(text)
    assert why_no_file("a\0b") == "is not the name of a file"
    assert why_no_file("a\ud800\udfff") == "is not the name of a file"
    assert why_no_file(__file__) is None


READS = re.compile(
    r"cv2\.imread|detection_utils import.*read_image|utils\.read_image|Image\.open\("
)
READERS = {"spatialflow/data/images.py", "spatialflow/data/validation/file_rules.py"}
# Panoptic PNGs that passed the reader of file_rules; Detectron2's pipeline, to be compared with.
READERS |= {"spatialflow/evaluation/evaluator.py", "benchmarks/speed/data.py"}
# Palette images of labels, whose pixels are classes.
READERS |= {"spatialflow/data/convert/cmp.py"}


def test_nothing_else_reads_images():
    folders = ("spatialflow", "demo", "tools", "benchmarks", "experiments", "notebooks")
    files = [p for f in folders for p in (ROOT / f).rglob("*") if p.suffix in (".py", ".ipynb")]
    found = {str(p.relative_to(ROOT)) for p in files if READS.search(p.read_text())}
    assert found <= READERS | {
        str(p.relative_to(ROOT)) for p in files if "tests" in p.relative_to(ROOT).parts
    }


def test_the_bits_of_an_image_are_in_its_header(tmp_path):
    for suffix, bits in (("png", 16), ("tiff", 16)):
        path = tmp_path / f"deep.{suffix}"
        cv2.imwrite(str(path), DEEP)
        assert channel_bits(path) == bits
        assert largest_value(path) == DEEP.max()
    path = tmp_path / "plain.png"
    cv2.imwrite(str(path), (DEEP >> 8).astype(np.uint8))
    assert channel_bits(path) == 8
    (tmp_path / "deep.pgm").write_bytes(b"P5 1 1 65535\n\0\1")
    with pytest.raises(DataError, match="16 bits .integers., which are not read"):
        channel_bits(tmp_path / "deep.pgm")
