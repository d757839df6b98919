"""Write converted images as a data set in COCO panoptic layout.

H, W: height and width.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from spatialflow.data.panoptic_png import segment_masks, write_panoptic_png
from spatialflow.utils.console import report_progress
from spatialflow.utils.errors import ConfigError, DataError
from spatialflow.utils.files import write_atomically, write_json
from spatialflow.utils.hold import LOCK_FILE, held

JSON_FILE = "panoptic.json"
FOLDERS = ("images", "panoptic")
WORK_FOLDER = ".convert.partial"
"""Folder in the output that has the files until all of them are written."""
JPEG_QUALITY = 95


class Labelled(NamedTuple):
    """An image with its segments.

    Attributes:
        picture: The file of the image, to be copied as it is, or (H, W, 3) RGB pixels, uint8.
        ids: (H, W) segment ids; 0 is void.
        classes: Category id of each segment id. A segment without a pixel is left out.
        remarks: Messages on what of the image could not be converted.
    """

    picture: Path | np.ndarray
    ids: np.ndarray
    classes: dict[int, int]
    remarks: Sequence[str] = ()


class Source(NamedTuple):
    """An image that can be converted.

    Attributes:
        stem: Name of its files in the output, without the suffix.
        read: Function that reads and converts it; a DataError says why it cannot be converted.
    """

    stem: str
    read: Callable[[], Labelled]


class Result(NamedTuple):
    """What was written.

    Attributes:
        images: Number of images.
        hidden: Number of segments that were left out, as no pixel of them is visible.
        failures: Messages on what could not be converted.
    """

    images: int
    hidden: int
    failures: list[str]


def reduce_image(pixels: np.ndarray, max_size: int) -> np.ndarray:
    """Reduce an image with antialiasing if it is too large; it is never enlarged.

    Args:
        pixels: (H, W, 3) RGB pixels, uint8.
        max_size: Longest side in pixels; 0 keeps every size.

    Returns:
        The reduced pixels, or the same object.
    """
    height, width = pixels.shape[:2]
    longest = max(height, width)
    if not 0 < max_size < longest:
        return pixels
    size = max(1, round(width * max_size / longest)), max(1, round(height * max_size / longest))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def write_dataset(
    output: Path, categories: Sequence[dict[str, Any]], sources: Sequence[Source]
) -> Result:
    """Write images/, panoptic/ and panoptic.json; without the last the others are not complete.

    An image's id is its place among the names of all sources, so that it does not depend on their
    order, nor on images that fail.

    Args:
        output: Folder to write to: missing, or empty.
        categories: Categories of the JSON.
        sources: Images with different stems.

    Returns:
        What was written. Without any image that can be converted, it is nothing.

    Raises:
        ConfigError: If the folder is not empty, is in use, or cannot be written.
        OSError: If the disk is full.
    """
    _check_empty(output)
    with held(output, "--output"):
        _check_empty(output)
        with _work_folder(output) as work:
            result, content = _write_all(work, sources)
            if result.images:
                content["categories"] = list(categories)
                write_json(work / JSON_FILE, content, indent=None)
                # The JSON goes last: a folder with it is complete.
                for name in (*FOLDERS, JSON_FILE):
                    os.rename(work / name, output / name)
    return result


def _check_empty(output: Path) -> None:
    """Refuse a folder with other files than those that an interrupted conversion leaves."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if set(os.listdir(output)) - {LOCK_FILE, WORK_FOLDER}:
            raise ConfigError(
                f"--output: {os.fspath(output)!r} given, which is not empty; a new folder expected"
            )


@contextlib.contextmanager
def _work_folder(output: Path) -> Iterator[Path]:
    """Make a folder for the files of an unfinished data set; it is removed in any case."""
    work = output / WORK_FOLDER
    shutil.rmtree(work, ignore_errors=True)  # of a conversion that was killed
    try:
        for name in FOLDERS:
            (work / name).mkdir(parents=True)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_all(work: Path, sources: Sequence[Source]) -> tuple[Result, dict[str, Any]]:
    """Write the files of all images; return what was written, and the JSON without categories."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    failures: list[str] = []
    hidden = 0
    number = 0
    report = functools.partial(report_progress, "converting", total=len(sources))
    report(done=0)
    try:
        for number, source in enumerate(sorted(sources, key=lambda one: one.stem), start=1):
            try:
                labelled = source.read()
            except DataError as error:
                failures.append(" ".join(str(error).split()))
            else:
                failures += labelled.remarks
                image, annotation = _write_image(work, number, source.stem, labelled)
                images.append(image)
                annotations.append(annotation)
                hidden += len(labelled.classes) - len(annotation["segments_info"])
            report(done=number)
    finally:
        report(done=number, ended=True)
    content: dict[str, Any] = {"images": images, "annotations": annotations}
    return Result(len(images), hidden, failures), content


def _write_image(
    work: Path, number: int, stem: str, labelled: Labelled
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write an image and its PNG; return their entries in the JSON."""
    picture, ids, classes = labelled.picture, labelled.ids, labelled.classes
    name = f"{stem}.jpg" if isinstance(picture, np.ndarray) else stem + picture.suffix
    write_atomically(work / "images" / name, functools.partial(_write_picture, picture))
    png = f"{stem}.png"
    write_atomically(work / "panoptic" / png, functools.partial(write_panoptic_png, ids=ids))
    segments = [
        {
            "id": segment_id,
            "category_id": classes[segment_id],
            "iscrowd": 0,
            "area": mask["area"],
            "bbox": mask["bbox"],
        }
        for segment_id, mask in zip(classes, segment_masks(ids, list(classes)), strict=True)
        if mask["area"]
    ]
    height, width = ids.shape
    image = {"id": number, "file_name": name, "height": height, "width": width}
    return image, {"image_id": number, "file_name": png, "segments_info": segments}


def _write_picture(picture: Path | np.ndarray, file: IO[bytes]) -> None:
    if isinstance(picture, np.ndarray):
        Image.fromarray(picture).save(file, format="JPEG", quality=JPEG_QUALITY)
    else:
        with open(picture, "rb") as source:
            shutil.copyfileobj(source, file)
