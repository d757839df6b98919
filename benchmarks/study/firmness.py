"""How firm the study's differences are: what they hang on, and what else might explain them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.intervals import Result
from benchmarks.study.analysis import Outcome, difference, estimate
from benchmarks.study.images import on_images, pq
from benchmarks.study.rates import STAGE
from benchmarks.study.settings import HUMAN, METHODS, PARALLEL

HEAD = ("data", "images", "difference in PQ", "measured")
FAVOURABLE = 2
"""Pairs that are left out, of those that favour a finalist most."""


def firmness(found: Sequence[Outcome]) -> list[list[str]]:
    """Return rows under :data:`HEAD`: finals and groups seen in other ways than the claims do."""
    rows = []
    for outcome in found:
        name = outcome.finalist["finalist"] if outcome.finalist else None
        human = outcome.runs("final", HUMAN)
        finalist = outcome.runs("final", name) if name else []
        if human and finalist:
            rows += [[outcome.name, *row] for row in _of_final(outcome, finalist, human)]
        rows += [[outcome.name, *row] for row in _of_groups(outcome, human)]
        rows += [[outcome.name, *row] for row in _of_rates(outcome, name)]
    return rows


def _over(one: list[Result], other: list[Result], part: str) -> str:
    """Return the difference of runs that need not have seeds in common."""
    return estimate(one, other, part=part).interval(0).text(sign=True, digits=2)


def _of_final(
    outcome: Outcome, finalist: list[Result], human: list[Result]
) -> Iterator[tuple[str, str, str]]:
    mine, theirs = ([pq(on_images(run, "test")) for run in side] for side in (finalist, human))
    apart = np.subtract(mine, theirs)
    yield "test", "finalist over human, median of the pairs", f"{np.median(apart):+.2f}"
    yield "test", "pairs in which the finalist is above", f"{(apart > 0).sum()} of {len(apart)}"
    worst = {human[i]["seed"] for i in np.argsort(apart)[-FAVOURABLE:]}
    rest = [[r for r in side if r["seed"] not in worst] for side in (finalist, human)]
    measured = difference(rest[0], rest[1], part="test").interval(0).text(sign=True, digits=2)
    yield (
        "test",
        f"finalist over human, without the {FAVOURABLE} pairs that favour it most",
        measured,
    )
    first = Outcome(outcome.first).runs("final", HUMAN) if outcome.round > 1 else []
    if first:
        yield (
            "test",
            "finalist over the human runs of the first final",
            _over(finalist, first, "test"),
        )
    yield (
        "test",
        "correlation of finalist and human over seeds",
        f"{np.corrcoef(mine, theirs)[0, 1]:.1f}",
    )
    random, nothing = outcome.runs("final_random"), outcome.runs("final", PARALLEL)
    if random:
        seeds = {run["seed"] for run in random}
        same = [run for run in finalist if run["seed"] in seeds]
        measured = difference(same, human, part="test").interval(0).text(sign=True, digits=2)
        yield "test", "finalist over human at the seeds of random genotypes", measured
    if random and nothing:
        measured = difference(random, nothing, part="test").interval(0).text(sign=True, digits=2)
        yield "test", "random genotypes over parallel", measured


def _of_rates(outcome: Outcome, finalist: str | None) -> Iterator[tuple[str, str, str]]:
    """Yield what finalist and human flows have with other learning rates."""
    usual = {HUMAN: outcome.runs("harness", HUMAN), PARALLEL: outcome.runs("harness", PARALLEL)}
    for folder in sorted(outcome.folder.glob(f"{STAGE}*")):
        rate = folder.name.removeprefix(STAGE)
        names = [name for name in (HUMAN, PARALLEL, finalist) if name]
        runs = {name: outcome.runs(folder.name, name) for name in names}
        pairs = {
            "finalist over human": (runs[finalist] if finalist else [], runs[HUMAN]),
            "parallel over human": (runs[PARALLEL], runs[HUMAN]),
            "human over human at 0.001": (runs[HUMAN], usual[HUMAN]),
            "parallel over parallel at 0.001": (runs[PARALLEL], usual[PARALLEL]),
        }
        for what, (one, other) in pairs.items():
            if one and other:
                measured = difference(one, other, part="selection").interval(0)
                text = measured.text(sign=True, digits=2)
                yield "selection", f"{what}, with a rate of {rate}", text


def _of_groups(outcome: Outcome, final: list[Result]) -> Iterator[tuple[str, str, str]]:
    """Yield what groups are over the five human trainings, and over those of the final."""
    harness = outcome.runs("harness", HUMAN)
    groups = {method: outcome.runs("searched", method) for method in METHODS}
    groups["random"] = outcome.runs("random")
    if final and harness:
        yield (
            "selection",
            "human in the final over human of seeds 0 to 4",
            _over(final, harness, "selection"),
        )
    for name, runs in groups.items():
        if runs and harness:
            yield (
                "selection",
                f"{name} over human of seeds 0 to 4",
                _over(runs, harness, "selection"),
            )
        if runs and final and outcome.round > 1:
            yield "selection", f"{name} over human in the final", _over(runs, final, "selection")
    from_zero, tried = (outcome.runs("explored", name) for name in ("human_from_zero", HUMAN))
    if from_zero and tried:
        measured = difference(from_zero, tried, part="selection").interval(0)
        text = measured.text(sign=True, digits=2)
        yield "selection", "human flows that start at zero over human, seed 50", text
