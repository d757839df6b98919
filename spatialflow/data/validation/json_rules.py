"""The rules of a COCO panoptic JSON, and the images that it lists.

Nothing here opens a file. The rules include the types of values: code that uses a JSON without
defects needs no further check. Functions that return or yield messages leave out the place of the
entry; their callers add it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from spatialflow.data.panoptic_png import MAX_SEGMENT_ID
from spatialflow.data.validation.defects import Defect, enumeration, shown

MAX_SEGMENTS = 2**16 - 2
"""Most segments of one image: the mapper numbers segments and void in two bytes."""

_LISTS = ("images", "annotations", "categories")
# int and float represent and add numbers below this exactly.
_MAX_NUMBER = 2**52
# A field that is wrong in all segments of an image would else give thousands of messages.
_MAX_SEGMENT_MESSAGES = 3


@dataclass
class Listing:
    """The annotated images of a JSON.

    Attributes:
        pairs: (image entry, annotation) of each image that has both. The entries of an image that
            `defects` name have `id` and `file_name`; any other field may be missing or wrong.
        defects: Defects of images and annotations. Each names an image, or the place of its entry.
        unannotated: Number of images without an annotation.
    """

    pairs: list[tuple[dict, dict]] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)
    unannotated: int = 0


def check_structure(content: Any, where: str) -> list[Defect]:
    """Check the outline: an object with three lists, and annotations that are panoptic.

    Args:
        content: Parsed JSON of any type.
        where: Path of the JSON, for messages.
    """
    expected = "a COCO panoptic JSON is expected"
    if not isinstance(content, dict):
        return [Defect(where, f"holds {shown(content)}, which is no object: {expected}")]
    defects = []
    for key in _LISTS:
        if key not in content:
            defects.append(Defect(where, f"has no {key!r}: {expected}"))
        elif not isinstance(content[key], list):
            message = f"{key!r} is {shown(content[key])}, which is no list: {expected}"
            defects.append(Defect(where, message))
    if not defects:
        annotations = [a for a in content["annotations"] if isinstance(a, dict)]
        if annotations and not any("segments_info" in a for a in annotations):
            message = "its annotations have no 'segments_info': "
            defects.append(Defect(where, f"{message}{expected}; is it a COCO instances JSON?"))
    return defects


def check_categories(categories: list, where: str, *, unique_names: bool = True) -> list[Defect]:
    """Check the categories.

    Args:
        categories: The list `categories` of the JSON.
        where: Path of the JSON, for messages.
        unique_names: Whether two categories with one name are a defect. A remap makes one class of
            them, so it allows them.
    """
    if not categories:
        return [Defect(where, "'categories' is empty")]
    defects: list[Defect] = []
    for i, category in enumerate(categories):
        messages = list(_category_messages(category))
        defects.extend(Defect(where, f"categories[{i}]: {m}") for m in messages)
    objects = [c for c in categories if isinstance(c, dict)]
    for key, wanted in (("id", True), ("name", unique_names)):
        values = [c.get(key) for c in objects]
        counts = Counter(v for v in values if isinstance(v, (int, str)))
        double = [shown(v) for v, n in counts.items() if n > 1]
        if double and wanted:
            message = f"several categories have the same {key}: {enumeration(double)}"
            defects.append(Defect(where, message))
    return defects


def list_images(content: dict, where: str) -> Listing:
    """Check images and annotations, and match them.

    Args:
        content: Parsed JSON without defects of `check_structure`.
        where: Path of the JSON, for messages.
    """
    listing = Listing()

    def report(image: str, message: str) -> None:
        listing.defects.append(Defect(where, f"{image}: {message}", image))

    images = _images_by_id(content["images"], report)
    categories = [c.get("id") for c in content["categories"] if isinstance(c, dict)]
    category_ids = {c for c in categories if type(c) is int}
    annotations: dict[int | str, list[dict]] = {}
    pngs: dict[str, list[str]] = {}
    for i, annotation in enumerate(content["annotations"]):
        place = f"annotations[{i}]"
        if not isinstance(annotation, dict):
            report(place, f"{shown(annotation)} is no object")
            continue
        image_id = annotation.get("image_id")
        if not _is_image_id(image_id) or image_id not in images:
            report(place, f"image_id is {shown(image_id)}, which 'images' do not list")
            continue
        annotations.setdefault(image_id, []).append(annotation)
        image = images[image_id][0][0]
        message = file_name_message(annotation)
        if message is not None:
            report(image, f"{place} {message}")
        else:
            pngs.setdefault(os.path.normpath(annotation["file_name"]), []).append(image)
        for message in _segments_messages(annotation, category_ids):
            report(image, f"{place} {message}")
    for image_id, entries in images.items():
        own = annotations.get(image_id, [])
        if len(own) > 1:
            report(entries[0][0], f"has {len(own)} annotations; one is expected")
        listing.unannotated += not own
        if own and file_name_message(entries[0][1]) is None:
            listing.pairs.append((entries[0][1], own[0]))
    for png, users in pngs.items():
        if len(users) > 1:
            for image in users:
                report(image, f"its panoptic PNG {shown(png)} is that of {len(users)} annotations")
    return listing


def _images_by_id(
    images: list, report: Callable[[str, str], None]
) -> dict[int | str, list[tuple[str, dict]]]:
    """Check the images.

    Returns:
        Image id → (name for messages, entry) pairs; several where an id is not unique.
    """
    listed: dict[int | str, list[tuple[str, dict]]] = {}
    names: dict[str, list[str]] = {}
    for i, entry in enumerate(images):
        place = f"images[{i}]"
        if not isinstance(entry, dict):
            report(place, f"{shown(entry)} is no object")
            continue
        message = file_name_message(entry)
        image = place if message is not None else entry["file_name"]
        if message is None:
            names.setdefault(os.path.normpath(image), []).append(image)
        image_id = entry.get("id")
        if _is_image_id(image_id):
            listed.setdefault(image_id, []).append((image, entry))
            id_message = None
        else:
            id_message = f"id is {shown(image_id)}; an integer or a string expected"
        for wrong in (message, id_message, size_message(entry)):
            if wrong is not None:
                report(image, wrong)
    for same in names.values():
        if len(same) > 1:
            for image in same:
                report(image, f"file_name is that of {len(same)} images")
    for image_id, entries in listed.items():
        if len(entries) > 1:
            for image, _ in entries:
                report(image, f"id {shown(image_id)} is that of {len(entries)} images")
    # Evaluators sort ids, and numbers cannot be compared with strings.
    kinds = Counter(type(image_id) for image_id in listed)
    for image_id, entries in listed.items():
        if len(kinds) > 1 and type(image_id) is not kinds.most_common(1)[0][0]:
            report(entries[0][0], f"id is {shown(image_id)}, of another type than most ids")
    return listed


def file_name_message(entry: dict) -> str | None:
    """Return the defect of the `file_name` of an image or an annotation, or None."""
    if "file_name" not in entry:
        return "has no file_name"
    name = entry["file_name"]
    if not isinstance(name, str) or not name:
        return f"file_name is {shown(name)}; the name of a file expected"
    try:
        possible = b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        return f"file_name is {shown(name)}, which no file can have as its name"
    if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] in ("..", "."):
        return f"file_name is {shown(name)}, which is no file inside the folder"
    return None


def size_message(image: dict) -> str | None:
    """Return the defect of the height or the width of an image entry, or None."""
    for key in ("height", "width"):
        if key not in image:
            return f"has no {key}"
        if not _is_count(image[key]) or image[key] == 0:
            return f"{key} is {shown(image[key])}; a positive integer expected"
    return None


def comparable_segments(annotation: dict) -> list[dict] | None:
    """Return segments that can be compared with a PNG, although other fields may be wrong.

    Returns:
        The segments without wrong areas and boxes. None if an id is wrong.
    """
    segments = annotation.get("segments_info")
    if not isinstance(segments, list) or not all(
        isinstance(s, dict) and _is_segment_id(s.get("id")) for s in segments
    ):
        return None
    if len({s["id"] for s in segments}) < len(segments):
        return None
    rules = {"area": _is_number, "bbox": _is_box}
    return [
        {k: v for k, v in segment.items() if k not in rules or rules[k](v)} for segment in segments
    ]


def _category_messages(category: Any) -> Iterator[str]:
    if not isinstance(category, dict):
        yield f"{shown(category)} is no object"
        return
    missing = [key for key in ("id", "name", "isthing") if key not in category]
    if missing:
        yield f"has no {', '.join(missing)}"
    if not _is_count(category.get("id", 0)):
        yield f"id is {shown(category['id'])}; an integer, 0 or more, expected"
    name = category.get("name", "?")
    if not (isinstance(name, str) and name):
        yield f"name is {shown(name)}; a string expected"
    if not _is_flag(category.get("isthing", 0)):
        yield f"isthing is {shown(category['isthing'])}; 0 or 1 expected"
    color = category.get("color")
    if color and not (
        isinstance(color, list) and len(color) == 3 and all(_is_count(v) and v < 256 for v in color)
    ):
        yield f"color is {shown(color)}; three integers from 0 to 255 expected"
    supercategory = category.get("supercategory")
    if supercategory is not None and not isinstance(supercategory, str):
        yield f"supercategory is {shown(supercategory)}; a string expected"


def _segments_messages(annotation: dict, category_ids: Collection[int]) -> Iterator[str]:
    if "segments_info" not in annotation:
        yield "has no segments_info"
        return
    segments = annotation["segments_info"]
    if not isinstance(segments, list):
        yield f"segments_info is {shown(segments)}, which is no list"
        return
    wrong = 0
    for i, segment in enumerate(segments):
        message = _segment_message(segment, category_ids)
        if message is not None:
            wrong += 1
            if wrong <= _MAX_SEGMENT_MESSAGES:
                yield f"segments_info[{i}]: {message}"
    if wrong > _MAX_SEGMENT_MESSAGES:
        yield f"{wrong - _MAX_SEGMENT_MESSAGES} more entries of segments_info are wrong"
    if len(segments) > MAX_SEGMENTS:
        yield f"has {len(segments)} segments; at most {MAX_SEGMENTS} are possible"
    ids = [s["id"] for s in segments if isinstance(s, dict) and _is_count(s.get("id"))]
    if len(set(ids)) < len(ids):
        double = [segment_id for segment_id, n in Counter(ids).items() if n > 1]
        yield f"several segments have the same id: {enumeration(double)}"


def _segment_message(segment: Any, category_ids: Collection[int]) -> str | None:
    """Return the first defect of a segment, or None; a JSON may have a million segments."""
    if not isinstance(segment, dict):
        return f"{shown(segment)} is no object"
    if "id" not in segment or "category_id" not in segment:
        return f"has no {'category_id' if 'id' in segment else 'id'}"
    segment_id, category_id = segment["id"], segment["category_id"]
    if not _is_segment_id(segment_id):
        return f"id is {shown(segment_id)}; an integer from 1 to {MAX_SEGMENT_ID} expected"
    if type(category_id) is not int or category_id not in category_ids:
        return f"category_id is {shown(category_id)}, which 'categories' do not list"
    if not _is_flag(segment.get("iscrowd", 0)):
        return f"iscrowd is {shown(segment['iscrowd'])}; 0 or 1 expected"
    area = segment.get("area", 0)
    if not _is_number(area) or area < 0:
        return f"area is {shown(area)}; a number of pixels expected"
    if "bbox" in segment and not _is_box(segment["bbox"]):
        return f"bbox is {shown(segment['bbox'])}; [x, y, width, height] expected"
    return None


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_flag(value: Any) -> bool:
    return isinstance(value, int) and value in (0, 1)


def _is_image_id(value: Any) -> TypeGuard[int | str]:
    """Return whether a value can be the id of an image; Cityscapes has strings."""
    return type(value) is int or (type(value) is str and value != "")


def _is_segment_id(value: Any) -> bool:
    return type(value) is int and 0 < value <= MAX_SEGMENT_ID


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _MAX_NUMBER  # False for NaN


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(_is_number(v) and v >= 0 for v in box)
