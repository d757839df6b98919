"""Read every image of a data set before a run needs them."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor

from spatialflow.data.evaluation_json import cache_root
from spatialflow.data.images import read_image
from spatialflow.data.registration import find_dataset
from spatialflow.data.selection import select
from spatialflow.data.validation.decoding import ListedImage
from spatialflow.data.validation.defects import Defect, DefectError
from spatialflow.data.validation.file_rules import missing_files

logger = logging.getLogger(__name__)

THREADS = 4


def check_images(name: str, image_format: str, white_level: float | None) -> None:
    """Read every image of a registered data set, unless the same files were read before.

    The cache remembers which files were sound, by their names, sizes and times.

    Args:
        name: Name given to `register_panoptic`, or of a built-in data set.
        image_format: Value of `INPUT.FORMAT`.
        white_level: Value of `INPUT.WHITE_LEVEL`.

    Raises:
        DataError: If an image is missing, broken, or of another size than in the JSON.
        ConfigError: If the name is unknown.
    """
    dataset = find_dataset(name)
    spec, truth = dataset.read()
    selection = select(spec, truth.listing)
    pairs = selection.sound_pairs()
    files = [(spec.image_path(image), spec.listed_image(image)) for image, _ in pairs]
    missing = missing_files(((p, i.name) for p, i in files), spec.annotations_json)
    if selection.defects or missing:
        raise dataset.error([*selection.defects, *missing])
    digest = hashlib.sha256(repr([image_format, white_level, spec.annotations_json]).encode())
    for path, image in files:
        status = os.stat(path)
        digest.update(repr([path, image.size, status.st_size, status.st_mtime_ns]).encode())
    mark = cache_root() / "images-read" / digest.hexdigest()[:16]
    if mark.is_file():
        return
    logger.info("reading the %d images of %s", len(files), name)

    def defects_of(file: tuple[str, ListedImage]) -> list[Defect]:
        try:
            read_image(file[0], image_format, listed=file[1], white_level=white_level)
        except DefectError as error:
            return error.defects
        return []

    with ThreadPoolExecutor(THREADS) as pool:
        defects = [defect for found in pool.map(defects_of, files) for defect in found]
    if defects:
        raise dataset.error(defects)
    with contextlib.suppress(OSError):  # without a cache they are read again the next time
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
