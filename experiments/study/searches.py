"""Decisions of the searches of a round, and whether other seeds decide the same."""

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
"""Log of a search: probabilities and losses at regular iterations."""


def search_rows(outcome: Outcome) -> list[list[str]]:
    """Return a row under :data:`HEAD` for each search.

    Losses are on the architecture's images, before and after a network is derived. A search by
    perturbation has no log of its own.
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
    """Return the probability of the likeliest candidate at the end, as the mean over edges."""
    return fmean(max(shares) for shares in log[-1]["probabilities"].values())


def agreement(log: Lines, rest: list[Lines]) -> str:
    """Return the mean rank correlation of a search's preferences with those of others, as text.

    Ranks keep one edge that all searches prefer from deciding the correlation.

    Args:
        log: Log of the search.
        rest: Logs of the others. Without any the text is empty.
    """
    mine = [
        float(stats.spearmanr(preferences(log[-1]), preferences(other[-1]), axis=None).statistic)
        for other in rest
        if log and other
    ]
    return f"{fmean(mine):+.2f}" if mine else ""


def goes_on(log: Lines) -> str:
    """Return the correlation of changes in the first and second half of a search, as text.

    It is 1 if the preferences move in one direction, 0 for a random walk, and near -0.5 if they
    fluctuate about a point. For a log of fewer than three lines the text is empty.
    """
    if len(log) < 3:
        return ""
    first, middle, last = (preferences(line) for line in (log[0], log[len(log) // 2], log[-1]))
    early, late = (middle - first).ravel(), (last - middle).ravel()
    return f"{np.corrcoef(early, late)[0, 1]:+.2f}"


def preferences(line: dict[str, Any]) -> npt.NDArray[np.float64]:
    """Return how much a search prefers a candidate on an edge to the same one on other edges.

    What changes all edges alike, such as a penalty on an operation, is no preference.

    Args:
        line: Line of the search's log.

    Returns:
        (edges, candidates): logarithms of probabilities, less their mean over the candidates of an
        edge, less their mean over edges.
    """
    shares = line["probabilities"]
    logs = np.log([shares[edge] for edge in sorted(shares)])
    logs -= logs.mean(axis=1, keepdims=True)
    return logs - logs.mean(axis=0)


def common_flows(found: Sequence[Outcome]) -> tuple[list[str], list[list[str]]]:
    """Return the flows that all default searches of at least one round have found.

    Ports do not matter here.

    Returns:
        The head and the rows of a table, most frequent flows first: the flow, whether the human
        design has it, and the number of each round's searches that have it. The last row is the
        mean over edges, which searches without a preference would have on every edge.
    """
    searches = {
        outcome.name: [
            node_pairs(Genotype.load(path))
            for path in sorted(outcome.folder.glob(f"genotypes/{OURS[0]}_*.json"))
        ]
        for outcome in found
    }
    counts = {name: Counter(e for one in sets for e in one) for name, sets in searches.items()}
    total = sum(counts.values(), Counter())
    human = node_pairs(load_genotype(HUMAN))
    rows = [
        [edge, "yes" if edge in human else "", *(str(count[edge]) for count in counts.values())]
        for edge, _ in sorted(total.items(), key=lambda item: (-item[1], item[0]))
        if any(searches[name] and counts[name][edge] == len(searches[name]) for name in counts)
    ]
    edges = len(topology_from_config(get_cfg(found[0].data.search)).edges())
    chance = (f"{count.total() / edges:.1f}" for count in counts.values())
    return ["flow", HUMAN, *counts], [*rows, ["any flow", "", *chance]]


def node_pairs(genotype: Genotype) -> set[str]:
    """Return the pairs of source and target of a genotype's flows, as text."""
    return {f"{flow.source} → {flow.target}" for flow in genotype.flows}
