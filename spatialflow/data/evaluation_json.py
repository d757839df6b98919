"""JSONs derived from a registration, which evaluation reads: the panoptic truth and the instances.

They are made when first asked for, in a cache folder (`SPATIALFLOW_CACHE`, else
`~/.cache/spatialflow`), never beside the user's data. The metadata names them
`spatialflow://<data set>/panoptic.json` and `…/instances.json`; Detectron2's `PathManager` turns
such a name into a local file, so Detectron2's own evaluators work on splits and remaps unchanged.
"""

import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from detectron2.utils.file_io import PathHandler, PathManager

from spatialflow.data.dataset_spec import (
    DERIVED_PREFIX,
    Category,
    PanopticSource,
    read_categories,
    select,
)
from spatialflow.data.panoptic_png import segment_masks, write_panoptic_png
from spatialflow.data.registration import get_entry
from spatialflow.data.segments import complete_segments
from spatialflow.data.validation.defects import Problem
from spatialflow.data.validation.file_rules import missing_files
from spatialflow.data.validation.segment_map import read_segments
from spatialflow.utils.files import write_atomically

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "SPATIALFLOW_CACHE"

# Part of the cache key. Raise it when the content of a derived file changes.
_VERSION = 2


def cache_root() -> Path:
    """Returns the folder of derived files; it need not exist yet."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "spatialflow"


def panoptic_json(name: str) -> Path:
    """Returns the COCO panoptic JSON of a registered data set as it is evaluated.

    It holds the images of the split, remapped classes, and at most one segment of each stuff class
    (and one crowd of each class) in an image, as PQ requires: where a remap leaves several, the PNG
    is rewritten into the cache and named by its absolute path.

    Args:
        name: a name given to `register_panoptic`, or a built-in one.

    Returns:
        a file in the cache, made now if it is not there.

    Raises:
        DataError: if a file of the data set is missing or wrong.
        ValueError: if the name is unknown.
    """
    return _derived_file(name, "panoptic.json", _derive_panoptic)


def instances_json(name: str) -> Path:
    """Returns the COCO instances JSON of a registered data set: its things, with RLE masks.

    Args:
        name: a name given to `register_panoptic`, or a built-in one.

    Returns:
        a file in the cache, made now if it is not there.

    Raises:
        DataError: if a file of the data set is missing or wrong.
        ValueError: if the name is unknown.
    """
    return _derived_file(name, "instances.json", _derive_instances)


def _derived_file(name: str, file_name: str, derive: Callable[..., dict]) -> Path:
    entry = get_entry(name)
    source, content = entry.read()
    selection = select(source, content)
    pairs = selection.pairs
    pngs = ((source.png_path(a), i["file_name"]) for i, a in selection.sound_pairs())
    problems = selection.problems + missing_files(pngs, source.annotations_json)
    if problems:
        raise entry.error(problems)
    folder = cache_root() / f"{name.replace('/', '_')}-{_key(source, pairs)}"
    path = folder / file_name
    if not path.is_file():
        logger.info("deriving %s of %s from %d images", file_name, name, len(pairs))
        folder.mkdir(parents=True, exist_ok=True)
        classes, mapping = read_categories(
            content["categories"], source.remap, where=source.annotations_json
        )
        derived = derive(source, pairs, classes, mapping, folder)
        derived["info"] = content.get("info", {})
        derived["licenses"] = content.get("licenses", [])
        try:
            text = json.dumps(derived)
        except RecursionError:
            raise Problem(source.annotations_json, "is nested too deeply").error() from None
        write_atomically(path, lambda file: file.write(text.encode()))
    return path


def _key(source: PanopticSource, pairs: list[tuple[dict, dict]]) -> str:
    """Digest of everything that the derived files depend on."""
    digest = hashlib.sha256(Path(source.annotations_json).read_bytes())
    digest.update(json.dumps([_VERSION, source.panoptic_root, source.options]).encode())
    # The PNGs count by size and time: reading them all would cost as much as deriving.
    for _, annotation in pairs:
        status = os.stat(source.png_path(annotation))
        digest.update(f"{annotation['file_name']}:{status.st_size}:{status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _category_json(classes: Iterable[Category]) -> list[dict]:
    return [
        {
            "id": c.id,
            "name": c.name,
            "isthing": int(c.isthing),
            "color": list(c.color),
            "supercategory": c.supercategory,
        }
        for c in classes
    ]


def _derive_panoptic(
    source: PanopticSource,
    pairs: list[tuple[dict, dict]],
    classes: list[Category],
    mapping: dict[int, int],
    folder: Path,
) -> dict:
    isthing = {c.id: c.isthing for c in classes}
    annotations = []
    for image, annotation in pairs:
        ids = _checked_ids(source, image, annotation)
        segments = complete_segments(annotation["segments_info"], mapping, ids)
        merged, new_ids = _merge_segments(segments, isthing)
        file_name = annotation["file_name"]
        if len(merged) < len(segments):
            path = folder / "panoptic" / file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            rewritten = _replace_ids(ids, new_ids)
            write_atomically(path, functools.partial(write_panoptic_png, ids=rewritten))
            file_name = str(path.absolute())
        annotations.append(
            {"image_id": image["id"], "file_name": file_name, "segments_info": merged}
        )
    return {
        "images": [image for image, _ in pairs],
        "annotations": annotations,
        "categories": _category_json(classes),
    }


def _checked_ids(source: PanopticSource, image: dict, annotation: dict) -> np.ndarray:
    """(H, W) ids of a PNG that agrees with the JSON; panopticapi does not look whether it does."""
    segments = annotation["segments_info"]
    found = read_segments(source.png_path(annotation), segments, source.image_files(image))
    if isinstance(found, list):
        raise found[0].error()
    return found.ids


def _merge_segments(
    segments: list[dict], isthing: dict[int, bool]
) -> tuple[list[dict], dict[int, int]]:
    """Merges the segments that PQ wants as one.

    These are an image's segments of one stuff class, and its crowds of one class (panopticapi looks
    at one crowd of a class only).

    Returns:
        the segments left, and old id → id of the segment that took it in, for those that moved.
    """
    kept: dict[tuple, dict] = {}
    new_ids: dict[int, int] = {}
    for segment in segments:
        whole = segment["iscrowd"] or not isthing[segment["category_id"]]
        key = (segment["category_id"], segment["iscrowd"], None if whole else segment["id"])
        first = kept.setdefault(key, dict(segment))
        if first["id"] == segment["id"]:
            continue
        new_ids[segment["id"]] = first["id"]
        first["area"] += segment["area"]
        first["bbox"] = _box_union(first["bbox"], segment["bbox"])
    return list(kept.values()), new_ids


def _box_union(first: list[float], second: list[float]) -> list[float]:
    left, top = min(first[0], second[0]), min(first[1], second[1])
    right = max(first[0] + first[2], second[0] + second[2])
    bottom = max(first[1] + first[3], second[1] + second[3])
    return [left, top, right - left, bottom - top]


def _replace_ids(ids: np.ndarray, new_ids: dict[int, int]) -> np.ndarray:
    """Replaces some ids of an (H, W) map."""
    present, inverse = np.unique(ids, return_inverse=True)
    replaced = np.array([new_ids.get(int(i), int(i)) for i in present], dtype=ids.dtype)
    return replaced[inverse].reshape(ids.shape)


def _derive_instances(
    source: PanopticSource,
    pairs: list[tuple[dict, dict]],
    classes: list[Category],
    mapping: dict[int, int],
    folder: Path,
) -> dict:
    things = {c.id for c in classes if c.isthing}
    annotations: list[dict[str, Any]] = []
    for image, annotation in pairs:
        ids = _checked_ids(source, image, annotation)
        segments = [s for s in annotation["segments_info"] if mapping[s["category_id"]] in things]
        for segment, mask in zip(
            segments, segment_masks(ids, [s["id"] for s in segments]), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": mapping[segment["category_id"]],
                    "iscrowd": int(segment.get("iscrowd", 0)),
                    **mask,
                }
            )
    return {
        "images": [image for image, _ in pairs],
        "annotations": annotations,
        "categories": _category_json(c for c in classes if c.isthing),
    }


class DerivedFiles(PathHandler):
    """Lets Detectron2's `PathManager` make and open derived files by their names."""

    def _get_supported_prefixes(self) -> list[str]:
        return [DERIVED_PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: object) -> str:
        name, _, file_name = path.removeprefix(DERIVED_PREFIX).rpartition("/")
        makers = {"panoptic.json": panoptic_json, "instances.json": instances_json}
        if file_name not in makers:
            raise ValueError(f"{path} is not a derived file; known are {sorted(makers)}")
        return str(makers[file_name](name))

    def _isfile(self, path: str, **kwargs: object) -> bool:
        return Path(self._get_local_path(path)).is_file()

    def _exists(self, path: str, **kwargs: object) -> bool:
        return self._isfile(path, **kwargs)

    def _open(self, path: str, mode: str = "r", **kwargs: Any) -> IO:
        if set(mode) - set("rbt"):
            raise ValueError(f"{path} is a derived file: it can be read, not opened with {mode!r}")
        return open(self._get_local_path(path), mode, **kwargs)


PathManager.register_handler(DerivedFiles(), allow_override=True)
