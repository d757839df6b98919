"""Registration of panoptic data sets: a COCO panoptic JSON and its PNGs are all a user prepares."""

from collections.abc import Mapping
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from spatialflow.data.dataset import DatasetEntry, set_metadata
from spatialflow.data.dataset_spec import PanopticSource, Remap, Split

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

    The JSON is read once for the classes; its images, the PNGs and derived files are not touched
    before they are needed. A second call with the same arguments does nothing.

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
        DataError: if the JSON or a folder is missing, the JSON's outline or a category is wrong, or
            a class would mix things and stuff.
        ValueError: if an option is wrong, or the name is taken by other data.
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
    entry = DatasetEntry(source)
    _, content = entry.read()
    add_to_catalogs(entry, content)


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
