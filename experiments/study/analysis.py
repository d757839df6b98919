"""Kept results of the study, and its claims: differences of PQ with their intervals.

A run is a result of :mod:`spatialflow.analysis.trials`. A contestant has runs of one genotype, a
group has runs of several.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from darts.genotype import Genotype
from experiments.study.flops import flops
from experiments.study.images import on_images, pq
from experiments.study.keep import HISTORY
from experiments.study.settings import (
    DATA,
    GATED,
    HUMAN,
    METHODS,
    PARALLEL,
    REPOSITORY,
    ROUND,
    final_seeds,
)
from spatialflow.analysis.intervals import Interval, ResampledPQ, Result
from spatialflow.config import load_genotype
from spatialflow.utils.files import read_json, write_json

FLOPS = "flops.json"
FIRST_ROUND_ONLY = ("harness", "minus")
"""Stages that a later round does not run again."""
FINALIST = "the finalist"
NOT_RUN = "not run"
REAL = ("nuclei",)


def estimate(
    one: Sequence[Result], other: Sequence[Result] = (), *, part: str, paired: bool = False
) -> ResampledPQ:
    """Resample the mean PQ of runs, or their difference to other runs.

    Args:
        one: Runs.
        other: Runs that are subtracted, on the same images. Without any there is no difference.
        part: Images to use, ``selection`` or ``test``.
        paired: Whether the two sides have the same seeds in the same order, and are resampled as
            pairs. Otherwise the runs of each side are resampled independently.

    Raises:
        ValueError: If there is no run, the images differ, or the seeds of pairs differ.
    """
    if not one:
        raise ValueError("no run given, one or more expected")
    sides = [[on_images(r, part) for r in side] for side in (one, other) if side]
    sampled = [
        ResampledPQ(side, runs_seed=None if paired or not other else i)
        for i, side in enumerate(sides)
    ]
    return sampled[0].minus(sampled[1]) if other else sampled[0]


def difference(one: Sequence[Result], other: Sequence[Result], *, part: str) -> ResampledPQ:
    """Resample the mean PQ of runs minus that of others, at the training seeds that both have.

    Other seeds are left out, as some are better than others for all networks. Runs are paired
    where each side has one run of each seed.

    Args:
        one: Runs.
        other: Runs that are subtracted.
        part: Images to use, ``selection`` or ``test``.

    Raises:
        ValueError: If they have no seed in common.
    """
    common = {r["seed"] for r in one} & {r["seed"] for r in other}
    sides = [[r for r in side if r["seed"] in common] for side in (one, other)]
    if not common:
        raise ValueError("runs without a training seed in common cannot be compared")
    seeds = [[r["seed"] for r in side] for side in sides]
    paired = seeds[0] == seeds[1] and len(seeds[0]) == len(common)
    return estimate(*sides, part=part, paired=paired)


class Outcome:
    """Kept results of one data set and round."""

    def __init__(self, folder: Path) -> None:
        """Take a folder of kept results. Stages that it lacks have no runs.

        Args:
            folder: Folder named after the data set and, if later, the round: ``nuclei_round2``.
        """
        self.name = folder.name
        self.folder = folder
        base, _, number = folder.name.partition(ROUND)
        self.base, self.round = base, int(number or 1)
        self.data = DATA[base]
        self.first = folder.with_name(base)

    def runs(self, stage: str, prefix: str = "") -> list[Result]:
        """Return the runs of a stage in the order of names and seeds.

        Stages that a later round does not run again come from the first. In the final, a network
        has no runs before it is trained with all seeds, so that test images are read once.

        Args:
            stage: Name of the stage's folder.
            prefix: Beginning of the names of contestants; the others are left out.
        """
        folder = self.first if stage in FIRST_ROUND_ONLY else self.folder
        paths = folder.glob(f"{stage}/{prefix}*-seed*.json")
        found = [read_json(path, dict) for path in paths]
        if stage == "final":
            trained = Counter(run["contestant"] for run in found)
            whole = len(final_seeds(self.round))
            found = [run for run in found if trained[run["contestant"]] == whole]
        return sorted(found, key=lambda r: (r["contestant"], r["seed"]))

    @cached_property
    def finalist(self) -> dict[str, Any] | None:
        """Content of ``finalist.json``: the choice and its grounds. None before there is one."""
        path = self.folder / "finalist.json"
        return read_json(path, dict) if path.is_file() else None

    @property
    def chosen(self) -> str | None:
        """Name of the finalist, None before there is one."""
        return self.finalist["finalist"] if self.finalist else None

    @property
    def in_final(self) -> dict[str, list[Result]]:
        """Runs of the final by network; empty before finalist and human flows have all seeds."""
        finalist = self.runs("final", self.chosen) if self.chosen else []
        networks = {
            "human": self.runs("final", HUMAN),
            FINALIST: finalist,
            "parallel": self.runs("final", PARALLEL),
            "human, as gates": self.runs("final", GATED),
            "random": self.runs("final_random"),
        }
        if not finalist or not networks["human"]:
            return {}
        return {name: runs for name, runs in networks.items() if runs}

    def genotype(self, name: str) -> Genotype:
        """Return the genotype of a contestant."""
        if name in (HUMAN, PARALLEL):
            return load_genotype(name)
        for folder in (self.folder, self.first):
            for path in folder.glob("genotypes/**/*.json"):
                genotype = Genotype.load(path)
                if genotype.name == name:
                    return genotype
        raise ValueError(f"{self.folder}: no genotype named {name!r}")

    def history(self, search: str) -> list[dict[str, Any]]:
        """Return the kept log of a search."""
        path = self.folder / HISTORY / f"{search}.json"
        return read_json(path, list) if path.is_file() else []

    @cached_property
    def _cost(self) -> Callable[[Genotype], float]:
        return self.data.cost_over_human()

    def cost(self, name: str) -> float:
        """Return the multiply-adds of a contestant's flows over those of the human ones."""
        return self._cost(self.genotype(name))

    def gflops(self, name: str) -> float:
        """Return the multiply-adds of a contestant's network in 10^9, at the size of evaluation.

        Counts are kept in ``flops.json`` of the first round, by the hash of the genotype.
        """
        path = self.first / FLOPS
        kept: dict[str, float] = read_json(path, dict) if path.is_file() else {}
        genotype = self.genotype(name)
        if genotype.hash not in kept:
            isthing = [one["isthing"] for one in self.runs("harness")[0]["classes"]]
            things, config = sum(isthing), REPOSITORY / self.data.training
            counted = flops(config, genotype, things, len(isthing) - things)
            kept[genotype.hash] = round(counted / 1e9, 3)
            write_json(path, dict(sorted(kept.items())), indent=1)
        return kept[genotype.hash]


def outcomes(kept: Path) -> list[Outcome]:
    """Return the outcomes of every data set: the first round, and later ones that were run."""
    later = {name: sorted(kept.glob(f"{name}{ROUND}[0-9]")) for name in DATA}
    return [Outcome(folder) for name in DATA for folder in (kept / name, *later[name])]


@dataclass(frozen=True)
class Claim:
    """A statement and what was measured for it.

    Attributes:
        data: Name of the data set and round.
        statement: What is claimed.
        rule: Condition under which the claim holds.
        measured: Difference with its interval, as text.
        holds: Whether the claim holds, None if the runs are missing.
    """

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
ABOVE_BY_SEEDS = "H3 by the t distribution over seeds"
FINALIST_ABOVE_RANDOM = "finalist > mean random, test images"
DEFAULT_ABOVE_RANDOM = "H4 default search > random"
NO_DEARER = "finalist's flows cost no more than human's"


def claims(outcome: Outcome) -> list[Claim]:
    """Return the hypotheses of the plan for a data set and round, each with its interval."""
    human, parallel = (outcome.runs("harness", name) for name in (HUMAN, PARALLEL))
    random = outcome.runs("random")
    method = {name: outcome.runs("searched", name) for name in METHODS}
    name = outcome.chosen
    finalist = outcome.runs("final", name) if name else []
    opponent = outcome.runs("final", HUMAN)

    def claim(
        statement: str, rule: str, one: list[Result], other: list[Result], part: str = "selection"
    ) -> None:
        if not one or not other:
            found.append(Claim(outcome.name, statement, rule, NOT_RUN, None))
            return
        measured = difference(one, other, part=part).interval(0)
        holds = RULES[rule](measured)
        found.append(
            Claim(outcome.name, statement, rule, measured.text(sign=True, digits=2), holds)
        )

    found: list[Claim] = []
    if outcome.round == 1:
        claim("H1 human > parallel", ABOVE, human, parallel)
    claim("H2 human > DARTS as published", ABOVE, human, method["darts_original"])
    claim(FINALIST_ABOVE_HUMAN, CLEARLY_ABOVE, finalist, opponent, "test")
    claim(DEFAULT_ABOVE_RANDOM, ABOVE, method["default"], random)
    claim("H5 perturbation ≥ default", NOT_BELOW, method["perturbation"], method["default"])
    # In the first round random genotypes have seed 0 alone, like the finalist's first training.
    first = outcome.runs("searched", name) if name else []
    sides = (first, random) if outcome.round == 1 else (finalist, outcome.runs("final_random"))
    claim(FINALIST_ABOVE_RANDOM, ABOVE, *sides, "test")
    if outcome.round > 1:
        nothing = outcome.runs("final", PARALLEL)
        claim("finalist > parallel, test images", ABOVE, finalist, nothing, "test")
        gated = outcome.runs("final", GATED)
        claim("finalist > human flows as gates, test images", ABOVE, finalist, gated, "test")
    if name:
        cost = outcome.cost(name)
        found.append(Claim(outcome.name, NO_DEARER, "≤ 1", f"{cost:.2f}", cost <= 1))
    if len(finalist) > 1 and len(finalist) == len(opponent):
        measured = by_seeds(finalist, opponent)
        holds = RULES[CLEARLY_ABOVE](measured)
        text = measured.text(sign=True, digits=2)
        found.append(Claim(outcome.name, ABOVE_BY_SEEDS, CLEARLY_ABOVE, text, holds))
    return found


def on_test(runs: Sequence[Result]) -> list[float]:
    """Return the PQ of each run on test images."""
    return [pq(on_images(run, "test")) for run in runs]


def by_seeds(one: Sequence[Result], other: Sequence[Result]) -> Interval:
    """Return the mean difference of paired runs on test images, with its t interval over seeds.

    A bootstrap of few runs gives an interval that is too narrow.
    """
    differences = np.subtract(on_test(one), on_test(other))
    # With an error of zero the t distribution returns NaN.
    mean = differences.mean()
    error = max(differences.std(ddof=1), 1e-12) / len(differences) ** 0.5
    low, high = stats.t.interval(0.95, len(differences) - 1, loc=mean, scale=error)
    return Interval(float(mean), float(low), float(high))


def beats_human(rows: Mapping[str, Claim]) -> bool:
    """Return whether a finalist is above human by both intervals, and costs no more.

    Args:
        rows: Claims of a round, by statement.
    """
    needed = (FINALIST_ABOVE_HUMAN, ABOVE_BY_SEEDS, NO_DEARER)
    return all(statement in rows and rows[statement].holds for statement in needed)


def missed(found: Sequence[Claim], *, of_plan: bool = True) -> list[str]:
    """Return the parts of the aim that are not met.

    The aim is a finalist above human on real data, and above random on all data sets. The last
    round of a data set counts.

    Args:
        found: Claims of all data sets, in the order of rounds.
        of_plan: Whether the mean search must be above random, too, as in PLAN.md.
    """
    on_all = (FINALIST_ABOVE_RANDOM, *((DEFAULT_ABOVE_RANDOM,) if of_plan else ()))
    last: dict[str, dict[str, Claim]] = {}
    for claim in found:
        last.setdefault(claim.data.partition(ROUND)[0], {})[claim.statement] = claim
    lacks = []
    if not any(beats_human(last.get(name, {})) for name in REAL):
        lacks.append(f"{' or '.join(REAL)}: a finalist above human by both intervals, no dearer")
    for name, claims_of in last.items():
        for statement in on_all:
            claim = claims_of.get(statement)
            if not claim or not claim.holds:
                where, measured = (claim.data, claim.measured) if claim else (name, NOT_RUN)
                lacks.append(f"{where}: {statement}, {measured}")
    return lacks
