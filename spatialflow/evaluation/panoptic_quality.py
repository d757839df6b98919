"""Panoptic quality from counts of matches, image by image; the matching is panopticapi's."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping

from panopticapi.evaluation import PQStat, pq_compute_single_core

GROUPS = {"": ("All", (0, 1)), "_th": ("Things", (1,)), "_st": ("Stuff", (0,))}
"""Suffix of Detectron2's keys → the group's name, and the values of ``isthing`` that it has."""

COUNTS = ("iou", "tp", "fp", "fn")
"""What is counted for a class: the sum of IoU over matches, and numbers of segments."""


def count_matches(
    annotations: tuple[dict, dict], folders: tuple[str, str], categories: Mapping[int, dict]
) -> dict[str, dict]:
    """Counts the matches of one image's segments, as panopticapi does.

    Args:
        annotations: of the ground truth and of the prediction, in COCO panoptic form.
        folders: with the PNG of each.
        categories: category id → entry of the JSON's `categories`.

    Returns:
        category id as a string → `isthing`, `iou`, `tp`, `fp` and `fn`, for classes that have any.
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


def summarize(per_image: Iterable[dict], categories: Mapping[int, dict]) -> dict:
    """Sums the counts of images up to PQ, SQ and RQ in percent.

    Args:
        per_image: the `per_image` records of `panoptic_results.json`.
        categories: category id → entry of the JSON's `categories`.

    Returns:
        "summary": {"PQ", "SQ", "RQ", "PQ_th", …}, None where a group has no class; "per_class": one
        dict for each class with its counts, None for the three numbers where it occurs nowhere;
        "classes_counted": how many classes stand behind PQ, PQ_th and PQ_st.
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


def _class_result(category: dict, total: PQStat) -> dict:
    """One class's numbers in percent and its counts."""
    # pq_average divides by the number of classes seen, so it is asked only about one that is.
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
