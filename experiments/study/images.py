"""Which held-out images choose, and which judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spatialflow.analysis.intervals import Result, quality
from spatialflow.data.dataset_spec import in_validation_split

PARTS = ("selection", "test")
SPLIT_SEED = 20


def on_images(result: Result, part: str) -> Result:
    """Return a result on one half of its images.

    Args:
        result: With ``images`` and their ``counts``.
        part: ``selection`` or ``test``.

    Raises:
        ValueError: If the part is another.
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
    """Return PQ in percent of a result's images."""
    isthing = np.array([bool(c["isthing"]) for c in result["classes"]])
    return float(quality(np.array(result["counts"]).sum(axis=0), isthing)[0])
