"""Robustness of the study's differences: other ways to measure them, and other explanations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.study.analysis import FINALIST, Outcome, difference, estimate, on_test
from experiments.study.rates import STAGE
from experiments.study.settings import DARTS, HUMAN, METHODS, OURS, PARALLEL
from spatialflow.analysis.intervals import ResampledPQ, Result

HEAD = ("data", "images", "difference in PQ", "measured")
FAVOURABLE = 2
"""Number of pairs to leave out, of those that favour a finalist most."""


def firmness(found: Sequence[Outcome]) -> list[list[str]]:
    """Return rows under :data:`HEAD`, with differences that the claims do not have."""
    rows = []
    for outcome in found:
        networks = outcome.in_final
        lines_of = {
            "test": _of_final(outcome, networks) if networks else {},
            "selection": _of_groups(outcome) | _of_rates(outcome),
        }
        rows += [
            [outcome.name, part, what, measured]
            for part, lines in lines_of.items()
            for what, measured in lines.items()
        ]
    return rows


def _text(sampled: ResampledPQ) -> str:
    return sampled.cell(0, sign=True, digits=2)


def _of_final(outcome: Outcome, networks: Mapping[str, Sequence[Result]]) -> dict[str, str]:
    """Measure differences of a final on test images.

    Returns:
        Texts of the measured values, by what they are.
    """
    finalist, human = networks[FINALIST], networks["human"]
    mine, theirs = on_test(finalist), on_test(human)
    apart = np.subtract(mine, theirs)
    best = {human[i]["seed"] for i in np.argsort(apart)[-FAVOURABLE:]}
    rest = [run for run in finalist if run["seed"] not in best]
    rows = {
        "finalist over human, median of the pairs": f"{np.median(apart):+.2f}",
        "pairs in which the finalist is above": f"{(apart > 0).sum()} of {len(apart)}",
        f"finalist over human, without the {FAVOURABLE} pairs that favour it most": _text(
            difference(rest, human, part="test")
        ),
        "correlation of finalist and human over seeds": f"{np.corrcoef(mine, theirs)[0, 1]:.1f}",
    }
    first = Outcome(outcome.first).runs("final", HUMAN) if outcome.round > 1 else []
    if first:
        measured = estimate(finalist, first, part="test")
        rows["finalist over the human runs of the first final"] = _text(measured)
    random = networks.get("random", [])
    if random:
        seeds = {run["seed"] for run in random}
        same = [run for run in finalist if run["seed"] in seeds]
        measured = difference(same, human, part="test")
        rows["finalist over human at the seeds of random genotypes"] = _text(measured)
    for one, other in (
        ("random", "parallel"),
        ("human, as gates", "parallel"),
        ("random", "human, as gates"),
    ):
        if one in networks and other in networks:
            measured = difference(networks[one], networks[other], part="test")
            rows[f"{one} over {other}"] = _text(measured)
    return rows


def _of_groups(outcome: Outcome) -> dict[str, str]:
    """Compare groups with all human trainings, those of the harness and of the final."""
    final = outcome.runs("final", HUMAN)
    harness = outcome.runs("harness", HUMAN)
    opponents = {"human of seeds 0 to 4": harness}
    groups = {method: outcome.runs("searched", method) for method in METHODS}
    groups["random"] = outcome.runs("random")
    rows: dict[str, str] = {}
    if final and harness:
        measured = estimate(final, harness, part="selection")
        rows["human in the final over human of seeds 0 to 4"] = _text(measured)
    if outcome.round > 1:
        opponents["human in the final"] = final
    for name, runs in groups.items():
        for opponent, human in opponents.items():
            if runs and human:
                rows[f"{name} over {opponent}"] = _text(estimate(runs, human, part="selection"))
    if outcome.round > 1:
        rows |= _of_spaces(groups | {"parallel": outcome.runs("harness", PARALLEL)})
    from_zero, tried = (outcome.runs("explored", name) for name in ("human_from_zero", HUMAN))
    if from_zero and tried:
        measured = difference(from_zero, tried, part="selection")
        rows["human flows that start at zero over human, seeds of both"] = _text(measured)
    return rows


def _of_spaces(groups: Mapping[str, Sequence[Result]]) -> dict[str, str]:
    """Compare DARTS in the space of gates with DARTS elsewhere, and with others in that space."""
    original, gated = DARTS
    return {
        f"{gated} over {name}, seed 0": _text(difference(groups[gated], runs, part="selection"))
        for name in (original, OURS[0], "random", "parallel")
        if groups[gated] and (runs := groups[name])
    }


def _of_rates(outcome: Outcome) -> dict[str, str]:
    """Compare finalist, human and no flows that were trained with other learning rates."""
    names = {"human": HUMAN, "parallel": PARALLEL}
    if outcome.chosen:
        names["finalist"] = outcome.chosen
    stages = ("harness", "searched", "shortlist")
    rows: dict[str, str] = {}
    for folder in sorted(outcome.folder.glob(f"{STAGE}*")):
        runs = {what: outcome.runs(folder.name, name) for what, name in names.items()}
        others = [what for what in names if what != "human"]
        pairs = {f"{what} over human": (runs[what], runs["human"]) for what in others}
        for what, name in names.items():
            usual = [run for stage in stages for run in outcome.runs(stage, name)]
            pairs[f"{what} over {what} of the usual rate"] = (runs[what], usual)
        rate = folder.name.removeprefix(STAGE)
        for what, (one, other) in pairs.items():
            if one and other:
                measured = difference(one, other, part="selection")
                rows[f"{what}, with a rate of {rate}"] = _text(measured)
    return rows
