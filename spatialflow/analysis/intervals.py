"""Bootstrap intervals of PQ over training seeds and images, and paired differences.

Letters: S seeds, I images, C classes, R resamples. ``counts`` (S, I, C, 4) holds for every seed,
image and class the sum of IoU, and the numbers of true positives, false positives and false
negatives (Panoptic Segmentation, arXiv 1801.00868, equation 1).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spatialflow.utils.errors import DataError
from spatialflow.utils.files import read_json

RESAMPLES = 2000
GROUPS = ("PQ", "PQ_th", "PQ_st")

Result = dict[str, Any]
"""One run, as :func:`spatialflow.analysis.trials.trial` writes it."""


def load_results(folder: Path) -> list[Result]:
    """Read the results of all runs, ``folder/*/*.json``, in the order of their paths."""
    return [read_json(path, dict) for path in sorted(folder.glob("*/*.json"))]


def pq_from_counts(counts: np.ndarray, isthing: np.ndarray) -> np.ndarray:
    """Compute PQ, PQ_th and PQ_st in percent.

    A class without segments is left out of the mean, as panopticapi does.

    Args:
        counts: (..., C, 4) counts, summed over images.
        isthing: (C,) bool, True for thing classes.

    Returns:
        (..., 3) PQ of all classes, of things and of stuff.
    """
    denominator = counts[..., 1] + 0.5 * (counts[..., 2] + counts[..., 3])
    present = denominator > 0
    per_class = counts[..., 0] / np.where(present, denominator, 1)
    groups = []
    for member in (np.ones_like(isthing), isthing, ~isthing):
        number = (present & member).sum(axis=-1)
        groups.append(100 * (per_class * member).sum(axis=-1) / np.maximum(number, 1))
    return np.stack(groups, axis=-1)


class Interval(NamedTuple):
    """A mean PQ in percent, or a difference of two, with its 95 % interval."""

    mean: float
    low: float
    high: float

    def text(self, *, sign: bool = False, digits: int = 1) -> str:
        """Format the interval as ``mean (low to high)``.

        Args:
            sign: Whether to write a plus before positive numbers, as for differences.
            digits: Number of decimals.
        """
        form = f"{{:{'+' if sign else ''}.{digits}f}}"
        # Adding zero turns a rounded -0.0 into +0.0.
        values = (round(value, digits) + 0.0 for value in self)
        return f"{form} ({form} to {form})".format(*values)


class ResampledPQ:
    """Mean PQ of one contestant over its seeds, with bootstrap resamples of seeds and images.

    Attributes:
        mean: (3,) measured PQ, PQ_th and PQ_st in percent.
        draws: (R, 3) the same of each resample.
    """

    def __init__(
        self, results: list[Result], *, seed: int = 0, runs_seed: int | None = None
    ) -> None:
        """Resample.

        Args:
            results: One result of each training seed, all on the same images.
            seed: Seed of the resampling. Contestants that are compared need the same.
            runs_seed: Seed for resampling the runs. Give different ones to two contestants whose
                runs are not paired; None pairs runs of the same training seed.

        Raises:
            ValueError: If the results are of different images.
        """
        images = [r["images"] for r in results]
        if any(names != images[0] for names in images):
            raise ValueError("results of different images cannot be compared")
        isthing = np.array([bool(c["isthing"]) for c in results[0]["classes"]])
        counts = np.array([r["counts"] for r in results])  # (S, I, C, 4)
        # Two sides of a difference must agree in this.
        seeds_drawn = [r["seed"] for r in results] if runs_seed is None else "apart"
        self._drawn_from = (seeds_drawn, images[0], seed)
        self.mean = pq_from_counts(counts.sum(axis=1), isthing).mean(axis=0)
        rng = np.random.default_rng(seed)
        runs_rng = rng if runs_seed is None else np.random.default_rng([seed, runs_seed])
        seeds, number = counts.shape[:2]
        by_image = np.moveaxis(counts, 1, -1).reshape(-1, number)  # (S · C · 4, I)
        chosen = np.empty((RESAMPLES, seeds), dtype=int)
        summed = np.empty((RESAMPLES, len(by_image)))
        for i in range(RESAMPLES):
            weights = np.bincount(rng.integers(number, size=number), minlength=number)
            chosen[i] = runs_rng.integers(seeds, size=seeds)
            summed[i] = by_image @ weights.astype(float)
        per_run = pq_from_counts(summed.reshape(RESAMPLES, seeds, -1, 4), isthing)  # (R, S, 3)
        self.draws = per_run[np.arange(RESAMPLES)[:, None], chosen].mean(axis=1)

    def minus(self, other: ResampledPQ) -> ResampledPQ:
        """Return the difference, in which each resample has the same seeds and images.

        Raises:
            ValueError: If the two sides have other seeds or images.
        """
        if self._drawn_from != other._drawn_from:
            sides = " and ".join(
                f"seeds {side._drawn_from[0]} on {len(side._drawn_from[1])} images"
                for side in (self, other)
            )
            raise ValueError(f"{sides}: a difference needs the same seeds and images")
        difference = object.__new__(ResampledPQ)
        difference._drawn_from = self._drawn_from
        difference.mean = self.mean - other.mean
        difference.draws = self.draws - other.draws
        return difference

    def interval(self, group: int) -> Interval:
        """Return the mean and the 95 % interval of a group.

        Args:
            group: Index in :data:`GROUPS`.
        """
        low, high = np.percentile(self.draws[:, group], [2.5, 97.5])
        return Interval(float(self.mean[group]), float(low), float(high))

    def cell(self, group: int, *, sign: bool = False, digits: int = 1) -> str:
        """Return the interval of a group as the text of a table's cell."""
        return self.interval(group).text(sign=sign, digits=digits)


def paired_difference(one: list[Result], other: list[Result]) -> tuple[ResampledPQ, int]:
    """Compute the difference of two contestants at the seeds that both have.

    Args:
        one: Results of the first contestant.
        other: Results of the contestant that is subtracted.

    Returns:
        The difference, and the number of seeds that it is based on.

    Raises:
        DataError: If they have no seed in common.
    """
    common = {r["seed"] for r in one} & {r["seed"] for r in other}
    if not common:
        names = " and ".join(side[0]["contestant"] if side else "nothing" for side in (one, other))
        raise DataError(f"{names} have no seed in common")
    sides = [ResampledPQ([r for r in side if r["seed"] in common]) for side in (one, other)]
    return sides[0].minus(sides[1]), len(common)
