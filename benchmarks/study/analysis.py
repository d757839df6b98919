"""What the study's results say: differences with intervals, from counts of each image.

A contestant's runs are results of :mod:`benchmarks.trials`; a group's, those of several genotypes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.intervals import RESAMPLES, Result, quality
from benchmarks.study.images import on_images, pq
from benchmarks.study.keep import HISTORY
from benchmarks.study.run import DATA, HUMAN, PARALLEL, ROUND
from darts.genotype import Genotype
from spatialflow.config import get_cfg, load_genotype
from spatialflow.search.derivation import cost_of
from spatialflow.search.space import flow_costs, search_space

ONCE = ("harness", "minus", "random")
METHODS = ("default", "perturbation", "darts_original")
REAL = ("nuclei",)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, of PQ in percent."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Write it with signs, as differences are."""
        return f"{self.mean:+.1f} ({self.low:+.1f} to {self.high:+.1f})"

    def plain(self) -> str:
        """Write it without signs."""
        return f"{self.mean:.1f} ({self.low:.1f} to {self.high:.1f})"


def estimate(
    one: Sequence[Result],
    other: Sequence[Result] = (),
    *,
    part: str,
    paired: bool = False,
    group: int = 0,
) -> Interval:
    """Return the mean PQ of runs, or their difference to others, by bootstrap of runs and images.

    Args:
        one: Runs.
        other: Those that are subtracted, if any; on the same images.
        part: Of the images: ``selection`` or ``test``.
        paired: Whether the runs of both sides belong together in their order, as those of one seed
            do; else each side's are drawn by themselves.
        group: 0 for PQ, 1 for things, 2 for stuff.

    Raises:
        ValueError: If there is no run, the images differ, or pairs lack a side.
    """
    if not one:
        raise ValueError("no run given, one or more expected")
    sides = [[on_images(r, part) for r in side] for side in (one, other) if side]
    images = sides[0][0]["images"]
    if any(r["images"] != images for side in sides for r in side):
        raise ValueError("runs on different images cannot be compared")
    if paired and [r["seed"] for r in one] != [r["seed"] for r in other]:
        raise ValueError("paired runs with different seeds given, the same seeds expected")
    isthing = np.array([bool(c["isthing"]) for c in sides[0][0]["classes"]])
    counts = [np.array([r["counts"] for r in side]) for side in sides]  # (R, I, C, 4) each

    def value(weights: np.ndarray, chosen: list[np.ndarray]) -> float:
        means = [
            quality(np.tensordot(c[rows], weights, axes=([1], [0])), isthing)[:, group].mean()
            for c, rows in zip(counts, chosen, strict=True)
        ]
        return float(means[0] - sum(means[1:]))

    rng = np.random.default_rng(0)
    draws = []
    for _ in range(RESAMPLES):
        weights = np.bincount(rng.integers(len(images), size=len(images)), minlength=len(images))
        chosen = [rng.integers(len(c), size=len(c)) for c in counts]
        draws.append(value(weights, [chosen[0]] * len(counts) if paired else chosen))
    everything = value(np.ones(len(images)), [np.arange(len(c)) for c in counts])
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(everything, float(low), float(high))


class Outcome:
    """All that is kept of a data set's runs."""

    def __init__(self, folder: Path) -> None:
        """Read a folder of kept results; stages that are not there have no runs.

        Args:
            folder: Named as its data set, with its round if that is not the first.
        """
        self.name = folder.name
        self.folder = folder
        base = folder.name.partition(ROUND)[0]
        self.data = DATA[base]
        # What no search has a part in is of the first round.
        self.first = folder.with_name(base)

    def runs(self, stage: str, prefix: str = "") -> list[Result]:
        """Return the runs of a stage, of contestants whose name begins so, by name and seed."""
        folder = self.first if stage in ONCE else self.folder
        paths = folder.glob(f"{stage}/{prefix}*-seed*.json")
        found = [json.loads(path.read_text()) for path in paths]
        return sorted(found, key=lambda r: (r["contestant"], r["seed"]))

    @cached_property
    def finalist(self) -> dict[str, Any] | None:
        """What was chosen on selection images, and by what; None before."""
        path = self.folder / "finalist.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def genotype(self, name: str) -> Genotype:
        """Return a contestant's genotype."""
        if name in (HUMAN, PARALLEL):
            return load_genotype(name)
        for folder in (self.folder, self.first):
            for path in folder.glob("genotypes/**/*.json"):
                genotype = Genotype.load(path)
                if genotype.name == name:
                    return genotype
        raise ValueError(f"{self.folder}: no genotype named {name!r}")

    def history(self, search: str) -> list[dict[str, Any]]:
        """Return what is kept of a search's log."""
        path = self.folder / HISTORY / f"{search}.json"
        return json.loads(path.read_text()) if path.is_file() else []

    @cached_property
    def _costs(self) -> tuple[Any, float]:
        # The space of all operations, of which that of the default search is a part.
        cfg = get_cfg(self.data.darts, ["SEARCH.ENABLED", True])
        return flow_costs(cfg, search_space(cfg).topology)

    def cost(self, name: str) -> float:
        """Return the operations of a contestant's flows over those of the human ones."""
        costs, human = self._costs
        return cost_of(self.genotype(name), costs) / human


def outcomes(kept: Path) -> list[Outcome]:
    """Return what there is of every data set, the first round always, by data set and round."""
    later = {name: sorted(kept.glob(f"{name}{ROUND}[0-9]")) for name in DATA}
    return [Outcome(folder) for name in DATA for folder in (kept / name, *later[name])]


@dataclass(frozen=True)
class Claim:
    """A statement with what was measured for it; ``holds`` is None where it was not."""

    data: str
    statement: str
    rule: str
    measured: str
    holds: bool | None


ABOVE, NOT_BELOW, CLEARLY_ABOVE = "mean > 0", "mean ≥ 0", "interval > 0"
RULES: dict[str, Callable[[Interval], bool]] = {
    ABOVE: lambda found: found.mean > 0,
    NOT_BELOW: lambda found: found.mean >= 0,
    CLEARLY_ABOVE: lambda found: found.low > 0,
}
FINALIST_ABOVE_HUMAN = "H3 finalist > human, test images"
FINALIST_ABOVE_RANDOM = "finalist > mean random, test images"
DEFAULT_ABOVE_RANDOM = "H4 default search > random"
NO_DEARER = "finalist's flows cost no more than human's"


def claims(outcome: Outcome) -> list[Claim]:
    """Return the plan's hypotheses for a data set, each with its interval."""
    human, parallel = (outcome.runs("harness", name) for name in (HUMAN, PARALLEL))
    random = outcome.runs("random")
    method = {name: outcome.runs("searched", name) for name in METHODS}
    name = outcome.finalist["finalist"] if outcome.finalist else None
    finalist = outcome.runs("final", name) if name else []
    opponent = outcome.runs("final", HUMAN)

    def claim(
        statement: str, rule: str, one: list[Result], other: list[Result], **how: Any
    ) -> None:
        if not one or not other:
            found.append(Claim(outcome.name, statement, rule, "not run", None))
            return
        measured = estimate(one, other, **{"part": "selection", **how})
        found.append(Claim(outcome.name, statement, rule, str(measured), RULES[rule](measured)))

    found: list[Claim] = []
    claim("H1 human > parallel", ABOVE, human, parallel, paired=True)
    claim("H2 human > DARTS as published", ABOVE, human, method["darts_original"])
    test = {"part": "test"}
    claim(FINALIST_ABOVE_HUMAN, CLEARLY_ABOVE, finalist, opponent, paired=True, **test)
    claim(DEFAULT_ABOVE_RANDOM, ABOVE, method["default"], random)
    claim("H5 perturbation ≥ default", NOT_BELOW, method["perturbation"], method["default"])
    claim(FINALIST_ABOVE_RANDOM, ABOVE, finalist, random, **test)
    if name:
        cost = outcome.cost(name)
        found.append(Claim(outcome.name, NO_DEARER, "≤ 1", f"{cost:.2f}", cost <= 1))
    if len(finalist) > 1 and len(finalist) == len(opponent):
        measured = by_seeds(finalist, opponent)
        statement = "H3 by the t distribution over seeds"
        holds = measured.low > 0
        found.append(Claim(outcome.name, statement, CLEARLY_ABOVE, str(measured), holds))
    return found


def by_seeds(one: Sequence[Result], other: Sequence[Result]) -> Interval:
    """Return the mean difference of paired runs on test images, with its t interval over seeds.

    The bootstrap of a few runs is narrower than it should be.
    """
    sides = [[pq(on_images(r, "test")) for r in side] for side in (one, other)]
    differences = np.subtract(*map(np.array, sides))
    # Never zero, of which the t distribution makes NaN.
    mean = differences.mean()
    error = max(differences.std(ddof=1), 1e-12) / len(differences) ** 0.5
    low, high = stats.t.interval(0.95, len(differences) - 1, loc=mean, scale=error)
    return Interval(float(mean), float(low), float(high))


def aim_is_met(found: Sequence[Claim]) -> bool:
    """Tell whether a finalist beats human on real data; it and searches, random ones on all.

    Of a data set's rounds the last counts, in the order of the claims.
    """
    by_data: dict[str, dict[str, bool | None]] = {}
    for claim in found:
        base = claim.data.partition(ROUND)[0]
        by_data.setdefault(base, {})[claim.statement] = claim.holds
    beats_human = any(
        by_data.get(name, {}).get(FINALIST_ABOVE_HUMAN) and by_data[name].get(NO_DEARER)
        for name in REAL
    )
    beats_random = all(
        rows.get(FINALIST_ABOVE_RANDOM) and rows.get(DEFAULT_ABOVE_RANDOM)
        for rows in by_data.values()
    )
    return bool(by_data) and beats_human and beats_random
