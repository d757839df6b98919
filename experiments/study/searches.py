"""What the searches of a study's round have decided, and whether they decide the same again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from darts.genotype import Genotype
from experiments.study.analysis import Outcome
from experiments.study.settings import HUMAN, OURS
from spatialflow.config import get_cfg, load_genotype
from spatialflow.search.space import topology_from_config

HEAD = ("search", "flows", "cost", "likeliest", "goes on", "agreement", "loss", "loss derived")
CAPTION = (
    "Searches: share of an edge's likeliest candidate; correlation of what the second half of the "
    "log changes with what the first did; rank correlation with others of the method in what is "
    "preferred where; loss on the architecture's images before and after derivation"
)

Lines = list[dict[str, Any]]
"""A search's log: what its probabilities and losses were, every so many iterations."""


def what_searches_left(outcome: Outcome) -> list[list[str]]:
    """Return a row under :data:`HEAD` for each search that was run.

    The losses are those on the architecture's images before and after a network is derived. A
    search by perturbation has no log of its own.
    """
    paths = sorted(outcome.folder.glob("genotypes/*_[0-9]*.json"))
    logs = {path.stem: outcome.history(path.stem) for path in paths}
    rows = []
    for path in paths:
        name, genotype = path.stem, Genotype.load(path)
        loss = genotype.provenance["held_out_loss"]
        rows.append(
            [
                *(name, str(len(genotype.flows)), f"{outcome.cost(name):.2f}"),
                f"{likeliest(logs[name]):.2f}" if logs[name] else "",
                goes_on(logs[name]),
                agreement(logs[name], others(name, logs)),
                *(f"{loss['supernet']:.3f}", f"{loss['derived']:.3f}"),
            ]
        )
    return rows


def others(name: str, logs: dict[str, Lines]) -> list[Lines]:
    """Return the logs of the same method's searches with other seeds."""
    method = name.rpartition("_")[0]
    return [log for key, log in logs.items() if key.rpartition("_")[0] == method and key != name]


def likeliest(log: Lines) -> float:
    """Return the mean share of an edge's likeliest candidate at the end of a search."""
    return fmean(max(shares) for shares in log[-1]["probabilities"].values())


def agreement(log: Lines, rest: list[Lines]) -> str:
    """Write the mean rank correlation of preferences with those of others; "" without any.

    Of ranks, so that it does not hang on one edge that all searches want.
    """
    mine = [
        float(stats.spearmanr(preferences(log[-1]), preferences(other[-1]), axis=None).statistic)
        for other in rest
        if log and other
    ]
    return f"{fmean(mine):+.2f}" if mine else ""


def goes_on(log: Lines) -> str:
    """Write how far the second half of a search goes on with what the first began.

    The correlation of the changes of preferences in both halves of the log: 1 if the architecture
    goes one way, 0 if it walks at random, and towards -0.5 if it fluctuates about a place; "" for
    a log of fewer than three lines.
    """
    if len(log) < 3:
        return ""
    first, middle, last = (preferences(line) for line in (log[0], log[len(log) // 2], log[-1]))
    early, late = (middle - first).ravel(), (last - middle).ravel()
    return f"{np.corrcoef(early, late)[0, 1]:+.2f}"


def preferences(line: dict[str, Any]) -> npt.NDArray[np.float64]:
    """Return how much a search prefers a candidate on an edge to the same one elsewhere.

    Args:
        line: Of its log.

    Returns:
        Edges × candidates: logarithms of the probabilities, less the mean over an edge's
        candidates and less that over all edges. So what a penalty or an operation's kind does to
        all edges alike is no agreement, and neither is how far a search has gone.
    """
    shares = line["probabilities"]
    logs = np.log([shares[edge] for edge in sorted(shares)])
    logs -= logs.mean(axis=1, keepdims=True)
    return logs - logs.mean(axis=0)


def common_flows(found: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """Return which flows all default searches of some round have found.

    Returns:
        The head of a table, and its rows: a flow, by whatever port, whether the human design has
        it, and how many of each round's searches; those of most searches first. The last row is
        what an edge has on average, which is what searches without a preference would find of each.
    """
    searches = {
        outcome.name: [
            carried(Genotype.load(path))
            for path in sorted(outcome.folder.glob(f"genotypes/{OURS[0]}_*.json"))
        ]
        for outcome in found
    }
    counts = {name: Counter(e for one in sets for e in one) for name, sets in searches.items()}
    total = sum(counts.values(), Counter())
    human = carried(load_genotype(HUMAN))
    rows = [
        [edge, "yes" if edge in human else "", *(str(count[edge]) for count in counts.values())]
        for edge, _ in sorted(total.items(), key=lambda item: (-item[1], item[0]))
        if any(searches[name] and counts[name][edge] == len(searches[name]) for name in counts)
    ]
    edges = len(topology_from_config(get_cfg(found[0].data.search)).edges())
    chance = (f"{count.total() / edges:.1f}" for count in counts.values())
    return ["flow", HUMAN, *counts], [*rows, ["any flow", "", *chance]]


def carried(genotype: Genotype) -> set[str]:
    """Return from which node to which a genotype has flows."""
    return {f"{flow.source} → {flow.target}" for flow in genotype.flows}
