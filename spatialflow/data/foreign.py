"""Panoptic data sets that other code registered: how this package reads them.

`register_coco_panoptic`, `register_coco_panoptic_separated` and `register_all_cityscapes_panoptic`
of Detectron2, and code that follows them, leave the places of the files and the numbers of the
classes in the metadata. That is enough to read the same files as if `register_panoptic` had
registered them. Their own dicts are not: they lack sizes, and some number things and stuff jointly.
They say which images the data set has: other code may filter or split the images of the JSON.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from detectron2.data.catalog import Metadata
from detectron2.utils.file_io import PathManager

from spatialflow.data.dataset_spec import THINGS, Category, DatasetSpec, Pair, palette_color
from spatialflow.utils.errors import ConfigError

PLACES = ("image_root", "panoptic_json", "panoptic_root")
"""Fields of the metadata that name the images, the COCO panoptic JSON and the PNGs."""

VIEW_SUFFIX = "@spatialflow"
"""End of the name under which this package reads a data set of other code."""

_CITYSCAPES = "cityscapes_panoptic_seg"
_DETECTRON2 = "detectron2.data.datasets."


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


@dataclass(frozen=True)
class OwnImages:
    """The images that the function of a data set of other code returns; it is called once.

    Attributes:
        name: Name of the data set.
        load: Function that returns its dicts.
    """

    name: str
    load: Callable[[], list[dict[str, Any]]]

    def __call__(self, spec: DatasetSpec, pairs: list[Pair]) -> tuple[list[Pair], list[str]]:
        """Return the pairs of these images, and the names of those of them that have none.

        An image whose dict names no PNG need not have a pair: it may have no annotation.

        Raises:
            ConfigError: If the function finds no file, or returns an image twice.
        """
        kept, found = [], set()
        for image, annotation in pairs:
            keys = (
                ("pan_seg_file_name", os.path.abspath(spec.png_path(annotation))),
                ("image_id", str(image["id"])),
                ("file_name", os.path.abspath(spec.image_path(image))),
            )
            known = [key for key in keys if key in self._names]
            if known:
                kept.append((image, annotation))
                found.update(known)
        unlisted = [n for k, n in self._names.items() if k not in found and "pan_seg" in k[0]]
        return kept, unlisted

    @cached_property
    def _names(self) -> dict[tuple[str, str], str]:
        """The best key that each dict has, and its value → the name of the image."""
        try:
            dicts = self.load()
        except (AssertionError, OSError) as error:  # Detectron2's functions assert what they need
            raise ConfigError(
                f"data set {self.name!r}: its function fails: {error or type(error).__name__}; "
                "spatialflow.register_panoptic reads the same files"
            ) from error
        keys = [_key(one) for one in dicts]
        twice = [value for (_, value), count in Counter(keys).items() if count > 1]
        if twice:
            raise ConfigError(
                f"data set {self.name!r}: its function returns {twice[0]} more than once; every "
                "image once expected"
            )
        return {key: str(one.get("file_name")) for key, one in zip(keys, dicts, strict=True)}


def _key(found: dict[str, Any]) -> tuple[str, str]:
    """Return what identifies an image: its PNG, else its file, else its id, which may be other."""
    for field in ("pan_seg_file_name", "file_name"):
        if field in found:
            return field, _local(found[field])
    return "image_id", str(found["image_id"])


def foreign_spec(
    name: str, metadata: Metadata, load: Callable[[], list[dict[str, Any]]]
) -> DatasetSpec:
    """Describe a panoptic data set of other code.

    Its thing classes become 0, 1, … and its stuff classes 1, 2, …, each in their order there.

    Args:
        name: Name in Detectron2's catalogs.
        metadata: Its metadata, which have the places.
        load: Function that returns its dicts; those of its images count, of all of the JSON.

    Raises:
        ConfigError: If its classes have no names.
    """
    # Detectron2's functions return all images of the JSON, and expect JPEGs and other files.
    is_detectron2s = getattr(load, "__module__", "").startswith(_DETECTRON2)
    images, annotations_json, panoptic_root = (_local(metadata.get(field)) for field in PLACES)
    return DatasetSpec(
        name=f"{name}{VIEW_SUFFIX}",
        images=images,
        annotations_json=annotations_json,
        panoptic_root=panoptic_root,
        city_folders=metadata.get("evaluator_type") == _CITYSCAPES,
        given_classes=_classes(name, metadata),
        keep=None if is_detectron2s else OwnImages(name, load),
    )


def _local(place: str) -> str:
    return os.path.abspath(Path(PathManager.get_local_path(str(place))).expanduser())


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
