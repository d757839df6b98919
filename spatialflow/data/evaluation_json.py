"""The files that evaluations read: panoptic truth, instances and semantic maps of a data set.

The JSONs are written when they are first needed, into a cache folder (environment variable
`SPATIALFLOW_CACHE`, else `~/.cache/spatialflow`), never beside the user's data. The metadata names
them `spatialflow://<data set>/panoptic.json` and `…/instances.json`. Detectron2's `PathManager`
turns such a name into a local file, so Detectron2's own evaluators work on splits and remaps, too.
A semantic map, `spatialflow://<data set>/sem_seg/<PNG>`, is made when it is opened, and not kept:
Detectron2's mapper and its evaluator of semantic segmentation read it.

H, W: height and width.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from detectron2.utils.file_io import PathHandler, PathManager
from PIL import Image

from spatialflow.data.annotations import KEPT_JSONS, read_panoptic_json
from spatialflow.data.dataset import EVALUATION_PREFIX, SEMANTIC_FOLDER, complete_segments
from spatialflow.data.dataset_spec import (
    IGNORE_LABEL,
    Category,
    DatasetSpec,
    contiguous_numbers,
)
from spatialflow.data.panoptic_png import segment_masks, write_panoptic_png
from spatialflow.data.registration import find_dataset
from spatialflow.data.selection import select
from spatialflow.data.validation.defects import Defect, DefectError
from spatialflow.data.validation.file_rules import missing_files, read_segments
from spatialflow.utils.errors import ConfigError
from spatialflow.utils.files import write_atomically
from spatialflow.utils.paths import absolute_path

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "SPATIALFLOW_CACHE"

# Part of the cache key. Raise it when the content of the written files changes.
_VERSION = 2


def cache_root() -> Path:
    """Return the cache folder; it need not exist yet."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(absolute_path(named or "~/.cache/spatialflow", CACHE_VARIABLE))


@contextlib.contextmanager
def writing_to_cache() -> Iterator[None]:
    """Name the cache folder, and its variable, where it cannot be written inside.

    Raises:
        ConfigError: If an `OSError` is raised inside.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{CACHE_VARIABLE}: {os.environ.get(CACHE_VARIABLE, '')!r} given, and the cache folder "
            f"{cache_root()} cannot be written: {error.strerror or error}; set this environment "
            "variable to another folder"
        ) from error


def panoptic_json(name: str) -> Path:
    """Return the COCO panoptic JSON with the truth that an evaluation of a data set uses.

    It holds the images of the split and the remapped classes. An image has at most one segment of
    each stuff class and one crowd of each class, as PQ requires. Where a remap leaves several, the
    PNG is written again into the cache, and the JSON names it by its absolute path.

    Args:
        name: Name given to `register_panoptic`, or of a built-in data set.

    Returns:
        JSON file in the cache, written now if it does not exist.

    Raises:
        DataError: If a file of the data set is missing or wrong.
        ConfigError: If the name is unknown, or the cache cannot be written.
    """
    return _evaluation_json(name, "panoptic.json", _panoptic_content)


def instances_json(name: str) -> Path:
    """Return the COCO instances JSON of a registered data set: its things with RLE masks.

    Args:
        name: Name given to `register_panoptic`, or of a built-in data set.

    Returns:
        JSON file in the cache, written now if it does not exist.

    Raises:
        DataError: If a file of the data set is missing or wrong.
        ConfigError: If the name is unknown, or the cache cannot be written.
    """
    return _evaluation_json(name, "instances.json", _instances_content)


def _evaluation_json(name: str, file_name: str, make_content: Callable[..., dict]) -> Path:
    dataset = find_dataset(name)
    spec, truth = dataset.read()
    selection = select(spec, truth.listing)
    pairs = selection.pairs
    pngs = ((spec.png_path(a), i["file_name"]) for i, a in selection.sound_pairs())
    defects = selection.defects + missing_files(pngs, spec.annotations_json)
    if defects:
        raise dataset.error(defects)
    key = _cache_key(spec, pairs, truth.sha256.copy())
    folder = cache_root() / f"{name.replace('/', '_')}-{key}"
    path = folder / file_name
    if not path.is_file():
        logger.info("writing %s of %s for evaluation, from %d images", file_name, name, len(pairs))
        classes, mapping = spec.read_classes(truth.categories)
        with writing_to_cache():
            folder.mkdir(parents=True, exist_ok=True)
            content = make_content(spec, pairs, classes, mapping, folder)
            content["info"] = truth.info
            content["licenses"] = truth.licenses
            try:
                text = json.dumps(content)
            except RecursionError:
                raise DefectError([Defect(spec.annotations_json, "is nested too deeply")]) from None
            write_atomically(path, lambda file: file.write(text.encode()))
    return path


def _cache_key(spec: DatasetSpec, pairs: list[tuple[dict, dict]], sha256: Any) -> str:
    """Return a digest of everything that the content depends on.

    Args:
        spec: Description of the data set.
        pairs: (image entry, annotation) pairs of its images.
        sha256: Hash object of the JSON's bytes; it is changed.
    """
    options = [_VERSION, spec.panoptic_root, spec.content_options]
    sha256.update(json.dumps(options).encode())
    # Size and time identify a PNG: reading all PNGs would take as long as the work that is saved.
    for _, annotation in pairs:
        status = os.stat(spec.png_path(annotation))
        sha256.update(f"{annotation['file_name']}:{status.st_size}:{status.st_mtime_ns}".encode())
    return sha256.hexdigest()[:16]


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


def _panoptic_content(
    spec: DatasetSpec,
    pairs: list[tuple[dict, dict]],
    classes: list[Category],
    mapping: dict[int, int],
    folder: Path,
) -> dict:
    isthing = {c.id: c.isthing for c in classes}
    annotations = []
    for image, annotation in pairs:
        ids = _checked_ids(spec, image, annotation)
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


def _checked_ids(spec: DatasetSpec, image: dict, annotation: dict) -> np.ndarray:
    """Return the (H, W) ids of a PNG after all checks: PQ trusts areas, and reads each PNG once."""
    path, segments = spec.png_path(annotation), annotation["segments_info"]
    return read_segments(path, segments, spec.listed_image(image), thorough=True).ids


def _merge_segments(
    segments: list[dict], isthing: dict[int, bool]
) -> tuple[list[dict], dict[int, int]]:
    """Merge the segments that PQ needs as one.

    These are an image's segments of one stuff class, and its crowds of one class: panopticapi uses
    only one crowd of each class.

    Args:
        segments: Segments of one image, complete and remapped.
        isthing: Whether a class is a thing, by class id.

    Returns:
        The merged segments, and a mapping of old id to new id for segments that lost their id.
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
    """Return an (H, W) map of ids with some ids replaced."""
    present, inverse = np.unique(ids, return_inverse=True)
    replaced = np.array([new_ids.get(int(i), int(i)) for i in present], dtype=ids.dtype)
    return replaced[inverse].reshape(ids.shape)


def _instances_content(
    spec: DatasetSpec,
    pairs: list[tuple[dict, dict]],
    classes: list[Category],
    mapping: dict[int, int],
    folder: Path,
) -> dict:
    things = {c.id for c in classes if c.isthing}
    annotations: list[dict[str, Any]] = []
    for image, annotation in pairs:
        ids = _checked_ids(spec, image, annotation)
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


def semantic_map(name: str, png: str) -> np.ndarray:
    """Return the semantic map of an image: 0 for things, 1, 2, … for stuff, and 255 for void.

    Args:
        name: Name of a registered data set.
        png: Panoptic PNG of the image, as the JSON names it.

    Returns:
        (H, W) uint8 labels, those that training uses.

    Raises:
        DataError: If the JSON does not list the PNG, or the PNG is wrong.
    """
    spec, truth = find_dataset(name).read()
    pair = _pairs_by_png(spec.annotations_json, truth.sha256.hexdigest()).get(png)
    if pair is None:
        raise DefectError([Defect(spec.annotations_json, f"does not list the PNG {png!r}")])
    image, annotation = pair
    classes, mapping = spec.read_classes(truth.categories)
    numbers = contiguous_numbers(classes)
    segments = annotation["segments_info"]
    found = [numbers[mapping[segment["category_id"]]] for segment in segments]
    labels = [0 if isthing else number for isthing, number in found]
    index = read_segments(spec.png_path(annotation), segments, spec.listed_image(image)).index
    return np.array([*labels, IGNORE_LABEL], dtype=np.uint8)[index]


@functools.lru_cache(maxsize=KEPT_JSONS)
def _pairs_by_png(path: str, sha256: str) -> dict[str, tuple[dict, dict]]:
    """Return the images and annotations of a JSON by PNG; the checksum is part of the key."""
    return {a["file_name"]: (i, a) for i, a in read_panoptic_json(path).listing.pairs}


class DerivedFileHandler(PathHandler):
    """Make and open evaluation JSONs and semantic maps by name, for Detectron2's `PathManager`."""

    def _get_supported_prefixes(self) -> list[str]:
        return [EVALUATION_PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: object) -> str:
        name, _, file_name = path.removeprefix(EVALUATION_PREFIX).rpartition("/")
        functions = {"panoptic.json": panoptic_json, "instances.json": instances_json}
        if file_name not in functions:
            raise ValueError(f"{path} is not an evaluation JSON; known are {sorted(functions)}")
        return str(functions[file_name](name))

    def _isfile(self, path: str, **kwargs: object) -> bool:
        return SEMANTIC_FOLDER in path or Path(self._get_local_path(path)).is_file()

    def _exists(self, path: str, **kwargs: object) -> bool:
        return self._isfile(path, **kwargs)

    def _open(self, path: str, mode: str = "r", **kwargs: Any) -> IO:
        if set(mode) - set("rbt"):
            raise ValueError(f"{path} is a derived file: it can be read, not opened with {mode!r}")
        name, semantic, png = path.removeprefix(EVALUATION_PREFIX).partition(SEMANTIC_FOLDER)
        if not semantic:
            return open(self._get_local_path(path), mode, **kwargs)
        file = io.BytesIO()
        Image.fromarray(semantic_map(name, png)).save(file, "PNG", compress_level=1)
        file.seek(0)
        return file


PathManager.register_handler(DerivedFileHandler(), allow_override=True)
