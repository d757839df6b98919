"""The description of a registered data set: its files, classes and images.

Nothing here knows Detectron2's catalogs: `registration.py` puts data sets into them, and
`dataset.py` turns a description and its JSON into Detectron2's dicts and metadata.
"""

from __future__ import annotations

import colorsys
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from spatialflow.data.validation.decoding import ListedImage
from spatialflow.data.validation.defects import Defect, DefectError, enumeration
from spatialflow.data.validation.json_rules import check_categories
from spatialflow.utils.errors import ConfigError
from spatialflow.utils.paths import absolute_path

SUPERCATEGORIES = "supercategories"

IGNORE_LABEL = 255
"""Label of void in a semantic map."""

THINGS = "things"
"""Name of label 0 of a semantic map, the same as Detectron2's."""

THINGS_COLOR = (82, 18, 128)
"""RGB colour of label 0 ("things") in a semantic map, the same as Detectron2's."""

NO_THINGS = (
    "has no image with a thing that is not crowd; a training leaves out images without one, unless "
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS is False"
)
"""Defect of a data set for training in which nothing is a thing."""

Pair = tuple[dict, dict]
"""An image entry of a JSON, and its annotation."""

Remap = str | Mapping[str | int, str] | None
Split = tuple[str, float, int] | None

# The conjugate of the golden ratio: its multiples spread evenly over the circle of hues, for any
# number of classes.
_HUE_STEP = 0.618033988749895
_SATURATION_AND_VALUE = ((0.65, 0.95), (0.85, 0.70), (0.45, 0.85), (0.90, 0.50))


@dataclass(frozen=True)
class Category:
    """A class of a data set, after a remap.

    Attributes:
        id: Category id, unique in the data set.
        name: Name of the class.
        isthing: Whether the class is countable (a thing) or not (stuff).
        color: (red, green, blue), each 0 … 255.
        supercategory: Name of the class's supercategory.
    """

    id: int
    name: str
    isthing: bool
    color: tuple[int, int, int]
    supercategory: str


@dataclass(frozen=True)
class DatasetSpec:
    """The arguments of a registration, which can be compared with those of another one.

    Attributes:
        name: Name of the data set in Detectron2's catalogs.
        images: Folder of the images.
        annotations_json: COCO panoptic JSON.
        panoptic_root: Folder of the panoptic PNGs.
        remap: None, "supercategories", or (name or id of a category, new name) pairs.
        split: None, or ("train" | "val", share of the images that are "val", seed).
        limit: Number of images to keep, in the order of their names; None keeps all.
        city_folders: Whether the image files have the names and folders of Cityscapes,
            `<city>/<image id>_leftImg8bit.png`.
        own: Whether a config describes the data itself, as in `DATASETS.FOLDER`.
        given_classes: Classes in their order, in the place of those of the JSON; () for the JSON's,
            in the order of their ids.
        keep: None, or a function that returns those of (image entry, annotation) pairs that the
            data set has, and the names of the images that it has and that are not among them.
        root_variable: Environment variable with the folder that the three paths are relative to;
            "" for absolute paths.
    """

    name: str
    images: str
    annotations_json: str
    panoptic_root: str
    remap: str | tuple[tuple[str | int, str], ...] | None = None
    split: tuple[str, float, int] | None = None
    limit: int | None = None
    city_folders: bool = False
    own: bool = False
    given_classes: tuple[Category, ...] = ()
    keep: Callable[[DatasetSpec, list[Pair]], tuple[list[Pair], list[str]]] | None = None
    root_variable: str = ""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigError: If an option has a value that is not allowed.
        """
        _check_split(self.name, self.split)
        if isinstance(self.remap, str) and self.remap != SUPERCATEGORIES:
            raise ConfigError(
                f"remap of data set {self.name!r} is {self.remap!r}; expected None, "
                f'"{SUPERCATEGORIES}" or a mapping of source category to new name'
            )
        if self.limit is not None and self.limit < 1:
            raise ConfigError(
                f"limit of data set {self.name!r} is {self.limit}; expected None or 1 or more"
            )

    def with_absolute_paths(self) -> DatasetSpec:
        """Return the description with the value that `root_variable` has at this moment."""
        if not self.root_variable:
            return self
        given = os.environ.get(self.root_variable, "datasets")
        root = Path(absolute_path(given, self.root_variable))
        return replace(
            self,
            images=str(root / self.images),
            annotations_json=str(root / self.annotations_json),
            panoptic_root=str(root / self.panoptic_root),
        )

    @property
    def hint(self) -> str:
        """The end of a message about a missing file or folder."""
        if not self.root_variable:
            return ""
        value = os.environ.get(self.root_variable, "not set: ./datasets")
        return (
            f". Data set {self.name!r} is looked for in the folder that the environment "
            f"variable {self.root_variable} names (now {value})"
        )

    @property
    def content_options(self) -> dict:
        """The options that change which images and classes the data set has."""
        options: dict = {"remap": self.remap, "split": self.split, "limit": self.limit}
        if self.given_classes:
            options["classes"] = [asdict(c) for c in self.given_classes]
        return options

    def read_classes(self, categories: list[dict]) -> tuple[list[Category], dict[int, int]]:
        """Return the classes of a JSON, and a mapping of its category ids to class ids.

        Args:
            categories: The `categories` of the JSON.

        Raises:
            DefectError: As `read_categories`, or if the JSON has a category that `given_classes`
                lack or whose kind differs there.
        """
        where = self.annotations_json
        classes, mapping = read_categories(categories, self.remap, where=where)
        if not self.given_classes:
            return classes, mapping
        kinds = {c.id: c.isthing for c in self.given_classes}
        defects = [
            Defect(
                where,
                f"category {c.id} {c.name!r} is {_kind(c.isthing)}, but {_kind(kinds.get(c.id))} "
                f"in the metadata of data set {self.name!r}",
            )
            for c in classes
            if kinds.get(c.id) != c.isthing
        ]
        if defects:
            raise DefectError(defects)
        return list(self.given_classes), {c.id: c.id for c in self.given_classes}

    def image_path(self, image: Mapping) -> str:
        """Return the file of an image entry of the JSON."""
        if not self.city_folders:
            return str(Path(self.images) / image["file_name"])
        # The JSON of cityscapesScripts names "<id>_gtFine_leftImg8bit.png", which does not exist.
        image_id = str(image["id"])
        return str(Path(self.images) / image_id.split("_")[0] / f"{image_id}_leftImg8bit.png")

    def png_path(self, annotation: Mapping) -> str:
        """Return the panoptic PNG of an annotation of the JSON."""
        return str(Path(self.panoptic_root) / annotation["file_name"])

    def files(self, pairs: Iterable[tuple[dict, dict]]) -> Iterator[tuple[str, str]]:
        """Yield the path of each file of (image entry, annotation) pairs, and its image's name."""
        for image, annotation in pairs:
            yield self.image_path(image), image["file_name"]
            yield self.png_path(annotation), image["file_name"]

    def listed_image(self, image: Mapping) -> ListedImage:
        """Return the facts of an image entry of the JSON that its files are compared with."""
        size = image["height"], image["width"]
        return ListedImage(image["file_name"], size, self.annotations_json)


def _kind(isthing: bool | None) -> str:
    return "not listed" if isthing is None else "a thing" if isthing else "stuff"


def _check_split(name: str, split: Split) -> None:
    if split is None:
        return
    expected = 'expected None or ("train" or "val", fraction between 0 and 1, integer seed)'
    if len(split) != 3 or split[0] not in ("train", "val") or not 0 < float(split[1]) < 1:
        raise ConfigError(f"split of data set {name!r} is {split!r}; {expected}")


def palette_color(index: int) -> tuple[int, int, int]:
    """Return the fixed colour of a class whose JSON gives none.

    Args:
        index: Position of the class in the list of categories, 0 or more.

    Returns:
        (red, green, blue), each 0 … 255. Neighbouring indices have clearly different colours.
    """
    hue = (0.03 + index * _HUE_STEP) % 1.0
    saturation, value = _SATURATION_AND_VALUE[index % len(_SATURATION_AND_VALUE)]
    red, green, blue = (round(255 * v) for v in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def read_categories(
    categories: list[dict], remap: Remap | tuple = None, *, where: str = "the JSON"
) -> tuple[list[Category], dict[int, int]]:
    """Read the classes of a JSON and apply a remap.

    Args:
        categories: The `categories` of a COCO panoptic JSON.
        remap: None; "supercategories"; or new names of categories, as a mapping or pairs whose keys
            are names or ids. Categories with one new name become one class. Categories without a
            new name keep their own.
        where: Path of the JSON, for messages.

    Returns:
        Classes in the order of their ids, and a mapping of category id to class id. Without a remap
        the class ids are those of the JSON. With a remap they are 1, 2, … in the order of the first
        category of each class.

    Raises:
        DefectError: If a category is wrong, a remap names an unknown category, or a class would mix
            things and stuff.
    """
    defects = check_categories(categories, where, unique_names=remap is None)
    if defects:
        raise DefectError(defects)
    ordered = sorted(categories, key=lambda c: c["id"])
    new_names = _new_names(ordered, remap, where)

    groups: dict[str | int, list[dict]] = {}
    for category in ordered:
        # Without a remap each category is a class of its own, even if two share a name.
        key = category["id"] if remap is None else new_names[category["id"]]
        groups.setdefault(key, []).append(category)

    classes, mapping = [], {}
    for position, (key, members) in enumerate(groups.items()):
        if len({bool(m["isthing"]) for m in members}) > 1:
            things = [m["name"] for m in members if m["isthing"]]
            stuff = [m["name"] for m in members if not m["isthing"]]
            message = (
                f"remap puts things {things} and stuff {stuff} into one class {key!r}; a class is "
                "either a thing or stuff"
            )
            raise DefectError([Defect(where, message)])
        class_id = members[0]["id"] if remap is None else position + 1
        colors = [m["color"] for m in members if m.get("color")]
        supercategories = {str(m.get("supercategory", m["name"])) for m in members}
        name = new_names[members[0]["id"]]
        classes.append(
            Category(
                id=class_id,
                name=name,
                isthing=bool(members[0]["isthing"]),
                color=tuple(colors[0]) if colors else palette_color(position),
                supercategory=supercategories.pop() if len(supercategories) == 1 else name,
            )
        )
        mapping.update({m["id"]: class_id for m in members})
    return classes, mapping


def unusable_classes(things: int, stuff: int, ignore_label: int) -> str | None:
    """Return why SpatialFlow cannot learn a data set's classes, or None.

    Args:
        things: Number of thing classes.
        stuff: Number of stuff classes.
        ignore_label: Label of unknown pixels in semantic maps, as in
            `MODEL.SEM_SEG_HEAD.IGNORE_VALUE`.
    """
    if not things:
        return "has no thing classes; SpatialFlow needs at least one"
    if 0 <= ignore_label <= stuff:
        return (
            f"has {stuff} stuff classes, one of which has the label {ignore_label} of unknown "
            "pixels; MODEL.SEM_SEG_HEAD.IGNORE_VALUE needs another value"
        )
    return None


def _new_names(categories: list[dict], remap: Remap | tuple, where: str) -> dict[int, str]:
    """Return the name of the class of each category id."""
    if remap == SUPERCATEGORIES:
        without = [c["name"] for c in categories if not c.get("supercategory")]
        if without:
            message = f'remap "{SUPERCATEGORIES}" needs a supercategory for every category; missing'
            raise DefectError([Defect(where, f"{message} for {enumeration(without)}")])
        return {c["id"]: c["supercategory"] for c in categories}
    # Any other remap is a mapping or, after registration, its items.
    wanted: dict[str | int, str] = dict(remap or {})  # type: ignore[arg-type]
    known = {c["id"] for c in categories} | {c["name"] for c in categories}
    unknown = [key for key in wanted if key not in known]
    if unknown:
        message = f"remap names categories that are not in it: {unknown}"
        raise DefectError([Defect(where, message)])
    return {c["id"]: wanted.get(c["id"], wanted.get(c["name"], c["name"])) for c in categories}


def contiguous_numbers(classes: Iterable[Category]) -> dict[int, tuple[bool, int]]:
    """Return class id → whether it is a thing, and its number: things 0, 1, …, stuff 1, 2, …."""
    counts = {True: itertools.count(), False: itertools.count(1)}
    return {c.id: (c.isthing, next(counts[c.isthing])) for c in classes}
