"""Rows of the study's tables: groups, contestants, finals, rounds, explorations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from experiments.study.analysis import FINALIST, FIRST_ROUND_ONLY, Outcome, difference, estimate
from experiments.study.images import on_images, pq
from experiments.study.settings import HUMAN, METHODS, PARALLEL
from spatialflow.analysis.intervals import Interval, Result, paired_difference

ON_TEST_IMAGES = ("final", "final_random")
STAGES = ("harness", "searched", "random", "minus", "shortlist", *ON_TEST_IMAGES)
HEAD_OF_ROUNDS = ("round", "group", "PQ over the first round's")
HEAD_OF_EXPLORED = ("genotype", "PQ (seed)", "PQ over parallel", "things over parallel")
HEAD_OF_GROUPS = ("group", "runs", "PQ", "PQ over human", "cost", "GFLOPs")
HEAD_OF_FINALS = ("final", *HEAD_OF_GROUPS)
HEAD = ("contestant", "stage", "runs", "images", "PQ", "things", "stuff", "cost", "GFLOPs")


def contestants(outcome: Outcome) -> list[list[str]]:
    """Return a row for each contestant of each stage, with PQ and cost.

    PQ is of test images in the final, and of selection images before. A later round has no rows of
    stages that were run in the first round only.
    """
    rows = []
    for stage in STAGES:
        if outcome.round > 1 and stage in FIRST_ROUND_ONLY:
            continue
        runs = outcome.runs(stage)
        for name in sorted({r["contestant"] for r in runs}):
            mine = [r for r in runs if r["contestant"] == name]
            part = "test" if stage in ON_TEST_IMAGES else "selection"
            sampled = estimate(mine, part=part)
            groups = [sampled.cell(group) for group in range(3)]
            costs = span(outcome.cost, [name]), span(outcome.gflops, [name])
            rows.append([name, stage, str(len(mine)), part, *groups, *costs])
    return rows


def groups_of(outcome: Outcome) -> dict[str, list[Result]]:
    """Return the runs of each group that is compared with the human flows on selection images."""
    ablation = {"human less one flow": outcome.runs("minus")} if outcome.round == 1 else {}
    return {
        "parallel": outcome.runs("harness", PARALLEL),
        **ablation,
        **{method: outcome.runs("searched", method) for method in METHODS},
        "random": outcome.runs("random"),
    }


def against_human(outcome: Outcome) -> dict[str, Interval]:
    """Return the differences of groups to human flows of the same seeds, on selection images."""
    human = outcome.runs("harness", HUMAN)
    return {
        name: difference(runs, human, part="selection").interval(0)
        for name, runs in groups_of(outcome).items()
        if runs and human
    }


def summary(outcome: Outcome, differences: Mapping[str, Interval]) -> list[list[str]]:
    """Return a row for each group, on selection images.

    Args:
        outcome: Kept results of a data set and round.
        differences: Differences to the human flows, from :func:`against_human`.
    """
    groups = {"human": outcome.runs("harness", HUMAN), **groups_of(outcome)}
    return [
        group_row(outcome, name, "selection", runs, differences.get(name))
        for name, runs in groups.items()
        if runs
    ]


def finals(found: Sequence[Outcome]) -> tuple[list[list[str]], dict[str, Interval]]:
    """Return the finals that are complete.

    Returns:
        Rows under :data:`HEAD_OF_FINALS`, and the differences to the human flows by network.
    """
    rows, differences = [], {}
    for outcome in found:
        networks = outcome.in_final
        for network, runs in networks.items():
            over = None
            if network != "human":
                over = difference(runs, networks["human"], part="test").interval(0)
                differences[f"{outcome.name}: {network}"] = over
            rows.append([outcome.name, *group_row(outcome, network, "test", runs, over)])
    return rows, differences


def finalists_over(found: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """Compare the finalists with the other networks in finals that are complete.

    Returns:
        The head of a table, and a row for each other network: for each final, PQ of the finalist
        minus its PQ on test images, at the seeds that both have; "" where it was not trained.
    """
    whole = {outcome.name: networks for outcome in found if (networks := outcome.in_final)}
    others = dict.fromkeys(name for networks in whole.values() for name in networks)
    others.pop(FINALIST, None)
    rows = []
    for other in others:
        cells = (
            difference(networks[FINALIST], networks[other], part="test").cell(
                0, sign=True, digits=2
            )
            if other in networks
            else ""
            for networks in whole.values()
        )
        rows.append([other, *cells])
    return ["the finalist over", *whole], rows


def group_row(
    outcome: Outcome, name: str, part: str, runs: list[Result], over: Interval | None = None
) -> list[str]:
    """Return a row under :data:`HEAD_OF_GROUPS`.

    Args:
        outcome: Kept results of a data set and round.
        name: Name of the group.
        part: Images to use, ``selection`` or ``test``.
        runs: Runs of the group.
        over: Difference to the human flows; None leaves the cell empty.
    """
    names = sorted({r["contestant"] for r in runs})
    mean = estimate(runs, part=part).cell(0)
    costs = span(outcome.cost, names), span(outcome.gflops, names)
    return [name, str(len(runs)), mean, over.text(sign=True) if over else "", *costs]


def span(measure: Callable[[str], float], names: Sequence[str]) -> str:
    """Return the smallest and the largest value of contestants as text."""
    values = sorted(map(measure, names))
    ends = dict.fromkeys(f"{value:.2f}" for value in (values[0], values[-1]))
    return " to ".join(ends)


def flows_worth(outcome: Outcome) -> dict[str, Interval]:
    """Return the change of PQ on selection images when a flow is left out, by flow.

    There is one run each, of seed 0. So intervals are over images, and not over seeds.
    """
    human = outcome.runs("harness", HUMAN)
    found = {}
    for run in outcome.runs("minus"):
        if human:
            name = run["contestant"].removeprefix("without-").replace("-to-", " → ")
            found[name] = difference([run], human, part="selection").interval(0)
    return found


def explored(outcome: Outcome) -> list[list[str]]:
    """Return the rows of trainings between the rounds, on selection images."""
    runs: dict[str, list[Result]] = {}
    for run in outcome.runs("explored"):
        runs.setdefault(run["contestant"], []).append(on_images(run, "selection"))
    harness = [on_images(run, "selection") for run in outcome.runs("harness", PARALLEL)]
    rows = []
    for name, mine in {"parallel, harness": harness, **runs}.items():
        cells = ["", ""]
        if mine is not harness and name != PARALLEL:
            over, _ = paired_difference(mine, runs[PARALLEL])
            cells = [over.cell(group, sign=True) for group in (0, 1)]
        seeds = ", ".join(f"{pq(run):.1f} ({run['seed']})" for run in mine)
        rows.append([name, seeds, *cells])
    return rows


def between_rounds(found: Sequence[Outcome]) -> list[list[str]]:
    """Return the differences of later rounds' groups to those of the first, as rows."""
    rows = []
    for later in (outcome for outcome in found if outcome.round > 1):
        before = groups_of(Outcome(later.first))
        for name, runs in groups_of(later).items():
            if runs and before[name] and runs != before[name]:
                over = difference(runs, before[name], part="selection")
                rows.append([later.name, name, over.cell(0, sign=True)])
    return rows
