"""A registered data set: its JSON, read as Detectron2's dicts and metadata.

Each image becomes one dict in Detectron2's format:

- `file_name`, `image_id`, `height`, `width`, `pan_seg_file_name`;
- `annotations_json`: path of the JSON, for messages;
- `sem_seg_file_name`: name of the semantic map, which `evaluation_json.py` makes when Detectron2
  opens it; absent if the classes do not fit into 8 bits;
- `segments_info`: segments of the PNG with `id`, `category_id` (contiguous: things 0, 1, …, stuff
  1, 2, …), `isthing`, `iscrowd`, `area`, `bbox`;
- `annotations`: things only, with contiguous `category_id`, for Detectron2's filter of empty images
  and its class histogram. They have no masks: `PanopticMapper` reads those from the PNG.
"""

from __future__ import annotations

import itertools
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from spatialflow.data.annotations import PanopticJson, read_panoptic_json
from spatialflow.data.dataset_spec import (
    IGNORE_LABEL,
    THINGS,
    THINGS_COLOR,
    Category,
    DatasetSpec,
    contiguous_numbers,
)
from spatialflow.data.panoptic_png import segment_masks
from spatialflow.data.selection import select
from spatialflow.data.validation.defects import Defect, DefectError
from spatialflow.data.validation.file_rules import missing_files, read_segments
from spatialflow.data.validation.json_rules import check_categories
from spatialflow.utils.text import printable

logger = logging.getLogger(__name__)

CHECK_COMMAND = "spatialflow check"

EVALUATION_PREFIX = "spatialflow://"
"""Prefix of the names of files that are made when Detectron2's `PathManager` opens them."""

SEMANTIC_FOLDER = "/sem_seg/"
"""What is between the data set and the PNG in the name of a semantic map."""


class PanopticDataset:
    """Load a registered data set and its metadata.

    `DatasetCatalog` holds the object itself, so no other place remembers a registration.
    """

    def __init__(self, spec: DatasetSpec) -> None:
        """Keep the description; read nothing."""
        self.spec = spec

    def examine(self) -> tuple[DatasetSpec, PanopticJson | None, list[Defect]]:
        """Read the JSON and look for the folders.

        Returns:
            The description with absolute paths; the JSON, or None if it has the wrong outline; and
            the defects of outline, categories and folders.
        """
        spec = self.spec.with_absolute_paths()
        annotations, defects = None, []
        try:
            annotations = read_panoptic_json(spec.annotations_json, spec.hint)
        except DefectError as error:
            defects.extend(error.defects)
        else:
            defects += check_categories(
                annotations.categories, spec.annotations_json, unique_names=spec.remap is None
            )
        return spec, annotations, defects + _missing_folders(spec)

    def read(self) -> tuple[DatasetSpec, PanopticJson]:
        """Read the JSON.

        Returns:
            The description with absolute paths, and the JSON.

        Raises:
            DefectError: If `examine` finds a defect.
        """
        spec, annotations, defects = self.examine()
        if defects or annotations is None:
            raise self.error(defects)
        return spec, annotations

    def check(self) -> None:
        """Look for the folders, read the JSON, and fill the metadata; no other file is looked at.

        Raises:
            DefectError: If a place is missing, `examine` finds a defect, or no image is left.
        """
        spec, annotations = self.read()
        set_metadata(spec, annotations)
        selection = select(spec, annotations.listing)
        if not selection.pairs:
            raise self.error(selection.defects[-1:])

    def complete_metadata(self) -> None:
        """Fill the metadata from the JSON.

        Raises:
            DefectError: If `examine` finds a defect, or a remap does not fit the categories.
        """
        set_metadata(*self.read())

    def load(self) -> tuple[list[dict], list[Defect]]:
        """Load the images without a known defect, and fill the metadata.

        Images and PNGs must exist, but are not read. Only a PNG whose segments lack `area` or
        `bbox` in the JSON is read, to measure them.

        Returns:
            One dict for each such image, in the order of the images' names; and the defects of the
            other images, which are left out. Each of these defects names its image.

        Raises:
            DefectError: If the whole data set is unusable, or no image is left.
        """
        spec, annotations = self.read()
        classes, mapping = set_metadata(spec, annotations)
        selection = select(spec, annotations.listing)
        defects = list(selection.defects)
        if selection.unannotated:
            logger.info(
                "%s: %d images without annotations are left out", spec.name, selection.unannotated
            )
        pairs = selection.sound_pairs()
        missing = missing_files(spec.files(pairs), spec.annotations_json)
        defects += missing
        without_files = {defect.image for defect in missing}
        numbers = contiguous_numbers(classes)
        dicts = []
        for image, annotation in pairs:
            if image["file_name"] not in without_files:
                try:
                    dicts.append(_image_dict(spec, image, annotation, mapping, numbers))
                except DefectError as error:
                    defects += error.defects
        if not dicts:
            raise self.error(defects)
        kinds = [category.isthing for category in classes]
        logger.info(
            "data: %s, %d images, %d thing and %d stuff classes",
            *(spec.name, len(dicts), sum(kinds), len(kinds) - sum(kinds)),
        )
        return dicts, defects

    def __call__(self) -> list[dict]:
        """Load all images, and fill the metadata.

        Returns:
            One dict for each image, in the order of the images' names.

        Raises:
            DefectError: If `load` finds any defect.
        """
        dicts, defects = self.load()
        if defects:
            raise self.error(defects)
        return dicts

    def error(self, defects: Sequence[Defect]) -> DefectError:
        """Return an error with the defects and the command that lists them all."""
        return DefectError(defects, self._check_command())

    def _check_command(self) -> str:
        if self.spec.root_variable:
            return f"{CHECK_COMMAND} {self.spec.name}"
        root = Path(self.spec.images).parent
        usual = (root / "images", root / "panoptic.json", root / "panoptic")
        places = (self.spec.images, self.spec.annotations_json, self.spec.panoptic_root)
        if tuple(map(str, usual)) == places:
            return f"{CHECK_COMMAND} {shlex.quote(str(root))}"
        options = zip(("--images", "--json", "--panoptic"), places, strict=True)
        return " ".join([CHECK_COMMAND, *(f"{k} {shlex.quote(v)}" for k, v in options)])


def _missing_folders(spec: DatasetSpec) -> list[Defect]:
    return [
        Defect(folder, f"no such folder{spec.hint}")
        for folder in (spec.images, spec.panoptic_root)
        if not Path(folder).is_dir()
    ]


def set_metadata(
    spec: DatasetSpec, annotations: PanopticJson
) -> tuple[list[Category], dict[int, int]]:
    """Fill the metadata of a data set.

    Detectron2 writes the names of classes to consoles, logs and pictures: control characters are
    escaped in them. `category_names` has the names as they are, by class id.

    `panoptic_json` and `json_file` are names of evaluation JSONs. `evaluation_json.py` writes these
    when Detectron2's `PathManager` asks for them for the first time.

    Args:
        spec: Description with absolute paths.
        annotations: JSON of the data set.

    Returns:
        Classes, and a mapping of category id to class id, as `DatasetSpec.read_classes` returns
        them.
    """
    classes, mapping = spec.read_classes(annotations.categories)
    things = [c for c in classes if c.isthing]
    stuff = [c for c in classes if not c.isthing]
    numbers: dict[bool, dict[int, int]] = {True: {}, False: {}}
    for class_id, (isthing, number) in contiguous_numbers(classes).items():
        numbers[isthing][class_id] = number
    # As in Detectron2's separated data sets, label 0 of things has a category id.
    numbers[False][next(i for i in itertools.count(0, -1) if i not in numbers[False])] = 0
    # Detectron2's Metadata refuses to change a value. But the JSON or the environment variable may
    # have changed since the last load, and the newest values count.
    vars(MetadataCatalog.get(spec.name)).update(
        thing_classes=[printable(c.name) for c in things],
        thing_colors=[list(c.color) for c in things],
        thing_dataset_id_to_contiguous_id=numbers[True],
        stuff_classes=[THINGS, *(printable(c.name) for c in stuff)],
        stuff_colors=[list(THINGS_COLOR), *(list(c.color) for c in stuff)],
        stuff_dataset_id_to_contiguous_id=numbers[False],
        category_names={c.id: c.name for c in classes},
        image_root=spec.images,
        panoptic_root=spec.panoptic_root,
        panoptic_json=f"{EVALUATION_PREFIX}{spec.name}/panoptic.json",
        json_file=f"{EVALUATION_PREFIX}{spec.name}/instances.json",
    )
    return classes, mapping


def _image_dict(
    spec: DatasetSpec,
    image: dict,
    annotation: dict,
    mapping: dict[int, int],
    numbers: dict[int, tuple[bool, int]],
) -> dict:
    """Return one image in Detectron2's format; see the docstring of the module.

    Args:
        spec: Description of the data set, with absolute paths.
        image: Image entry of the JSON.
        annotation: Annotation of the image in the JSON.
        mapping: Mapping of category id to class id.
        numbers: Class id → whether it is a thing, and its contiguous number.
    """
    pan_seg_file_name = spec.png_path(annotation)
    segments, ids = annotation["segments_info"], None
    if not all("area" in s and "bbox" in s for s in segments):
        ids = read_segments(pan_seg_file_name, segments, spec.listed_image(image)).ids
    segments = complete_segments(segments, mapping, ids)
    for segment in segments:
        segment["isthing"], segment["category_id"] = numbers[segment["category_id"]]
    found = {
        "file_name": spec.image_path(image),
        "image_id": image["id"],
        "height": image["height"],
        "width": image["width"],
        "pan_seg_file_name": pan_seg_file_name,
        "annotations_json": spec.annotations_json,
        "segments_info": segments,
        "annotations": [
            {
                "iscrowd": segment["iscrowd"],
                "category_id": segment["category_id"],
                "bbox": segment["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
            }
            for segment in segments
            if segment["isthing"]
        ],
    }
    if sum(not isthing for isthing, _ in numbers.values()) < IGNORE_LABEL:
        name = f"{spec.name}{SEMANTIC_FOLDER}{annotation['file_name']}"
        found["sem_seg_file_name"] = EVALUATION_PREFIX + name
    return found


def complete_segments(
    segments: list[dict], mapping: dict[int, int], ids: np.ndarray | None
) -> list[dict]:
    """Return an image's segments with remapped classes and all fields that are used later.

    Args:
        segments: The image's `segments_info` in the JSON; not changed.
        mapping: Mapping of category id to class id.
        ids: (H, W) segment ids of the PNG. None if all segments have `area` and `bbox`.

    Returns:
        New dicts with `id`, `category_id`, `iscrowd`, `area` and `bbox`. A missing `area` or `bbox`
        is measured in the PNG; a missing `iscrowd` is 0.
    """
    complete = all("area" in s and "bbox" in s for s in segments)
    if ids is not None and not complete:
        measured = segment_masks(ids, [s["id"] for s in segments])
        segments = [
            {**s, "area": m["area"], "bbox": m["bbox"]}
            for s, m in zip(segments, measured, strict=True)
        ]
    return [
        {
            "id": s["id"],
            "category_id": mapping[s["category_id"]],
            "iscrowd": int(s.get("iscrowd", 0)),
            "area": s["area"],
            "bbox": list(s["bbox"]),
        }
        for s in segments
    ]
