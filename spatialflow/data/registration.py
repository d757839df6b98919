"""Register panoptic data sets; a COCO panoptic JSON and its PNGs are all that a user prepares.

The built-in data sets COCO 2017, Cityscapes and ADE20K have their usual paths in the folder that
the environment variable `DETECTRON2_DATASETS` names. Only names and paths are in here: classes and
colours come from the JSONs, so importing this module needs no data. The variable is read when a
data set is used, not on import.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from spatialflow.data.dataset import PanopticDataset
from spatialflow.data.dataset_spec import IGNORE_LABEL, DatasetSpec, Remap, Split
from spatialflow.data.foreign import VIEW_SUFFIX, foreign_spec, has_places, not_panoptic, numbered
from spatialflow.utils.errors import ConfigError

EVALUATOR_TYPE = "coco_panoptic_seg"
"""Detectron2's name of the evaluators of a panoptic data set."""
NEEDED_FIELDS = (
    "thing_classes",
    "stuff_classes",
    "thing_dataset_id_to_contiguous_id",
    "stuff_dataset_id_to_contiguous_id",
)
"""Fields without which metadata are not complete."""

ROOT_VARIABLE = "DETECTRON2_DATASETS"


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
    """Register a data set in Detectron2's catalogs.

    The JSON is read for the classes. Images, PNGs and evaluation JSONs are not touched before they
    are needed. A second call with the same arguments does nothing.

    Args:
        name: Name for `DATASETS.TRAIN` and `DATASETS.TEST`.
        images: Folder of the images.
        annotations_json: COCO panoptic JSON. Things, stuff and colours come from its `categories`;
            a category without `color` gets one from a fixed palette.
        panoptic_root: Folder of the panoptic PNGs.
        remap: None keeps the categories of the JSON. "supercategories" makes one class of each
            `supercategory` (27 for COCO). A mapping of category name or id to new name merges the
            categories with one new name, and leaves unnamed ones as they are.
        split: None keeps all images. ("train" | "val", fraction, seed) keeps one part of a split:
            about `fraction` of the images are "val", chosen by a hash of seed and file name.
        limit: Number of images to keep, in the order of their names, after the split; None keeps
            all.

    Raises:
        DataError: If the JSON or a folder is missing, the JSON's outline or a category is wrong, or
            a class would mix things and stuff.
        ValueError: If an option is wrong, or other data have the name.
    """
    _register(
        DatasetSpec(
            name=name,
            images=str(Path(images).absolute()),
            annotations_json=str(Path(annotations_json).absolute()),
            panoptic_root=str(Path(panoptic_root).absolute()),
            remap=tuple(sorted(remap.items(), key=str)) if isinstance(remap, Mapping) else remap,
            split=None if split is None else (split[0], split[1], split[2]),
            limit=limit,
        )
    )


def register_own(name: str, folder: Path, **options: Any) -> str:
    """Register data that a config describes itself, and return the data set's name.

    Configs of one process may call different data by one name, such as `folder_val`. The first has
    the name; a later one has the name and a digest of its description, `folder_val@1a2b3c4d`.

    Args:
        name: Name in the config, without a digest.
        folder: Folder with images/, panoptic/ and panoptic.json.
        options: `remap`, `split` and `limit` of `DatasetSpec`.

    Raises:
        DataError: As `register_panoptic`.
        ConfigError: If an option is wrong.
    """
    folder = folder.absolute()
    spec = DatasetSpec(
        name=name,
        images=str(folder / "images"),
        annotations_json=str(folder / "panoptic.json"),
        panoptic_root=str(folder / "panoptic"),
        own=True,
        **options,
    )
    known = dict(DatasetCatalog).get(name)
    if known is not None and not (isinstance(known, PanopticDataset) and known.spec == spec):
        digest = hashlib.sha256(repr(spec).encode()).hexdigest()[:8]
        spec = replace(spec, name=f"{name}@{digest}")
    _register(spec)
    return spec.name


def own_name(name: str) -> str:
    """Return a data set's name in its config, without the end of `register_own` or `view_of`."""
    return re.sub(f"(@[0-9a-f]{{8}}|{VIEW_SUFFIX})$", "", name)


def is_own(name: str) -> bool:
    """Return whether a config of this process has registered a data set as its own."""
    known = dict(DatasetCatalog).get(name)
    return isinstance(known, PanopticDataset) and known.spec.own


def _register(spec: DatasetSpec) -> None:
    if not _is_registered(spec):
        dataset = PanopticDataset(spec)
        dataset.complete_metadata()
        _add_to_catalogs(dataset)


def register_builtin() -> None:
    """Register the built-in data sets; a second call does nothing."""
    for spec in _builtin_specs():
        if not _is_registered(spec):
            _add_to_catalogs(PanopticDataset(spec))


def _builtin_specs() -> list[DatasetSpec]:
    specs = []
    for part, ade_folder in (("train", "training"), ("val", "validation")):
        # COCO's archive unpacks beside its JSON, in annotations/. Detectron2's own COCO data sets
        # expect the PNGs one level up, which is the usual place.
        coco = DatasetSpec(
            name=f"spatialflow_coco_2017_{part}",
            images=f"coco/{part}2017",
            annotations_json=f"coco/annotations/panoptic_{part}2017.json",
            panoptic_root=f"coco/panoptic_{part}2017",
            root_variable=ROOT_VARIABLE,
        )
        cityscapes = DatasetSpec(
            name=f"spatialflow_cityscapes_fine_{part}",
            images=f"cityscapes/leftImg8bit/{part}",
            annotations_json=f"cityscapes/gtFine/cityscapes_panoptic_{part}.json",
            panoptic_root=f"cityscapes/gtFine/cityscapes_panoptic_{part}",
            city_folders=True,
            root_variable=ROOT_VARIABLE,
        )
        ade20k = DatasetSpec(
            name=f"spatialflow_ade20k_{part}",
            images=f"ADEChallengeData2016/images/{ade_folder}",
            annotations_json=f"ADEChallengeData2016/ade20k_panoptic_{part}.json",
            panoptic_root=f"ADEChallengeData2016/ade20k_panoptic_{part}",
            root_variable=ROOT_VARIABLE,
        )
        specs += [coco, cityscapes, ade20k]
    return specs


def _is_registered(spec: DatasetSpec) -> bool:
    """Return whether the same registration was made before.

    Raises:
        ValueError: If another data set has the name.
    """
    if spec.name not in DatasetCatalog:
        return False
    known = DatasetCatalog[spec.name]
    if isinstance(known, PanopticDataset) and known.spec == spec:
        return True
    other = known.spec if isinstance(known, PanopticDataset) else "a data set of other code"
    raise ValueError(
        f"the data set name {spec.name!r} is taken by {other}; it cannot be registered again "
        f"as {spec}. Choose another name, or call unregister({spec.name!r}) first"
    )


def _add_to_catalogs(dataset: PanopticDataset) -> None:
    name = dataset.spec.name
    MetadataCatalog.get(name).set(
        evaluator_type=EVALUATOR_TYPE, ignore_label=IGNORE_LABEL, label_divisor=1000
    )
    DatasetCatalog.register(name, dataset)


def unregister(name: str) -> None:
    """Remove a data set from Detectron2's catalogs; an unknown name is no error."""
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
    if name in MetadataCatalog:
        MetadataCatalog.remove(name)


def view_of(name: str) -> str:
    """Return the name under which this package reads a data set.

    A panoptic data set of other code is registered for this package, too, as `<name>@spatialflow`:
    with sizes, contiguous numbers as in `register_panoptic`, and metadata that go with them. It has
    the images that the registered function returns.

    Args:
        name: Name of a data set.

    Returns:
        That name, or the given one if it is one of `register_panoptic`, unknown, or not panoptic.

    Raises:
        ConfigError: If the metadata of a panoptic data set contradict themselves.
    """
    known = dict(DatasetCatalog).get(name)
    if known is None or isinstance(known, PanopticDataset):
        return name
    metadata = MetadataCatalog.get(name)
    return _register_view(foreign_spec(name, metadata, known)) if has_places(metadata) else name


def _register_view(spec: DatasetSpec) -> str:
    known = dict(DatasetCatalog).get(spec.name)
    if not (isinstance(known, PanopticDataset) and known.spec == spec):
        unregister(spec.name)  # of data that had the name before
        _add_to_catalogs(PanopticDataset(spec))
    return spec.name


def find_dataset(name: str) -> PanopticDataset:
    """Return a registered panoptic data set, also of other code.

    Raises:
        ConfigError: If the name is unknown, or the data set is not panoptic.
    """
    dataset = dict(DatasetCatalog).get(view_of(name))
    if dataset is None:
        raise ConfigError(
            f"data set {name!r} is not registered; known are "
            f"{[k for k, v in DatasetCatalog.items() if isinstance(v, PanopticDataset)]}"
        )
    if not isinstance(dataset, PanopticDataset):
        raise not_panoptic(name, MetadataCatalog.get(name))
    return dataset


def category_ids(metadata: Metadata) -> dict[bool, dict[int, int]]:
    """Return contiguous class → category id of the data set, for things (True) and stuff (False).

    Args:
        metadata: Metadata of a data set, complete.
    """
    return {isthing: numbered(metadata, isthing=isthing) for isthing in (True, False)}


def ensure_metadata(name: str) -> Metadata:
    """Return the metadata of a data set, complete.

    `register_panoptic` completes the metadata at once. The metadata of a built-in data set come
    from a JSON that may be missing on this machine; so its first load completes them, or this
    function.

    Args:
        name: Name of the data set. Metadata that other code completed are returned unchanged.

    Returns:
        Metadata with `thing_classes`, `stuff_classes` and the other fields that `set_metadata`
        gives them.

    Raises:
        ValueError: If the JSON is missing, or the name is unknown or that of no panoptic data set.
    """
    metadata = MetadataCatalog.get(name)
    if all(metadata.get(field) is not None for field in NEEDED_FIELDS):
        return metadata
    dataset = find_dataset(name)
    dataset.complete_metadata()
    return MetadataCatalog.get(dataset.spec.name)
