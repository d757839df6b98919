"""Count the matches of segments in arrays, image by image, and compute panoptic quality.

Panoptic quality is defined in Kirillov et al. 2019, arXiv 1801.00868. The counts are those of
COCO's reference implementation, panopticapi, bit for bit.

H, W: Height and width of an image in pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

GROUPS = {"": ("All", (0, 1)), "_th": ("Things", (1,)), "_st": ("Stuff", (0,))}
"""Suffix of Detectron2's keys → name of the group, and the values of ``isthing`` in the group."""

COUNTS = ("iou", "tp", "fp", "fn")
"""Counts of a class: sum of IoU over matches, and numbers of segments."""

VOID = 0
"""Id of the pixels that belong to no segment."""

Segmentation = tuple[np.ndarray, Sequence[Mapping[str, Any]]]
"""(H, W) segment ids, and the segments in COCO's panoptic format."""


def count_matches(
    truth: Segmentation,
    prediction: Segmentation,
    categories: Mapping[int, dict[str, Any]],
    image: int | str,
) -> dict[str, dict[str, Any]]:
    """Count the matches of one image's segments, as panopticapi counts them.

    A predicted and a true segment of one class match if their IoU is above one half; pixels that
    are void in the truth do not count. Crowds are not matched and not missed. A predicted segment
    is not false if more than half of it is void or in the crowd of its class; of several crowds of
    a class the last one counts.

    Args:
        truth: Ids and segments of the ground truth; of a segment ``id``, ``category_id``,
            ``iscrowd`` and ``area`` (in pixels) are read. It is taken as right.
        prediction: Ids and segments of the prediction; ``id`` and ``category_id`` are read.
        categories: Category id → entry of the JSON's ``categories``.
        image: Id or name of the image, for errors.

    Returns:
        Category id as a string → ``isthing``, ``iou``, ``tp``, ``fp`` and ``fn``, without classes
        whose counts are all 0.

    Raises:
        ValueError: If the prediction has an id without a segment, a segment without a pixel, or a
            segment of an unknown class.
    """
    # As in panopticapi, the last of several segments with one id counts.
    true = {s["id"]: s for s in truth[1]}
    found = {s["id"]: s for s in prediction[1]}
    rows, columns = sorted({VOID, *true}), sorted({VOID, *found})
    table = _overlaps(truth[0], rows, prediction[0], columns)
    _check_prediction(prediction[0], columns, table.sum(axis=0), found, categories, image)
    areas = dict(zip(columns, table.sum(axis=0).tolist(), strict=False))
    # Pixels of the pairs of ids that overlap, in the order in which panopticapi sums their IoUs.
    pairs = {(rows[r], columns[c]): int(table[r, c]) for r, c in np.argwhere(table[:-1, :-1])}

    counts: dict[int, dict[str, Any]] = defaultdict(lambda: {"iou": 0.0, "tp": 0, "fp": 0, "fn": 0})
    missed, false = dict(true), dict(found)
    for (true_id, found_id), iou in _matches(pairs, true, found, areas):
        entry = counts[found[found_id]["category_id"]]
        entry["tp"] += 1
        entry["iou"] += iou
        missed.pop(true_id, None)
        false.pop(found_id, None)
    _count_unmatched(counts, missed, false, pairs, areas)
    return {
        str(category_id): {"isthing": int(categories[category_id]["isthing"]), **entry}
        for category_id, entry in sorted(counts.items())
    }


def _count_unmatched(
    counts: dict[int, dict[str, Any]],
    missed: Mapping[int, Mapping[str, Any]],
    false: Mapping[int, Mapping[str, Any]],
    pairs: Mapping[tuple[int, int], int],
    areas: Mapping[int, int],
) -> None:
    """Add the true and the found segments that have no match to the counts of their classes."""
    crowds: dict[int, int] = {}
    for true_id, segment in missed.items():
        if segment["iscrowd"] == 1:
            crowds[segment["category_id"]] = true_id
        else:
            counts[segment["category_id"]]["fn"] += 1
    for found_id, segment in false.items():
        ignored = pairs.get((VOID, found_id), 0)
        if segment["category_id"] in crowds:
            ignored += pairs.get((crowds[segment["category_id"]], found_id), 0)
        if not ignored / areas[found_id] > 0.5:
            counts[segment["category_id"]]["fp"] += 1


def _overlaps(
    truth: np.ndarray, rows: list[int], prediction: np.ndarray, columns: list[int]
) -> np.ndarray:
    """Count the pixels of each pair of ids.

    Args:
        truth: (H, W) ids.
        rows: R sorted ids of the truth.
        prediction: (H, W) ids.
        columns: C sorted ids of the prediction.

    Returns:
        (R + 1, C + 1) int64 pixels; the last row and column are of the ids that are not listed.
    """
    truth, prediction = truth.ravel(), prediction.ravel()
    # Neighbours mostly have the same ids: only the first pixel of each run is looked up.
    changes = truth[1:] != truth[:-1]
    changes |= prediction[1:] != prediction[:-1]
    starts = np.concatenate(([0], np.flatnonzero(changes) + 1))
    lengths = np.diff(starts, append=truth.size)
    shape = (len(rows) + 1, len(columns) + 1)
    cells = _positions(truth[starts], rows) * shape[1] + _positions(prediction[starts], columns)
    # Sums of weights are float64, exact up to 2**53 pixels.
    pixels = np.bincount(cells, weights=lengths, minlength=shape[0] * shape[1])
    return pixels.astype(np.int64).reshape(shape)


def _positions(ids: np.ndarray, listed: list[int]) -> np.ndarray:
    """Return the position of each id in a sorted list, the list's length for an id not in it."""
    known = np.array(listed)
    positions = np.searchsorted(known, ids)
    unlisted = known[np.minimum(positions, len(listed) - 1)] != ids
    positions[unlisted] = len(listed)
    return positions


def _matches(
    pairs: Mapping[tuple[int, int], int],
    true: Mapping[int, Mapping[str, Any]],
    found: Mapping[int, Mapping[str, Any]],
    areas: Mapping[int, int],
) -> Iterator[tuple[tuple[int, int], float]]:
    """Yield the pairs of a true and a found id that match, with their IoU, in the pairs' order."""
    for (true_id, found_id), overlap in pairs.items():
        segment = true.get(true_id)
        if segment is None or found_id not in found or segment["iscrowd"] == 1:
            continue
        if segment["category_id"] != found[found_id]["category_id"]:
            continue
        union = areas[found_id] + segment["area"] - overlap - pairs.get((VOID, found_id), 0)
        if overlap / union > 0.5:
            yield (true_id, found_id), overlap / union


def _check_prediction(
    ids: np.ndarray,
    columns: list[int],
    pixels: np.ndarray,
    found: Mapping[int, Mapping[str, Any]],
    categories: Mapping[int, dict[str, Any]],
    image: int | str,
) -> None:
    """Raise a ValueError if ids and segments of a prediction do not fit together."""
    where = f"the panoptic result of image {image!r}"
    if pixels[-1]:
        unlisted = int(ids[~np.isin(ids, columns)][0])
        raise ValueError(
            f"{where} has {int(pixels[-1])} pixels of ids that its segments do not list, the first "
            f"is {unlisted}; list them, or give these pixels the id {VOID} (void)"
        )
    for found_id, area in zip(columns, pixels, strict=False):
        if found_id in found and not area:
            raise ValueError(
                f"{where} lists segment {found_id}, which has no pixel; leave it out of the list"
            )
    for found_id, segment in found.items():
        if segment["category_id"] not in categories:
            raise ValueError(
                f"{where} has segment {found_id} of category {segment['category_id']!r}, which is "
                f"no category of the data set; one of {sorted(categories)} expected"
            )


def summarize(
    per_image: Iterable[dict[str, Any]], categories: Mapping[int, dict[str, Any]]
) -> dict[str, Any]:
    """Sum the counts of images, and compute PQ, SQ and RQ in percent.

    Args:
        per_image: Records ``per_image`` of ``panoptic_results.json``.
        categories: Category id → entry of the JSON's ``categories``.

    Returns:
        ``summary``: "PQ", "SQ", "RQ", "PQ_th", … → percent, None for a group without a class.
        ``per_class``: One dict per class with its counts, PQ, SQ and RQ, None for a class that
        occurs nowhere.
        ``classes_counted``: "PQ", "PQ_th" and "PQ_st" → number of classes in the mean.
    """
    total: dict[int, dict[str, Any]] = {}
    for record in per_image:
        for category_id, counts in record["classes"].items():
            entry = total.setdefault(int(category_id), {"iou": 0.0, "tp": 0, "fp": 0, "fn": 0})
            for key in COUNTS:
                entry[key] += counts[key]
    per_class = [
        _class_result(category, total.get(category["id"])) for category in categories.values()
    ]
    summary: dict[str, float | None] = {}
    counted: dict[str, int] = {}
    for suffix, (_, kinds) in GROUPS.items():
        members = [c for c in per_class if c["isthing"] in kinds and c["PQ"] is not None]
        counted[f"PQ{suffix}"] = len(members)
        for key in ("PQ", "SQ", "RQ"):
            mean = sum(c[key] for c in members) / len(members) if members else None
            summary[key + suffix] = mean
    return {"summary": summary, "classes_counted": counted, "per_class": per_class}


def _class_result(category: dict[str, Any], counts: dict[str, Any] | None) -> dict[str, Any]:
    """Return PQ, SQ and RQ of a class in percent, and its counts; without counts these are 0."""
    counts = counts or dict.fromkeys(COUNTS, 0)
    iou, tp, fp, fn = (counts[key] for key in COUNTS)
    quality: dict[str, float | None] = dict.fromkeys(("PQ", "SQ", "RQ"))
    if tp + fp + fn:
        # The same operations as in panopticapi, so that the results are the same to the last bit.
        denominator = tp + 0.5 * fp + 0.5 * fn
        quality["PQ"] = 100 * (iou / denominator)
        quality["SQ"] = 100 * (iou / tp if tp else 0.0)
        quality["RQ"] = 100 * (tp / denominator)
    return {
        "id": category["id"],
        "name": category["name"],
        "isthing": int(category["isthing"]),
        **quality,
        **{key: counts[key] for key in COUNTS},
    }
