"""The two halves of held-out images: selection images choose, test images judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spatialflow.analysis.intervals import Result, pq_from_counts
from spatialflow.data.selection import in_validation_split

PARTS = ("selection", "test")
SPLIT_SEED = 20


def on_images(result: Result, part: str) -> Result:
    """Return a result that is reduced to one half of its images.

    Args:
        result: Result of a run.
        part: ``selection`` or ``test``.

    Raises:
        ValueError: If ``part`` is something else.
    """
    if part not in PARTS:
        raise ValueError(f"part {part!r} given, one of {PARTS} expected")
    kept = [
        i
        for i, name in enumerate(result["images"])
        if in_validation_split(Path(name).name, 0.5, SPLIT_SEED) == (part == "test")
    ]
    chosen = {key: [result[key][i] for i in kept] for key in ("images", "counts")}
    return {**result, **chosen}


def pq(result: Result) -> float:
    """Compute the PQ of a result in percent."""
    isthing = np.array([bool(c["isthing"]) for c in result["classes"]])
    return float(pq_from_counts(np.array(result["counts"]).sum(axis=0), isthing)[0])
