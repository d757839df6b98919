"""Confidence intervals of panoptic quality by resampling images."""

from __future__ import annotations

from typing import Any

import numpy as np

from spatialflow.evaluation.panoptic_quality import GROUPS


def bootstrap_pq(
    per_image: list[dict[str, Any]], n: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float] | None]:
    """Estimate 95 % intervals of PQ by resampling images with replacement (bootstrap).

    A class that a resample does not contain is left out of the mean of this resample. panopticapi
    treats classes that do not occur in the same way.

    Args:
        per_image: Records ``per_image`` of ``panoptic_results.json``.
        n: Number of resamples.
        seed: Seed of the resampling.

    Returns:
        "PQ", "PQ_th" and "PQ_st" → 2.5 and 97.5 percentile in percent; None for a group without a
        class.

    Raises:
        ValueError: If there is no image or no resample.
    """
    if not per_image or n < 1:
        raise ValueError(
            f"{len(per_image)} images and {n} resamples; at least one of each expected"
        )
    ids = sorted({int(c) for record in per_image for c in record["classes"]})
    position = {category_id: i for i, category_id in enumerate(ids)}
    # Numerator (sum of IoU) and denominator of PQ, by image and class.
    counts = np.zeros((len(per_image), len(ids), 2))
    isthing = np.zeros(len(ids), dtype=int)
    for row, record in enumerate(per_image):
        for category_id, c in record["classes"].items():
            column = position[int(category_id)]
            counts[row, column] = c["iou"], c["tp"] + 0.5 * (c["fp"] + c["fn"])
            isthing[column] = c["isthing"]
    rng = np.random.default_rng(seed)
    share = np.full(len(per_image), 1 / len(per_image))
    times_drawn = rng.multinomial(len(per_image), share, size=n).astype(float)
    iou_sum, denominator = np.moveaxis(np.tensordot(times_drawn, counts, axes=1), -1, 0)
    intervals: dict[str, tuple[float, float] | None] = {}
    for suffix, (_, kinds) in GROUPS.items():
        member = np.isin(isthing, kinds)
        present = denominator[:, member] > 0
        quality = iou_sum[:, member] / np.where(present, denominator[:, member], 1)
        drawn = present.any(axis=1)
        if not drawn.any():
            intervals[f"PQ{suffix}"] = None
            continue
        means = 100 * quality[drawn].sum(axis=1) / present[drawn].sum(axis=1)
        low, high = np.percentile(means, [2.5, 97.5])
        intervals[f"PQ{suffix}"] = (float(low), float(high))
    return intervals
