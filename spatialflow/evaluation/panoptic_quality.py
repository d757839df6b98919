"""Count matches of segments image by image with panopticapi, and compute panoptic quality."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping
from typing import Any

from panopticapi.evaluation import PQStat, pq_compute_single_core

GROUPS = {"": ("All", (0, 1)), "_th": ("Things", (1,)), "_st": ("Stuff", (0,))}
"""Suffix of Detectron2's keys → name of the group, and the values of ``isthing`` in the group."""

COUNTS = ("iou", "tp", "fp", "fn")
"""Counts of a class: sum of IoU over matches, and numbers of segments."""


def count_matches(
    annotations: tuple[dict[str, Any], dict[str, Any]],
    folders: tuple[str, str],
    categories: Mapping[int, dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Count the matches of one image's segments with panopticapi.

    Args:
        annotations: Annotation of the ground truth and of the prediction, in COCO's panoptic
            format.
        folders: Folder with the PNG of the ground truth, and folder with that of the prediction.
        categories: Category id → entry of the JSON's ``categories``.

    Returns:
        Category id as a string → ``isthing``, ``iou``, ``tp``, ``fp`` and ``fn``, without classes
        whose counts are all 0.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        stat = pq_compute_single_core(0, [annotations], *folders, categories)
    return {
        str(category_id): {
            "isthing": int(categories[category_id]["isthing"]),
            "iou": float(counts.iou),
            "tp": int(counts.tp),
            "fp": int(counts.fp),
            "fn": int(counts.fn),
        }
        for category_id, counts in sorted(stat.pq_per_cat.items())
        if counts.tp + counts.fp + counts.fn
    }


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
    total = PQStat()
    for record in per_image:
        for category_id, counts in record["classes"].items():
            for key in COUNTS:
                entry = total[int(category_id)]
                setattr(entry, key, getattr(entry, key) + counts[key])
    per_class = [_class_result(category, total) for category in categories.values()]
    summary: dict[str, float | None] = {}
    counted: dict[str, int] = {}
    for suffix, (_, kinds) in GROUPS.items():
        members = [c for c in per_class if c["isthing"] in kinds and c["PQ"] is not None]
        counted[f"PQ{suffix}"] = len(members)
        for key in ("PQ", "SQ", "RQ"):
            mean = sum(c[key] for c in members) / len(members) if members else None
            summary[key + suffix] = mean
    return {"summary": summary, "classes_counted": counted, "per_class": per_class}


def _class_result(category: dict[str, Any], total: PQStat) -> dict[str, Any]:
    """Return PQ, SQ and RQ of a class in percent, and its counts."""
    # pq_average divides by the number of classes with counts: call it only if there are counts.
    entry = total.pq_per_cat.get(category["id"])
    result = {
        "id": category["id"],
        "name": category["name"],
        "isthing": int(category["isthing"]),
        "PQ": None,
        "SQ": None,
        "RQ": None,
        **{key: getattr(entry, key) if entry else 0 for key in COUNTS},
    }
    if entry and entry.tp + entry.fp + entry.fn:
        average, _ = total.pq_average({category["id"]: category}, isthing=None)
        result |= {key: 100 * average[key.lower()] for key in ("PQ", "SQ", "RQ")}
    return result
