"""Find all defects of a data set: those of its JSON, then those of each image and PNG."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from spatialflow.data.dataset import PanopticDataset
from spatialflow.data.dataset_spec import DatasetSpec, Selection, select
from spatialflow.data.validation.defects import Defect, DefectError
from spatialflow.data.validation.file_rules import missing_files, read_image, read_segments
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
        defects: Number of defects.
        affected: Names of the images with defects, or places of JSON entries without a name.
    """

    images: int = 0
    segments: int = 0
    classes: int = 0
    unannotated: int = 0
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
        return f"{', '.join(counted)}: {found}"


def _plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def find_defects(dataset: PanopticDataset, report: Report) -> Iterator[Defect]:
    """Yield all defects of a data set: of its JSON, then image by image.

    Every image and PNG is decoded. A file with several defects is reported once if the first one
    hides the others.

    Args:
        dataset: Data set to check; it need not be registered.
        report: Counts to add to while the defects are found.
    """
    for defect in _defects(dataset, report):
        report.defects += 1
        if defect.image is not None:
            report.affected.add(defect.image)
        yield defect


def _defects(dataset: PanopticDataset, report: Report) -> Iterator[Defect]:
    spec, annotations, defects = dataset.examine()
    yield from defects
    if annotations is None:
        return
    if not defects:
        try:
            classes, _ = spec.read_classes(annotations.categories)
            report.classes = len(classes)
        except DefectError as error:  # a remap that does not fit the categories
            yield from error.defects
    selection = select(spec, annotations.listing)
    report.images = len(selection.pairs)
    report.unannotated = selection.unannotated
    report.segments = sum(
        len(annotation["segments_info"])
        for _, annotation in selection.pairs
        if isinstance(annotation.get("segments_info"), list)
    )
    yield from selection.defects
    yield from _file_defects(spec, selection)


def _file_defects(spec: DatasetSpec, selection: Selection) -> Iterator[Defect]:
    if not all(Path(folder).is_dir() for folder in (spec.images, spec.panoptic_root)):
        return
    named = [pair for pair in selection.pairs if file_name_message(pair[1]) is None]
    missing: dict[str, Defect] = {}
    for defect in missing_files(spec.files(named), spec.annotations_json):
        missing.setdefault(defect.file, defect)

    def check(pair: tuple[dict, dict]) -> list[Defect]:
        return list(_pair_defects(spec, *pair, missing))

    pool = ThreadPoolExecutor(max_workers=min(_MAX_THREADS, os.cpu_count() or 1))
    try:
        for defects in pool.map(check, selection.pairs):
            yield from defects
    finally:
        pool.shutdown(cancel_futures=True)


def _pair_defects(
    spec: DatasetSpec, image: dict, annotation: dict, missing: dict[str, Defect]
) -> Iterator[Defect]:
    """Yield the defects of an image and its PNG, unless the JSON is too wrong to compare them."""
    if size_message(image) is not None:
        return
    listed = spec.listed_image(image)
    path = spec.image_path(image)
    if path in missing:
        yield missing[path]
    else:
        try:
            read_image(path, listed, thorough=True)
        except DefectError as error:
            yield from error.defects
    segments = comparable_segments(annotation)
    if segments is None or file_name_message(annotation) is not None:
        return
    path = spec.png_path(annotation)
    if path in missing:
        yield missing[path]
        return
    try:
        read_segments(path, segments, listed, thorough=True)
    except DefectError as error:
        yield from error.defects
