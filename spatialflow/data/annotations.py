"""Read a COCO panoptic JSON: each file is parsed and checked once in a process."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spatialflow.data.validation.defects import Defect, DefectError
from spatialflow.data.validation.json_rules import Listing, check_structure, list_images

KEPT_JSONS = 2
"""Parsed JSONs that a process keeps: one to train on and one to evaluate on."""


@dataclass(frozen=True)
class PanopticJson:
    """A parsed COCO panoptic JSON, whose outline, images and annotations were checked.

    All callers in a process share it. Nobody may change it, or give parts of it to users.

    Attributes:
        categories: The unchecked list `categories`; a remap decides what is allowed there.
        listing: Annotated images, and defects of images and annotations.
        info: Value of `info`, of any type.
        licenses: Value of `licenses`, of any type.
        sha256: Hash object of the file's bytes. Copy it to add more bytes.
    """

    categories: list
    listing: Listing
    info: Any
    licenses: Any
    sha256: Any


def read_panoptic_json(path: str, hint: str = "") -> PanopticJson:
    """Read and check a COCO panoptic JSON, or return it again if the file has not changed.

    A process keeps the last `KEPT_JSONS` files that were read. A file with another size,
    modification time or inode is read again.

    Args:
        path: JSON file.
        hint: End of the message if the file is missing.

    Raises:
        DefectError: If the file is missing, no valid JSON, or has the outline of another format.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise DefectError([Defect(path, "is not a file; a COCO panoptic JSON is expected")])
        return _parse(path, status.st_size, status.st_mtime_ns, status.st_ino)
    except FileNotFoundError:
        raise DefectError([Defect(path, f"no such file{hint}")]) from None
    except OSError as error:
        raise DefectError([Defect(path, f"cannot be read: {error.strerror}")]) from None


@functools.lru_cache(maxsize=KEPT_JSONS)
def _parse(path: str, size: int, mtime_ns: int, inode: int) -> PanopticJson:
    """Parse and check a JSON; all arguments but the path are the key of the cache."""
    constants: list[str] = []

    def note(constant: str) -> float:
        constants.append(constant)
        return math.nan

    data = Path(path).read_bytes()
    try:
        content = json.loads(data, parse_constant=note)
    except RecursionError:
        message = "is nested too deeply for a COCO panoptic JSON"
        raise DefectError([Defect(path, message)]) from None
    except ValueError as error:
        raise DefectError([Defect(path, f"is not valid JSON: {error}")]) from None
    if constants:
        message = f"is not valid JSON: it holds {constants[0]}{_place_of_nan(content)}"
        raise DefectError([Defect(path, message)])
    defects = check_structure(content, path)
    if defects:
        raise DefectError(defects)
    return PanopticJson(
        categories=content["categories"],
        listing=list_images(content, path),
        info=content.get("info", {}),
        licenses=content.get("licenses", []),
        sha256=hashlib.sha256(data),
    )


def _place_of_nan(content: Any) -> str:
    """Return the place of the first NaN or infinity; "" if a later value replaced it."""
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
