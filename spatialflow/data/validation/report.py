"""Find all defects of a data set: those of its JSON, then those of each image and PNG."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from spatialflow.data.dataset import PanopticDataset
from spatialflow.data.dataset_spec import (
    IGNORE_LABEL,
    NO_THINGS,
    Category,
    DatasetSpec,
    unusable_classes,
)
from spatialflow.data.images import read_picture
from spatialflow.data.selection import Selection, select
from spatialflow.data.validation.defects import Defect, DefectError
from spatialflow.data.validation.file_rules import missing_files, read_segments
from spatialflow.data.validation.json_rules import (
    comparable_segments,
    file_name_message,
    size_message,
)

# Each image that is decoded at the same time may need some hundred megabytes.
_MAX_THREADS = 8


@dataclass
class Report:
    """Counts of a check.

    Attributes:
        images: Number of images of the data set.
        segments: Number of their segments.
        classes: Number of classes, after a remap.
        unannotated: Number of images without an annotation in the JSON.
        turned: Number of images that EXIF data turn to the same size, so that nothing tells
            whether their annotations are of turned pixels.
        defects: Number of defects.
        affected: Names of the images with defects, or places of JSON entries without a name.
    """

    images: int = 0
    segments: int = 0
    classes: int = 0
    unannotated: int = 0
    turned: int = 0
    defects: int = 0
    affected: set[str] = field(default_factory=set)

    def summary(self) -> str:
        """Return the counts in one line."""
        counted = (
            _plural(self.images, "image"),
            _plural(self.segments, "segment"),
            _plural(self.classes, "class", "classes"),
        )
        found = _plural(self.defects, "problem") if self.defects else "no problem"
        if self.affected:
            found += f", {_plural(len(self.affected), 'image')} affected"
        if self.unannotated:
            found += f"; {_plural(self.unannotated, 'image')} without annotation left out"
        if self.turned:
            found += (
                f"; EXIF data turn {_plural(self.turned, 'image')}: see that annotations are turned"
            )
        return f"{', '.join(counted)}: {found}"


def _plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def find_defects(
    dataset: PanopticDataset, report: Report, *, white_level: float | None = None
) -> Iterator[Defect]:
    """Yield all defects of a data set: of its JSON, then image by image.

    Every image and PNG is decoded. A file with several defects is reported once if the first one
    hides the others.

    Args:
        dataset: Data set to check; it need not be registered.
        report: Counts to add to while the defects are found.
        white_level: The value of `INPUT.WHITE_LEVEL` in trainings.
    """
    for defect in _defects(dataset, report, white_level):
        report.defects += 1
        if defect.image is not None:
            report.affected.add(defect.image)
        yield defect


def _defects(
    dataset: PanopticDataset, report: Report, white_level: float | None
) -> Iterator[Defect]:
    spec, annotations, defects = dataset.examine()
    yield from defects
    if annotations is None:
        return
    selection = select(spec, annotations.listing)
    if not defects:
        try:
            classes, mapping = spec.read_classes(annotations.categories)
        except DefectError as error:  # a remap that does not fit the categories
            yield from error.defects
        else:
            report.classes = len(classes)
            yield from _training_defects(spec, selection, classes, mapping)
    report.images = len(selection.pairs)
    report.unannotated = selection.unannotated
    report.segments = sum(
        len(annotation["segments_info"])
        for _, annotation in selection.pairs
        if isinstance(annotation.get("segments_info"), list)
    )
    yield from selection.defects
    yield from _file_defects(spec, selection, report, white_level)


def _training_defects(
    spec: DatasetSpec, selection: Selection, classes: list[Category], mapping: dict[int, int]
) -> Iterator[Defect]:
    """Yield what keeps a training with default keys from a data set of sound files."""
    things = {c.id for c in classes if c.isthing}
    # A part that is for evaluation alone may have any images.
    is_for_training = spec.split is None or spec.split[0] == "train"
    pairs = selection.sound_pairs() if is_for_training else []
    message = unusable_classes(len(things), len(classes) - len(things), IGNORE_LABEL)
    if message is not None:
        yield Defect(spec.annotations_json, message)
    elif pairs and not any(
        mapping[segment["category_id"]] in things and not segment.get("iscrowd", 0)
        for _, annotation in pairs
        for segment in annotation["segments_info"]
    ):
        yield Defect(spec.annotations_json, NO_THINGS)


def _file_defects(
    spec: DatasetSpec, selection: Selection, report: Report, white_level: float | None
) -> Iterator[Defect]:
    if not all(Path(folder).is_dir() for folder in (spec.images, spec.panoptic_root)):
        return
    named = [pair for pair in selection.pairs if file_name_message(pair[1]) is None]
    missing: dict[str, Defect] = {}
    for defect in missing_files(spec.files(named), spec.annotations_json):
        missing.setdefault(defect.file, defect)

    def check(pair: tuple[dict, dict]) -> tuple[list[Defect], bool]:
        image, annotation = pair
        if size_message(image) is not None:
            return [], False
        defects, turned = _image_defects(spec, image, missing, white_level)
        return [*defects, *_png_defects(spec, image, annotation, missing)], turned

    pool = ThreadPoolExecutor(max_workers=min(_MAX_THREADS, os.cpu_count() or 1))
    try:
        for defects, turned in pool.map(check, selection.pairs):
            report.turned += turned
            yield from defects
    finally:
        pool.shutdown(cancel_futures=True)


def _image_defects(
    spec: DatasetSpec, image: dict, missing: dict[str, Defect], white_level: float | None
) -> tuple[list[Defect], bool]:
    """Return the defects of an image, and whether EXIF data turn it to the same size."""
    path = spec.image_path(image)
    if path in missing:
        return [missing[path]], False
    listed = spec.listed_image(image)
    try:
        picture = read_picture(path, listed=listed, white_level=white_level, thorough=True)
    except DefectError as error:
        return error.defects, False
    return [], picture.turned_unseen


def _png_defects(
    spec: DatasetSpec, image: dict, annotation: dict, missing: dict[str, Defect]
) -> list[Defect]:
    """Return the defects of a PNG, unless the JSON is too wrong to compare them."""
    segments = comparable_segments(annotation)
    if segments is None or file_name_message(annotation) is not None:
        return []
    path = spec.png_path(annotation)
    if path in missing:
        return [missing[path]]
    try:
        read_segments(path, segments, spec.listed_image(image), thorough=True)
    except DefectError as error:
        return error.defects
    return []
