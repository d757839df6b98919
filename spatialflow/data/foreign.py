"""Panoptic data sets that other code registered: how this package reads them.

`register_coco_panoptic`, `register_coco_panoptic_separated` and `register_all_cityscapes_panoptic`
of Detectron2, and code that follows them, leave the places of the files and the numbers of the
classes in the metadata. That is enough to read the same files as if `register_panoptic` had
registered them. Their own dicts are not: they lack sizes, and some number things and stuff jointly.
"""

from __future__ import annotations

from pathlib import Path

from detectron2.data.catalog import Metadata
from detectron2.utils.file_io import PathManager

from spatialflow.data.dataset_spec import THINGS, Category, DatasetSpec, palette_color
from spatialflow.utils.errors import ConfigError

PLACES = ("image_root", "panoptic_json", "panoptic_root")
"""Fields of the metadata that name the images, the COCO panoptic JSON and the PNGs."""

VIEW_SUFFIX = "@spatialflow"
"""End of the name under which this package reads a data set of other code."""

_CITYSCAPES = "cityscapes_panoptic_seg"


def has_places(metadata: Metadata) -> bool:
    """Return whether metadata say where the files of a panoptic data set are."""
    return all(metadata.get(field) for field in PLACES)


def numbered(metadata: Metadata, *, isthing: bool) -> dict[int, int]:
    """Return contiguous number → category id of the thing or stuff classes, in their order.

    Detectron2 lists label 0 of all things among the stuff classes; it is left out.

    Args:
        metadata: Metadata of a data set, complete.
        isthing: Whether to return thing or stuff classes.
    """
    kind = "thing" if isthing else "stuff"
    ids: dict[int, int] = metadata.get(f"{kind}_dataset_id_to_contiguous_id")
    is_label = not isthing and metadata.get("stuff_classes", [""])[:1] == [THINGS]
    return {n: i for i, n in sorted(ids.items(), key=lambda item: item[1]) if n or not is_label}


def not_panoptic(name: str, metadata: Metadata) -> ConfigError:
    """Return the error that a data set of other code is not panoptic."""
    missing = [field for field in PLACES if not metadata.get(field)]
    return ConfigError(
        f"data set {name!r} is not panoptic: its metadata have no {', '.join(missing)}; a data set "
        "of spatialflow.register_panoptic, or of Detectron2's register_coco_panoptic or "
        "register_coco_panoptic_separated expected"
    )


def foreign_spec(name: str, metadata: Metadata) -> DatasetSpec:
    """Describe a panoptic data set of other code.

    Its thing classes become 0, 1, … and its stuff classes 1, 2, …, each in their order there.

    Args:
        name: Name in Detectron2's catalogs.
        metadata: Its metadata, which have the places.

    Raises:
        ConfigError: If its classes have no names.
    """
    images, annotations_json, panoptic_root = (_local(metadata.get(field)) for field in PLACES)
    return DatasetSpec(
        name=f"{name}{VIEW_SUFFIX}",
        images=images,
        annotations_json=annotations_json,
        panoptic_root=panoptic_root,
        city_folders=metadata.get("evaluator_type") == _CITYSCAPES,
        given_classes=_classes(name, metadata),
    )


def _local(place: str) -> str:
    return str(Path(PathManager.get_local_path(str(place))).expanduser().absolute())


def _classes(name: str, metadata: Metadata) -> tuple[Category, ...]:
    """Return the classes in the order of their numbers; () if the metadata do not number them."""
    classes: list[Category] = []
    for isthing, kind in ((True, "thing"), (False, "stuff")):
        if metadata.get(f"{kind}_dataset_id_to_contiguous_id") is None:
            return ()
        names = metadata.get(f"{kind}_classes") or []
        colors = metadata.get(f"{kind}_colors") or []
        for number, category_id in numbered(metadata, isthing=isthing).items():
            if not 0 <= number < len(names):
                raise ConfigError(
                    f"data set {name!r}: its metadata have number {number} for category "
                    f"{category_id}, but {len(names)} names in {kind}_classes"
                )
            color = tuple(colors[number]) if number < len(colors) else palette_color(len(classes))
            classes.append(Category(category_id, names[number], isthing, color, names[number]))
    return tuple(classes)
