"""How firm the study's differences are: what they hang on, and what else might explain them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.study.analysis import FINALIST, Outcome, difference, estimate, on_test
from experiments.study.rates import STAGE
from experiments.study.settings import DARTS, HUMAN, METHODS, OURS, PARALLEL
from spatialflow.analysis.intervals import Result, Sampled

HEAD = ("data", "images", "difference in PQ", "measured")
FAVOURABLE = 2
"""Pairs that are left out, of those that favour a finalist most."""


def firmness(found: Sequence[Outcome]) -> list[list[str]]:
    """Return rows under :data:`HEAD`: finals and groups seen in other ways than the claims do."""
    rows = []
    for outcome in found:
        networks = outcome.in_final
        said = {
            "test": _of_final(outcome, networks) if networks else {},
            "selection": _of_groups(outcome) | _of_rates(outcome),
        }
        rows += [
            [outcome.name, part, what, measured]
            for part, lines in said.items()
            for what, measured in lines.items()
        ]
    return rows


def _text(sampled: Sampled) -> str:
    return sampled.cell(0, sign=True, digits=2)


def _of_final(outcome: Outcome, networks: Mapping[str, Sequence[Result]]) -> dict[str, str]:
    """Return what is said of a final, on test images."""
    finalist, human = networks[FINALIST], networks["human"]
    mine, theirs = on_test(finalist), on_test(human)
    apart = np.subtract(mine, theirs)
    best = {human[i]["seed"] for i in np.argsort(apart)[-FAVOURABLE:]}
    rest = [run for run in finalist if run["seed"] not in best]
    said = {
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
        said["finalist over the human runs of the first final"] = _text(measured)
    random = networks.get("random", [])
    if random:
        seeds = {run["seed"] for run in random}
        same = [run for run in finalist if run["seed"] in seeds]
        measured = difference(same, human, part="test")
        said["finalist over human at the seeds of random genotypes"] = _text(measured)
    for one, other in (
        ("random", "parallel"),
        ("human, as gates", "parallel"),
        ("random", "human, as gates"),
    ):
        if one in networks and other in networks:
            measured = difference(networks[one], networks[other], part="test")
            said[f"{one} over {other}"] = _text(measured)
    return said


def _of_groups(outcome: Outcome) -> dict[str, str]:
    """Return what groups are over all human trainings: of the harness, and of the final."""
    final = outcome.runs("final", HUMAN)
    harness = outcome.runs("harness", HUMAN)
    opponents = {"human of seeds 0 to 4": harness}
    groups = {method: outcome.runs("searched", method) for method in METHODS}
    groups["random"] = outcome.runs("random")
    said = {}
    if final and harness:
        measured = estimate(final, harness, part="selection")
        said["human in the final over human of seeds 0 to 4"] = _text(measured)
    if outcome.round > 1:
        opponents["human in the final"] = final
    for name, runs in groups.items():
        for opponent, human in opponents.items():
            if runs and human:
                said[f"{name} over {opponent}"] = _text(estimate(runs, human, part="selection"))
    if outcome.round > 1:
        said |= _of_spaces(groups | {"parallel": outcome.runs("harness", PARALLEL)})
    from_zero, tried = (outcome.runs("explored", name) for name in ("human_from_zero", HUMAN))
    if from_zero and tried:
        measured = difference(from_zero, tried, part="selection")
        said["human flows that start at zero over human, seeds of both"] = _text(measured)
    return said


def _of_spaces(groups: Mapping[str, Sequence[Result]]) -> dict[str, str]:
    """Return what DARTS among gates has over DARTS elsewhere, and over others among gates."""
    original, gated = DARTS
    return {
        f"{gated} over {name}, seed 0": _text(difference(groups[gated], runs, part="selection"))
        for name in (original, OURS[0], "random", "parallel")
        if groups[gated] and (runs := groups[name])
    }


def _of_rates(outcome: Outcome) -> dict[str, str]:
    """Return what finalist and human flows have with other learning rates."""
    names = {"human": HUMAN, "parallel": PARALLEL}
    if outcome.chosen:
        names["finalist"] = outcome.chosen
    stages = ("harness", "searched", "shortlist")
    said = {}
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
                said[f"{what}, with a rate of {rate}"] = _text(measured)
    return said
