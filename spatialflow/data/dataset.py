"""A registered data set: its files as Detectron2's dicts and metadata.

Each image becomes one dict of Detectron2's format:

- `file_name`, `image_id`, `height`, `width`, `pan_seg_file_name`;
- `annotations_json`: the JSON that says all this, for messages;
- `segments_info`: the PNG's segments, `id`, `category_id` (the data set's, after a remap),
  `isthing`, `iscrowd`, `area`, `bbox`;
- `annotations`: the things alone, `category_id` contiguous, for Detectron2's filter of empty images
  and its class histogram. Masks are not in here: `PanopticMapper` reads them from the PNG.
"""

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from spatialflow.data.dataset_spec import (
    DERIVED_PREFIX,
    Category,
    PanopticSource,
    read_categories,
    select,
)
from spatialflow.data.palette import THINGS_COLOR
from spatialflow.data.segments import are_complete, complete_segments
from spatialflow.data.validation.defects import Problem, combined_error
from spatialflow.data.validation.file_rules import missing_files
from spatialflow.data.validation.json_rules import category_problems, read_json
from spatialflow.data.validation.segment_map import read_segments
from spatialflow.utils.errors import DataError

logger = logging.getLogger(__name__)

CHECK_COMMAND = "python -m spatialflow.data.check"


class DatasetEntry:
    """The loader of one data set, and the owner of its metadata.

    `DatasetCatalog` holds the entry itself, so nothing but Detectron2's catalogs remembers a
    registration. Folders may be given later than the name: see `builtin.py`.
    """

    def __init__(self, source: PanopticSource) -> None:
        """Keeps the registration; reads nothing."""
        self.declared = source

    def resolve(self) -> PanopticSource:
        """Returns the registration with the paths as they are now."""
        return self.declared

    def hint(self) -> str:
        """Returns what a message about a missing file or folder adds."""
        return ""

    def check_command(self) -> str:
        """Returns the command that lists everything that is wrong with the data."""
        source = self.resolve()
        root = Path(source.images).parent
        usual = (root / "images", root / "panoptic.json", root / "panoptic")
        places = (source.images, source.annotations_json, source.panoptic_root)
        if tuple(map(str, usual)) == places:
            return f"{CHECK_COMMAND} {shlex.quote(str(root))}"
        options = zip(("--images", "--json", "--panoptic"), places, strict=True)
        return " ".join([CHECK_COMMAND, *(f"{k} {shlex.quote(v)}" for k, v in options)])

    def examine(self) -> tuple[PanopticSource, dict | None, list[Problem]]:
        """Reads the JSON and looks for the folders.

        Returns:
            the registration with its paths; the parsed JSON, None if its outline is wrong; and what
            is wrong with JSON, folders and categories.
        """
        source = self.resolve()
        hint = self.hint()
        content, problems = read_json(source.annotations_json, hint)
        usable = not problems
        if usable:
            problems = category_problems(
                content["categories"], source.annotations_json, unique_names=source.remap is None
            )
        problems += self._missing_folders(source)
        return source, content if usable else None, problems

    def _missing_folders(self, source: PanopticSource) -> list[Problem]:
        return [
            Problem(folder, "no such folder" + self.hint())
            for folder in (source.images, source.panoptic_root)
            if not Path(folder).is_dir()
        ]

    def check_places(self) -> None:
        """Looks for the JSON and the folders, without reading them.

        Raises:
            DataError: if one of them is not there.
        """
        source = self.resolve()
        problems = self._missing_folders(source)
        if not Path(source.annotations_json).is_file():
            problems.append(Problem(source.annotations_json, "no such file" + self.hint()))
        if problems:
            raise self.error(problems)

    def read(self) -> tuple[PanopticSource, dict]:
        """Reads the JSON.

        Returns:
            the registration with its paths, and the parsed JSON.

        Raises:
            DataError: if `examine` finds a problem.
        """
        source, content, problems = self.examine()
        if problems or content is None:
            raise self.error(problems)
        return source, content

    def error(self, problems: Sequence[Problem]) -> DataError:
        """Returns the error that tells one or more problems of this data set."""
        return combined_error(problems, self.check_command())

    def load(self) -> tuple[list[dict], list[Problem]]:
        """Loads the images that nothing is known to be wrong with; completes the metadata.

        Images and PNGs are looked for, but not read, except PNGs whose segments the JSON describes
        incompletely.

        Returns:
            one dict for each such image, in the order of the images' names; and what is wrong with
            others, which are left out. Each of these problems names its image.

        Raises:
            DataError: if the data set as a whole is unusable, or no image is left.
        """
        source, content = self.read()
        classes, mapping = set_metadata(source, content)
        selection = select(source, content)
        problems = list(selection.problems)
        if selection.unannotated:
            logger.info(
                "%s: %d images without annotations are left out", source.name, selection.unannotated
            )
        pairs = selection.sound_pairs()
        missing = missing_files(source.files(pairs), source.annotations_json)
        problems += missing
        without_files = {problem.image for problem in missing}
        dicts = []
        for image, annotation in pairs:
            if image["file_name"] not in without_files:
                loaded = _image_dict(source, image, annotation, classes, mapping)
                if isinstance(loaded, dict):
                    dicts.append(loaded)
                else:
                    problems += loaded
        if not dicts:
            raise self.error(problems)
        logger.info("%s: %d images, %d classes", source.name, len(dicts), len(classes))
        return dicts, problems

    def __call__(self) -> list[dict]:
        """Loads the data set and completes its metadata.

        Returns:
            one dict for each image, in the order of the images' names.

        Raises:
            DataError: if `load` finds any problem.
        """
        dicts, problems = self.load()
        if problems:
            raise self.error(problems)
        return dicts


def set_metadata(source: PanopticSource, content: dict) -> tuple[list[Category], dict[int, int]]:
    """Fills the metadata of a data set from its JSON.

    `panoptic_json` and `json_file` are names of derived files, made when Detectron2's `PathManager`
    is first asked for them (see `derived.py`).

    Returns:
        the classes, and source category id → class id.
    """
    classes, mapping = read_categories(
        content["categories"], source.remap, where=source.annotations_json
    )
    things = [c for c in classes if c.isthing]
    stuff = [c for c in classes if not c.isthing]
    # Detectron2's Metadata refuses to change a value, but a JSON may have been replaced, or
    # DETECTRON2_DATASETS set, since the last load: what was read last counts.
    vars(MetadataCatalog.get(source.name)).update(
        thing_classes=[c.name for c in things],
        thing_colors=[list(c.color) for c in things],
        thing_dataset_id_to_contiguous_id={c.id: i for i, c in enumerate(things)},
        stuff_classes=["things", *(c.name for c in stuff)],
        stuff_colors=[list(THINGS_COLOR), *(list(c.color) for c in stuff)],
        stuff_dataset_id_to_contiguous_id={c.id: i + 1 for i, c in enumerate(stuff)},
        image_root=source.images,
        panoptic_root=source.panoptic_root,
        panoptic_json=f"{DERIVED_PREFIX}{source.name}/panoptic.json",
        json_file=f"{DERIVED_PREFIX}{source.name}/instances.json",
    )
    return classes, mapping


def _image_dict(
    source: PanopticSource,
    image: dict,
    annotation: dict,
    classes: list[Category],
    mapping: dict[int, int],
) -> dict | list[Problem]:
    """One image in Detectron2's format (see the module's docstring), or what is wrong with it."""
    isthing = {c.id: c.isthing for c in classes}
    contiguous = MetadataCatalog.get(source.name).thing_dataset_id_to_contiguous_id
    pan_seg_file_name = source.png_path(annotation)
    segments = annotation["segments_info"]
    ids = None
    if not are_complete(segments):
        found = read_segments(pan_seg_file_name, segments, source.image_files(image))
        if isinstance(found, list):
            return found
        ids = found.ids
    segments = complete_segments(segments, mapping, ids)
    for segment in segments:
        segment["isthing"] = isthing[segment["category_id"]]
    return {
        "file_name": source.image_path(image),
        "image_id": image["id"],
        "height": image["height"],
        "width": image["width"],
        "pan_seg_file_name": pan_seg_file_name,
        "annotations_json": source.annotations_json,
        "segments_info": segments,
        "annotations": [
            {
                "iscrowd": segment["iscrowd"],
                "category_id": contiguous[segment["category_id"]],
                "bbox": segment["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
            }
            for segment in segments
            if segment["isthing"]
        ],
    }
