"""The rules of single entries of a COCO panoptic JSON: categories, images, segments."""

import os
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any, TypeGuard

from spatialflow.data.validation.defects import enumeration, shown

MAX_SEGMENT_ID = 2**24 - 1

MAX_SEGMENTS = 2**16 - 2
"""Segments of one image: the mapper numbers them, and void, in two bytes."""

# Numbers below this are exact, and may be added, as int and as float.
_MOST = 2**52
# Of one image; a field that is wrong everywhere is not told for each segment.
_MOST_SEGMENTS_TOLD = 3


def category_messages(category: Any) -> Iterator[str]:
    """Says what is wrong with an entry of `categories`."""
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


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_flag(value: Any) -> bool:
    return isinstance(value, int) and value in (0, 1)


def _is_segment_id(value: Any) -> bool:
    return type(value) is int and 0 < value <= MAX_SEGMENT_ID


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < _MOST  # False for NaN


def is_id(value: Any) -> TypeGuard[int | str]:
    """Says whether a value may be the id of an image: Cityscapes has strings."""
    return type(value) is int or (type(value) is str and value != "")


def file_name_message(entry: dict) -> str | None:
    """Says what is wrong with the `file_name` of an image or an annotation; None if nothing."""
    if "file_name" not in entry:
        return "has no file_name"
    name = entry["file_name"]
    if not isinstance(name, str) or not name:
        return f"file_name is {shown(name)}; the name of a file expected"
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return f"file_name is {shown(name)}, which no file can have as its name"
    if "\0" in name:
        return f"file_name is {shown(name)}, which no file can have as its name"
    normal = os.path.normpath(name)
    if os.path.isabs(name) or normal.split(os.sep)[0] in ("..", "."):
        return f"file_name is {shown(name)}, which is no file inside the folder"
    return None


def size_message(image: dict) -> str | None:
    """Says what is wrong with the height and width of an image entry; None if nothing."""
    for key in ("height", "width"):
        if key not in image:
            return f"has no {key}"
        if not _is_count(image[key]) or image[key] == 0:
            return f"{key} is {shown(image[key])}; a positive integer expected"
    return None


def segments_messages(annotation: dict, category_ids: Collection[int]) -> Iterator[str]:
    """Says what is wrong with the `segments_info` of an annotation.

    Args:
        annotation: an entry of `annotations`.
        category_ids: the ids that `categories` list.
    """
    if "segments_info" not in annotation:
        yield "has no segments_info"
        return
    segments = annotation["segments_info"]
    if not isinstance(segments, list):
        yield f"segments_info is {shown(segments)}, which is no list"
        return
    told = 0
    for i, segment in enumerate(segments):
        message = _segment_message(segment, category_ids)
        if message is not None:
            told += 1
            if told <= _MOST_SEGMENTS_TOLD:
                yield f"segments_info[{i}]: {message}"
    if told > _MOST_SEGMENTS_TOLD:
        yield f"{told - _MOST_SEGMENTS_TOLD} more entries of segments_info are wrong"
    if len(segments) > MAX_SEGMENTS:
        yield f"has {len(segments)} segments; at most {MAX_SEGMENTS} are possible"
    ids = [s["id"] for s in segments if isinstance(s, dict) and _is_count(s.get("id"))]
    if len(set(ids)) < len(ids):
        double = [segment_id for segment_id, n in Counter(ids).items() if n > 1]
        yield f"several segments have the same id: {enumeration(double)}"


def _segment_message(segment: Any, category_ids: Collection[int]) -> str | None:
    """The first thing that is wrong with a segment; there may be a million of them."""
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


def comparable_segments(annotation: dict) -> list[dict] | None:
    """Returns segments whose ids can be compared with a PNG, whatever else is wrong with them.

    Areas and boxes that are no numbers are left out; None if an id is wrong.
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


def _is_box(box: Any) -> bool:
    """Says whether a value is four numbers, none of them negative."""
    return isinstance(box, list) and len(box) == 4 and all(_is_number(v) and v >= 0 for v in box)
