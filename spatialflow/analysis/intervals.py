"""PQ with intervals over seeds and images together, and paired differences.

S seeds, I images, C classes; ``counts`` (S, I, C, 4) holds iou, tp, fp and fn, as PQ is made of.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 2000
GROUPS = ("PQ", "PQ_th", "PQ_st")

Result = dict[str, Any]
"""What :func:`spatialflow.analysis.trials.trial` writes."""


def load_results(folder: Path) -> list[Result]:
    """Read all results of runs."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/*.json"))]


def quality(counts: np.ndarray, isthing: np.ndarray) -> np.ndarray:
    """Return PQ, PQ_th and PQ_st in percent.

    Args:
        counts: (..., C, 4) summed over images.
        isthing: (C,) bool.

    Returns:
        (..., 3); a class without segments is left out of the mean, as panopticapi does.
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
    """A mean with its 95 % interval, of PQ in percent."""

    mean: float
    low: float
    high: float

    def text(self, *, sign: bool = False, digits: int = 1) -> str:
        """Write it; with signs, as differences are."""
        form = f"{{:{'+' if sign else ''}.{digits}f}}"
        # Adding zero makes a rounded -0.0 a +0.0.
        values = (round(value, digits) + 0.0 for value in self)
        return f"{form} ({form} to {form})".format(*values)


class Sampled:
    """PQ of one contestant: the measured mean over seeds, and resamples of seeds and images."""

    def __init__(
        self, results: list[Result], *, seed: int = 0, runs_seed: int | None = None
    ) -> None:
        """Resample.

        Args:
            results: One of each seed, on the same images.
            seed: Of the resampling; the same for contestants that are to be compared.
            runs_seed: Of the resampling of runs, where those of two contestants have nothing to do
                with each other; None where runs of one seed belong together.

        Raises:
            ValueError: If the images differ.
        """
        images = [r["images"] for r in results]
        if any(names != images[0] for names in images):
            raise ValueError("results of different images cannot be compared")
        isthing = np.array([bool(c["isthing"]) for c in results[0]["classes"]])
        counts = np.array([r["counts"] for r in results])  # (S, I, C, 4)
        # What a difference has to have in common.
        seeds_drawn = [r["seed"] for r in results] if runs_seed is None else "apart"
        self.drawn_from = (seeds_drawn, images[0], seed)
        self.mean = quality(counts.sum(axis=1), isthing).mean(axis=0)  # (3,)
        rng = np.random.default_rng(seed)
        runs_rng = rng if runs_seed is None else np.random.default_rng([seed, runs_seed])
        seeds, number = counts.shape[:2]
        draws = []
        for _ in range(RESAMPLES):
            weights = np.bincount(rng.integers(number, size=number), minlength=number)
            chosen = runs_rng.integers(seeds, size=seeds)
            summed = np.tensordot(counts[chosen], weights, axes=([1], [0]))  # (S, C, 4)
            draws.append(quality(summed, isthing).mean(axis=0))
        self.draws = np.array(draws)  # (RESAMPLES, 3)

    def minus(self, other: Sampled) -> Sampled:
        """Return the paired difference: the same seeds and images on both sides.

        Raises:
            ValueError: If the two sides have others.
        """
        if self.drawn_from != other.drawn_from:
            sides = " and ".join(
                f"seeds {side.drawn_from[0]} on {len(side.drawn_from[1])} images"
                for side in (self, other)
            )
            raise ValueError(f"{sides}: a difference needs the same seeds and images")
        difference = object.__new__(Sampled)
        difference.drawn_from = self.drawn_from
        difference.mean = self.mean - other.mean
        difference.draws = self.draws - other.draws
        return difference

    def interval(self, group: int) -> Interval:
        """Return a group's mean and its 95 % interval."""
        low, high = np.percentile(self.draws[:, group], [2.5, 97.5])
        return Interval(float(self.mean[group]), float(low), float(high))

    def cell(self, group: int, *, sign: bool = False, digits: int = 1) -> str:
        """Write the mean and its 95 % interval."""
        return self.interval(group).text(sign=sign, digits=digits)


def minus(one: list[Result], other: list[Result]) -> tuple[Sampled, int]:
    """Return the paired difference at the seeds that both sides have, and how many they are.

    Raises:
        ValueError: If they have none in common.
    """
    common = {r["seed"] for r in one} & {r["seed"] for r in other}
    if not common:
        names = " and ".join(side[0]["contestant"] if side else "nothing" for side in (one, other))
        raise ValueError(f"{names} have no seed in common")
    sides = [Sampled([r for r in side if r["seed"] in common]) for side in (one, other)]
    return sides[0].minus(sides[1]), len(common)
