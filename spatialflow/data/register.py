"""Registration of panoptic data sets: a COCO panoptic JSON and its PNGs are all a user prepares.

Each image becomes one dict of Detectron2's format:

- `file_name`, `image_id`, `height`, `width`, `pan_seg_file_name`;
- `segments_info`: the PNG's segments, `id`, `category_id` (the data set's, after a remap),
  `isthing`, `iscrowd`, `area`, `bbox`;
- `annotations`: the things alone, `category_id` contiguous, for Detectron2's filter of empty images
  and its class histogram. Masks are not in here: `PanopticMapper` reads them from the PNG.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.structures import BoxMode

from .palette import THINGS_COLOR
from .segments import complete_segments
from .source import (
    DERIVED_PREFIX,
    Category,
    PanopticSource,
    Remap,
    Split,
    load_panoptic_json,
    read_categories,
    select,
)

logger = logging.getLogger(__name__)

IGNORE_LABEL = 255
EVALUATOR_TYPE = "spatialflow_panoptic"


def register_panoptic(
    name: str,
    images: str | Path,
    annotations_json: str | Path,
    panoptic_root: str | Path,
    *,
    remap: Remap = None,
    split: Split = None,
    limit: int | None = None,
) -> None:
    """Registers a data set in Detectron2's catalogs.

    The JSON is read once for the classes; the images, PNGs and derived files are not touched before
    they are needed. A second call with the same arguments does nothing.

    Args:
        name: the name for `DATASETS.TRAIN` and `DATASETS.TEST`.
        images: folder of the images.
        annotations_json: COCO panoptic JSON. Things, stuff and colours come from its `categories`
            (a fixed palette where it has no `color`).
        panoptic_root: folder of the panoptic PNGs.
        remap: None keeps the JSON's categories; "supercategories" makes one class of each
            `supercategory` (27 for COCO); a mapping of source category name or id → new name
            merges those that get one name, and leaves unnamed ones as they are.
        split: None keeps all images; ("train" | "val", fraction, seed) keeps one side of a split
            in which about `fraction` of the images are "val", chosen by a hash of seed and name.
        limit: keep only the first images, in the order of their names, after the split.

    Raises:
        ValueError: if a file or folder is missing or wrong, if a class would mix things and stuff,
            or if the name is taken by other data.
    """
    source = PanopticSource(
        name=name,
        images=str(Path(images).absolute()),
        annotations_json=str(Path(annotations_json).absolute()),
        panoptic_root=str(Path(panoptic_root).absolute()),
        remap=tuple(sorted(remap.items(), key=str)) if isinstance(remap, Mapping) else remap,
        split=None if split is None else (split[0], split[1], split[2]),
        limit=limit,
    )
    if is_registered(source):
        return
    for what, folder in (("image", source.images), ("panoptic PNG", source.panoptic_root)):
        if not Path(folder).is_dir():
            raise ValueError(f"the {what} folder of data set {name!r} does not exist: {folder}")
    content = load_panoptic_json(source.annotations_json)
    add_to_catalogs(DatasetEntry(source), content)


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

    def read(self) -> tuple[PanopticSource, dict]:
        """Reads the JSON.

        Returns:
            the registration with its paths, and the parsed JSON.
        """
        source = self.resolve()
        return source, load_panoptic_json(source.annotations_json)

    def __call__(self) -> list[dict]:
        """Loads the data set and completes its metadata.

        Returns:
            one dict for each image, in the order of the images' names.
        """
        source, content = self.read()
        classes, mapping = set_metadata(source, content)
        dicts = [
            _image_dict(source, image, annotation, classes, mapping)
            for image, annotation in select(source, content)
        ]
        for key in ("file_name", "pan_seg_file_name"):
            if not Path(dicts[0][key]).is_file():
                raise ValueError(f"data set {source.name!r}: no such file: {dicts[0][key]}")
        logger.info("%s: %d images, %d classes", source.name, len(dicts), len(classes))
        return dicts


def is_registered(source: PanopticSource) -> bool:
    """Says whether this very registration has been made.

    Raises:
        ValueError: if the name is taken by another one.
    """
    if source.name not in DatasetCatalog:
        return False
    entry = DatasetCatalog[source.name]
    if isinstance(entry, DatasetEntry) and entry.declared == source:
        return True
    known = entry.declared if isinstance(entry, DatasetEntry) else "a data set of other code"
    raise ValueError(
        f"the data set name {source.name!r} is taken by {known}; it cannot be registered again "
        f"as {source}. Choose another name, or call unregister({source.name!r}) first"
    )


def add_to_catalogs(entry: DatasetEntry, content: dict | None = None) -> None:
    """Adds an entry to Detectron2's catalogs.

    Args:
        entry: the data set.
        content: its parsed JSON, to complete the metadata now; None leaves that to the first load
            or to `ensure_metadata`.
    """
    name = entry.declared.name
    if content is not None:
        set_metadata(entry.declared, content)
    MetadataCatalog.get(name).set(
        evaluator_type=EVALUATOR_TYPE, ignore_label=IGNORE_LABEL, label_divisor=1000
    )
    DatasetCatalog.register(name, entry)


def unregister(name: str) -> None:
    """Takes a data set out of Detectron2's catalogs; a name that is not there is no error."""
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    if name in MetadataCatalog:
        MetadataCatalog.remove(name)


def get_entry(name: str) -> DatasetEntry:
    """Returns the entry of a data set.

    Raises:
        ValueError: if the name is unknown or was registered by other code.
    """
    entry = dict(DatasetCatalog).get(name)
    if not isinstance(entry, DatasetEntry):
        raise ValueError(
            f"data set {name!r} is not registered with spatialflow.register_panoptic; known are "
            f"{[k for k, v in DatasetCatalog.items() if isinstance(v, DatasetEntry)]}"
        )
    return entry


def ensure_metadata(name: str) -> Metadata:
    """Returns the metadata of a data set, complete.

    A data set registered by `register_panoptic` has it from the start. The built-in ones get it
    when they are first loaded, or here: it comes from a JSON that may not be on this machine.

    Args:
        name: name of the data set; one registered by other code is returned as it is.

    Returns:
        metadata with `thing_classes`, `stuff_classes` and the other fields of `set_metadata`.

    Raises:
        ValueError: if the JSON is missing, or the name is unknown.
    """
    metadata = MetadataCatalog.get(name)
    if metadata.get("stuff_classes") is None:
        set_metadata(*get_entry(name).read())
    return metadata


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
) -> dict:
    """One image in Detectron2's format; see the module's docstring."""
    missing = [k for k in ("height", "width", "file_name") if k not in image]
    if missing:
        raise ValueError(f"image {image} of {source.annotations_json} has no {', '.join(missing)}")
    isthing = {c.id: c.isthing for c in classes}
    contiguous = MetadataCatalog.get(source.name).thing_dataset_id_to_contiguous_id
    pan_seg_file_name = str(Path(source.panoptic_root) / annotation["file_name"])
    segments = complete_segments(source, annotation, mapping)
    for segment in segments:
        segment["isthing"] = isthing[segment["category_id"]]
    return {
        "file_name": source.image_path(image),
        "image_id": image["id"],
        "height": image["height"],
        "width": image["width"],
        "pan_seg_file_name": pan_seg_file_name,
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
