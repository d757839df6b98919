"""What a registered panoptic data set is made of: files, categories, and which images belong to it.

Nothing here knows Detectron2's catalogs. `register.py` turns a `PanopticSource` into dicts and
metadata, `derived.py` into the JSONs that evaluation reads.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from spatialflow.data.palette import palette_color
from spatialflow.data.validation.defects import Problem, enumeration
from spatialflow.data.validation.file_rules import ImageFiles
from spatialflow.data.validation.json_rules import category_problems, list_images

SUPERCATEGORIES = "supercategories"

DERIVED_PREFIX = "spatialflow://"
"""Prefix of the names of derived files, understood by Detectron2's `PathManager`."""

Remap = str | Mapping[str | int, str] | None
Split = tuple[str, float, int] | None


@dataclass(frozen=True)
class Category:
    """A class of a data set, after remapping."""

    id: int
    name: str
    isthing: bool
    color: tuple[int, int, int]
    supercategory: str


@dataclass(frozen=True)
class PanopticSource:
    """The arguments of one registration, hashable, so that two of them can be compared.

    Attributes:
        name: name in Detectron2's catalogs.
        images: folder of the images.
        annotations_json: COCO panoptic JSON.
        panoptic_root: folder of the panoptic PNGs.
        remap: None, "supercategories", or (source name or id, new name) pairs.
        split: None, or ("train" | "val", share of the images that are "val", seed).
        limit: how many images to keep, in the order of their names; None keeps all.
        city_folders: image files lie as Cityscapes keeps them, `<city>/<image id>_leftImg8bit.png`.
    """

    name: str
    images: str
    annotations_json: str
    panoptic_root: str
    remap: str | tuple[tuple[str | int, str], ...] | None = None
    split: tuple[str, float, int] | None = None
    limit: int | None = None
    city_folders: bool = False

    def __post_init__(self) -> None:
        """Checks the options."""
        _check_split(self.name, self.split)
        if isinstance(self.remap, str) and self.remap != SUPERCATEGORIES:
            raise ValueError(
                f"remap of data set {self.name!r} is {self.remap!r}; expected None, "
                f'"{SUPERCATEGORIES}" or a mapping of source category to new name'
            )
        if self.limit is not None and self.limit < 1:
            raise ValueError(
                f"limit of data set {self.name!r} is {self.limit}; expected None or 1 or more"
            )

    @property
    def options(self) -> dict:
        """The options that change what is derived from the JSON (not where the files lie)."""
        return {"remap": self.remap, "split": self.split, "limit": self.limit}

    def image_path(self, image: Mapping) -> str:
        """Returns the file of an image entry of the JSON."""
        if not self.city_folders:
            return str(Path(self.images) / image["file_name"])
        # The JSON of cityscapesScripts names "<id>_gtFine_leftImg8bit.png", which is no file.
        image_id = str(image["id"])
        return str(Path(self.images) / image_id.split("_")[0] / f"{image_id}_leftImg8bit.png")

    def png_path(self, annotation: Mapping) -> str:
        """Returns the panoptic PNG of an annotation of the JSON."""
        return str(Path(self.panoptic_root) / annotation["file_name"])

    def files(self, pairs: Iterable[tuple[dict, dict]]) -> Iterator[tuple[str, str]]:
        """Yields the files of (image entry, annotation) pairs, and the images they belong to."""
        for image, annotation in pairs:
            yield self.image_path(image), image["file_name"]
            yield self.png_path(annotation), image["file_name"]

    def image_files(self, image: Mapping) -> ImageFiles:
        """Returns what the rules of files need of an image entry of the JSON."""
        size = image["height"], image["width"]
        return ImageFiles(image["file_name"], size, self.annotations_json)


def _check_split(name: str, split: Split) -> None:
    if split is None:
        return
    expected = 'expected None or ("train" or "val", fraction between 0 and 1, integer seed)'
    if len(split) != 3 or split[0] not in ("train", "val") or not 0 < float(split[1]) < 1:
        raise ValueError(f"split of data set {name!r} is {split!r}; {expected}")


def read_categories(
    categories: list[dict], remap: Remap | tuple = None, *, where: str = "the JSON"
) -> tuple[list[Category], dict[int, int]]:
    """Reads the classes of a JSON and applies a remap.

    Args:
        categories: the `categories` of a COCO panoptic JSON.
        remap: None; "supercategories"; or source category name or id → new name (a mapping or
            pairs). Categories that it does not name keep their own name. Several categories with
            one new name become one class.
        where: what messages call the JSON.

    Returns:
        the classes in the order of their ids, and source category id → class id. Without a remap
        the ids are the JSON's; with one they are 1, 2, … in the order of the first source.

    Raises:
        DataError: if a category is wrong, a remap names an unknown category, or a class would mix
            things and stuff.
    """
    problems = category_problems(categories, where, unique_names=remap is None)
    if problems:
        raise problems[0].error()
    ordered = sorted(categories, key=lambda c: c["id"])
    new_names = _new_names(ordered, remap, where)

    groups: dict[str | int, list[dict]] = {}
    for category in ordered:
        # Without a remap each category is its own class, even where two share a name.
        key = category["id"] if remap is None else new_names[category["id"]]
        groups.setdefault(key, []).append(category)

    classes, mapping = [], {}
    for position, (key, members) in enumerate(groups.items()):
        if len({bool(m["isthing"]) for m in members}) > 1:
            things = [m["name"] for m in members if m["isthing"]]
            stuff = [m["name"] for m in members if not m["isthing"]]
            raise Problem(
                where,
                f"remap puts things {things} and stuff {stuff} into one class {key!r}; a class is "
                "either a thing or stuff",
            ).error()
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


def _new_names(categories: list[dict], remap: Remap | tuple, where: str) -> dict[int, str]:
    """Source category id → name of its class."""
    if remap == SUPERCATEGORIES:
        without = [c["name"] for c in categories if not c.get("supercategory")]
        if without:
            message = f'remap "{SUPERCATEGORIES}" needs a supercategory for every category; missing'
            raise Problem(where, f"{message} for {enumeration(without)}").error()
        return {c["id"]: c["supercategory"] for c in categories}
    # What is not the string is a mapping or, after registration, its items.
    wanted: dict[str | int, str] = dict(remap or {})  # type: ignore[arg-type]
    known = {c["id"] for c in categories} | {c["name"] for c in categories}
    unknown = [key for key in wanted if key not in known]
    if unknown:
        raise Problem(where, f"remap names categories that are not in it: {unknown}").error()
    return {c["id"]: wanted.get(c["id"], wanted.get(c["name"], c["name"])) for c in categories}


def in_validation_split(file_name: str, fraction: float, seed: int) -> bool:
    """Says whether an image belongs to the validation part, from its name and the seed alone.

    The choice does not depend on the other images, so a data set that grows keeps its split.
    """
    digest = hashlib.sha256(f"{seed}:{file_name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < fraction


@dataclass(frozen=True)
class Selection:
    """What a registration keeps of its JSON.

    Attributes:
        pairs: (image entry, annotation) pairs in the order of the images' names. Those of images
            that `problems` name cannot be used.
        problems: what is wrong with these images, and with entries that belong to no known image.
        unannotated: number of images of the whole JSON that `annotations` do not list.
    """

    pairs: list[tuple[dict, dict]]
    problems: list[Problem]
    unannotated: int

    def sound_pairs(self) -> list[tuple[dict, dict]]:
        """Returns the pairs that no problem names."""
        bad = {problem.image for problem in self.problems}
        return [pair for pair in self.pairs if pair[0]["file_name"] not in bad]


def select(source: PanopticSource, content: dict) -> Selection:
    """Picks the annotated images that a registration keeps.

    Args:
        source: the registration.
        content: its parsed JSON, without problems of its outline.
    """
    listing = list_images(content, source.annotations_json)
    pairs = sorted(listing.pairs, key=lambda pair: pair[0]["file_name"])
    if source.split is not None:
        part, fraction, seed = source.split
        pairs = [
            pair
            for pair in pairs
            if in_validation_split(pair[0]["file_name"], fraction, seed) == (part == "val")
        ]
    pairs = pairs[: source.limit]
    kept = {image["file_name"] for image, _ in pairs}
    elsewhere = {image["file_name"] for image, _ in listing.pairs} - kept
    problems = [problem for problem in listing.problems if problem.image not in elsewhere]
    if not pairs:
        message = (
            f"data set {source.name!r} is empty: split={source.split} and limit={source.limit} "
            "keep no annotated image"
        )
        problems.append(Problem(source.annotations_json, message))
    return Selection(pairs, problems, listing.unannotated)
