"""The rules of a COCO panoptic JSON, and which annotation belongs to which image.

Nothing here opens an image or a PNG. The rules are about types too: a JSON that passes can be used
without a further look.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spatialflow.data.validation.defects import Problem, enumeration, shown
from spatialflow.data.validation.entry_rules import (
    category_messages,
    file_name_message,
    is_id,
    segments_messages,
    size_message,
)

_LISTS = ("images", "annotations", "categories")


def read_json(path: str | Path, hint: str = "") -> tuple[Any, list[Problem]]:
    """Reads a JSON file and checks that it has the outline of a COCO panoptic JSON.

    Args:
        path: the file.
        hint: appended to the message when the file is missing.

    Returns:
        the parsed content (None if it cannot be parsed), and what is wrong with its outline.
    """
    where = str(path)
    constants: list[str] = []

    def note(constant: str) -> float:
        constants.append(constant)
        return math.nan

    try:
        if Path(path).exists() and not Path(path).is_file():
            return None, [Problem(where, "is not a file; a COCO panoptic JSON is expected")]
        content = json.loads(Path(path).read_bytes(), parse_constant=note)
    except FileNotFoundError:
        return None, [Problem(where, "no such file" + hint)]
    except OSError as error:
        return None, [Problem(where, f"cannot be read: {error.strerror}")]
    except RecursionError:
        return None, [Problem(where, "is nested too deeply for a COCO panoptic JSON")]
    except ValueError as error:
        return None, [Problem(where, f"is not valid JSON: {error}")]
    if constants:
        message = f"is not valid JSON: it holds {constants[0]}{_place_of_nan(content)}"
        return None, [Problem(where, message)]
    return content, structure_problems(content, where)


def _place_of_nan(content: Any) -> str:
    """Where the first constant stands that JSON does not have; empty if it was overwritten."""
    waiting = [("", content)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, float) and math.isnan(value):
            return f" at {place.lstrip('.')}"
        if isinstance(value, dict):
            waiting.extend((f"{place}.{k}", v) for k, v in reversed(value.items()))
        elif isinstance(value, list):
            waiting.extend((f"{place}[{i}]", v) for i, v in reversed(list(enumerate(value))))
    return ""


def structure_problems(content: Any, where: str) -> list[Problem]:
    """Checks the outline: an object with three lists, and annotations that are panoptic.

    Args:
        content: the parsed JSON.
        where: the file, for messages.
    """
    expected = "a COCO panoptic JSON is expected"
    if not isinstance(content, dict):
        return [Problem(where, f"holds {shown(content)}, which is no object: {expected}")]
    problems = []
    for key in _LISTS:
        if key not in content:
            problems.append(Problem(where, f"has no {key!r}: {expected}"))
        elif not isinstance(content[key], list):
            message = f"{key!r} is {shown(content[key])}, which is no list: {expected}"
            problems.append(Problem(where, message))
    if not problems:
        annotations = [a for a in content["annotations"] if isinstance(a, dict)]
        if annotations and not any("segments_info" in a for a in annotations):
            message = "its annotations have no 'segments_info': "
            problems.append(Problem(where, f"{message}{expected}; is it a COCO instances JSON?"))
    return problems


def category_problems(categories: list, where: str, *, unique_names: bool = True) -> list[Problem]:
    """Checks the categories.

    Args:
        categories: the list of that name.
        where: the file, for messages.
        unique_names: two categories may not share a name; False where a remap makes one class of
            such two.
    """
    if not categories:
        return [Problem(where, "'categories' is empty")]
    problems: list[Problem] = []
    for i, category in enumerate(categories):
        messages = list(category_messages(category))
        problems.extend(Problem(where, f"categories[{i}]: {m}") for m in messages)
    objects = [c for c in categories if isinstance(c, dict)]
    for key, wanted in (("id", True), ("name", unique_names)):
        values = [c.get(key) for c in objects]
        counts = Counter(v for v in values if isinstance(v, (int, str)))
        double = [shown(v) for v, n in counts.items() if n > 1]
        if double and wanted:
            message = f"several categories have the same {key}: {enumeration(double)}"
            problems.append(Problem(where, message))
    return problems


@dataclass
class Listing:
    """What a JSON lists: images with their annotations.

    Attributes:
        pairs: (image entry, annotation) of each image that has both; an entry that is in `problems`
            may lack any field but the image's `id` and `file_name`.
        problems: what is wrong with the entries, each with the image that it concerns.
        unannotated: number of images that `annotations` do not list.
    """

    pairs: list[tuple[dict, dict]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    unannotated: int = 0


def list_images(content: dict, where: str) -> Listing:
    """Checks images and annotations and brings them together.

    Args:
        content: a parsed JSON without `structure_problems`.
        where: the file, for messages.
    """
    listing = Listing()

    def report(image: str, message: str) -> None:
        listing.problems.append(Problem(where, f"{image}: {message}", image))

    images = _listed_images(content["images"], report)
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
        if not is_id(image_id) or image_id not in images:
            report(place, f"image_id is {shown(image_id)}, which 'images' do not list")
            continue
        annotations.setdefault(image_id, []).append(annotation)
        image = images[image_id][0][0]
        message = file_name_message(annotation)
        if message is not None:
            report(image, f"{place} {message}")
        else:
            pngs.setdefault(os.path.normpath(annotation["file_name"]), []).append(image)
        for message in segments_messages(annotation, category_ids):
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


def _listed_images(
    images: list, report: Callable[[str, str], None]
) -> dict[int | str, list[tuple[str, dict]]]:
    """Image id → what messages call the image, and its entry; several where an id is not unique."""
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
        if is_id(image_id):
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
    # Evaluators sort ids, which numbers and strings together do not stand.
    kinds = Counter(type(image_id) for image_id in listed)
    for image_id, entries in listed.items():
        if len(kinds) > 1 and type(image_id) is not kinds.most_common(1)[0][0]:
            report(entries[0][0], f"id is {shown(image_id)}, of another type than most ids")
    return listed


def json_problems(content: Any, where: str, *, unique_names: bool = True) -> list[Problem]:
    """Checks a parsed JSON.

    Args:
        content: what was parsed, of any type.
        where: the file, for messages.
        unique_names: see `category_problems`.

    Returns:
        all problems; those of the outline alone where there are any.
    """
    problems = structure_problems(content, where)
    if problems:
        return problems
    categories = category_problems(content["categories"], where, unique_names=unique_names)
    return categories + list_images(content, where).problems
