"""Derive a genotype from architecture parameters, or draw one at random.

A *rule* finds flows and their strengths; :func:`derive` makes a genotype of them.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from darts.genotype import Flow, Genotype
from darts.relaxation import Architecture, choice_key
from darts.space import Costs, Edge, SearchSpace

Strengths = dict[Flow, float]
"""Flow → a number to compare it with others: a probability, or an increase of the loss."""


def by_argmax(architecture: Architecture) -> Strengths:
    """Return each edge's likeliest candidate; the edge has no flow where that is ``none``.

    With sigmoid gates ``none`` has no parameter: use :func:`by_threshold`.

    Args:
        architecture: The trained architecture.
    """
    return {
        flow: strength
        for flow, strength in _likeliest(architecture).items()
        if strength >= architecture.probabilities(flow.key)[-1]
    }


def by_presence(architecture: Architecture) -> Strengths:
    """Return the likeliest operation of each edge whose probability of any flow is above 0.5.

    Similar operations share the probability of a flow between them. Then ``none`` may be the
    likeliest single candidate of an edge that the network needs, which :func:`by_argmax` drops.

    Args:
        architecture: The trained architecture.
    """
    found = {}
    for edge in architecture.space.edges:
        operation, presence = architecture.strongest(edge)
        if presence > 0.5:
            found[edge.with_operation(operation)] = presence
    return found


def by_threshold(architecture: Architecture, threshold: float = 0.5) -> Strengths:
    """Return each edge's likeliest operation if its probability reaches a threshold.

    This is the rule of FairDARTS (Chu et al. 2020, arXiv 1911.12126), whose threshold is 0.85.

    Args:
        architecture: The trained architecture.
        threshold: Least probability of a flow.
    """
    found = _likeliest(architecture)
    return {flow: strength for flow, strength in found.items() if strength >= threshold}


def by_top_inputs(architecture: Architecture, inputs: int = 2) -> Strengths:
    """Return the flows of each node's strongest incoming edges, and ignore ``none``.

    This is the rule of DARTS (Liu et al. 2019, arXiv 1806.09055, sec. 2.4). No node gets fewer
    flows unless it has fewer edges.

    Args:
        architecture: The trained architecture.
        inputs: Number of flows per node.
    """
    return _strongest_inputs(_likeliest(architecture), inputs)


def _likeliest(architecture: Architecture) -> Strengths:
    """Return each edge's strongest operation, and ignore ``none``."""
    found = {}
    for edge in architecture.space.edges:
        strengths = architecture.strengths(edge)
        best = int(strengths.argmax())
        found[edge.with_operation(edge.operations[best])] = float(strengths[best])
    return found


RULES: dict[str, Callable[[Architecture], Strengths]] = {
    "argmax": by_argmax,
    "presence": by_presence,
    "threshold": by_threshold,
    "top_inputs": by_top_inputs,
}
"""Name → rule that reads only the architecture parameters."""


def by_perturbation(
    architecture: Architecture, evaluate: Callable[[], float], *, seed: int = 0
) -> Strengths:
    """Keep the operation of each edge whose removal increases the loss most.

    DARTS-PT (Wang et al. 2021, arXiv 2108.04392, alg. 1). Edges are visited in random order. On a
    visit each operation is removed in turn: its share goes to ``none``, the others keep theirs. The
    operation whose removal gives the largest loss becomes the edge's only operation, also for the
    next visits. Where no removal increases the loss, the edge gets no flow. The architecture
    parameters are restored at the end. Unlike in the paper, the supernet is not trained between
    visits.

    Args:
        architecture: The trained architecture, inside the supernet that ``evaluate`` runs.
        evaluate: Return the supernet's loss on held-out data, the same data in every call.
        seed: Seed of the order of edges.

    Returns:
        Flow → increase of the loss when its operation is removed.
    """
    parameters = architecture.edges
    before = {key: logits.detach().clone() for key, logits in parameters.items()}
    edges = list(architecture.space.edges)
    random.Random(seed).shuffle(edges)
    found: Strengths = {}
    try:
        for edge in edges:
            logits, number = parameters[edge.key], len(edge.operations)
            hurt = _losses_without(logits, number, evaluate) - evaluate()
            best = int(hurt.argmax()) if hurt.max() > 0 else number
            with torch.no_grad():
                kept = logits[best : best + 1].clone()
                logits.fill_(-torch.inf)
                logits[best : best + 1] = kept
            if best < number:
                found[edge.with_operation(edge.operations[best])] = float(hurt[best])
    finally:
        with torch.no_grad():
            for key, logits in before.items():
                parameters[key].copy_(logits)
    return {flow: found[flow] for flow in _in_order(found, architecture.space)}


@torch.no_grad()
def _losses_without(logits: Tensor, operations: int, evaluate: Callable[[], float]) -> Tensor:
    """Return the losses (O,) without each of an edge's operations; the others keep their shares."""
    losses = []
    whole = logits.clone()
    for position in range(operations):
        logits[position] = -torch.inf
        if len(logits) > operations:
            # A softmax would give the free share to the other operations: give it to `none`.
            logits[-1] = torch.logaddexp(whole[-1], whole[position])
        losses.append(evaluate())
        logits.copy_(whole)
    return torch.tensor(losses)


def derive(
    architecture: Architecture,
    strengths: Strengths,
    *,
    name: str,
    costs: Costs | None = None,
    budget: float | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Genotype:
    """Make a genotype of the flows that a rule has found.

    Choices are made first: each takes its likeliest option that fits into the budget. Then each
    node keeps its strongest flows, at most the space's ``max_inputs``. Then the weakest flows are
    dropped until the rest fits into the budget.

    Args:
        architecture: The trained architecture.
        strengths: The flows and their strengths, by a rule of this module.
        name: Name of the genotype.
        costs: Cost of each edge's operations and choice's options; required with a budget.
        budget: Largest cost of all choices and flows together, in the unit of ``costs``; None for
            no limit.
        provenance: Provenance of the genotype.

    Returns:
        A genotype of the space.
    """
    space = architecture.space
    flows = strengths
    choices, spent = _choices(architecture, costs or {}, budget)
    if space.max_inputs is not None:
        flows = _strongest_inputs(flows, space.max_inputs)
    if budget is not None:
        flows = within_budget(flows, costs or {}, budget - spent)
    genotype = Genotype(name, _in_order(flows, space), choices, dict(provenance or {}))
    space.check(genotype)
    return genotype


def _in_order(flows: Iterable[Flow], space: SearchSpace) -> tuple[Flow, ...]:
    """Return flows in the order of the space's edges."""
    order = {edge.flow.edge: position for position, edge in enumerate(space.edges)}
    return tuple(sorted(flows, key=lambda flow: order[flow.edge]))


def _choices(
    architecture: Architecture, costs: Costs, budget: float | None
) -> tuple[dict[str, str], float]:
    """Return each choice's likeliest option that fits into the budget, and the cost of all."""
    chosen, spent = {}, 0.0
    for name, options in architecture.space.choices.items():
        key = choice_key(name)
        order = architecture.probabilities(key).argsort(descending=True).tolist()
        # If no option fits, take the first, which is the default.
        for position in [*order, 0]:
            cost = costs.get((key, options[position]), 0.0)
            if budget is None or spent + cost <= budget:
                break
        chosen[name] = options[position]
        spent += cost
    return chosen, spent


def _strongest_inputs(flows: Strengths, inputs: int) -> Strengths:
    """Return at most ``inputs`` flows into each node, the strongest."""
    arriving: dict[str, list[Flow]] = defaultdict(list)
    for flow in flows:
        arriving[flow.target].append(flow)
    kept = {
        flow
        for rivals in arriving.values()
        for flow in sorted(rivals, key=lambda flow: -flows[flow])[:inputs]
    }
    return {flow: strength for flow, strength in flows.items() if flow in kept}


def within_budget(flows: Strengths, costs: Costs, budget: float) -> Strengths:
    """Drop the weakest flows until the rest fits into a budget.

    Args:
        flows: The flows and their strengths.
        costs: Cost of each edge's operations.
        budget: Largest cost of all flows together, in the unit of ``costs``.

    Returns:
        The flows that are left.
    """
    kept = dict(flows)
    while kept and sum(costs[flow.key, flow.operation] for flow in kept) > budget:
        del kept[min(kept, key=lambda flow: kept[flow])]
    return kept


def random_genotype(
    space: SearchSpace, *, seed: int, name: str, costs: Costs | None = None, budget: float | None
) -> Genotype:
    """Draw a random genotype of a space within a budget.

    Each edge is absent with probability 0.5. The others add a flow in random order, unless it does
    not fit into the budget or into the space's ``max_inputs``.

    Args:
        space: The search space.
        seed: Seed of the draw.
        name: Name of the genotype.
        costs: Cost of each edge's operations and choice's options; required with a budget.
        budget: Largest cost of all choices and flows together, in the unit of ``costs``; None for
            no limit.
    """
    rng = random.Random(seed)
    choices, spent = {}, 0.0
    for choice, options in space.choices.items():
        prices = [(costs or {}).get((choice_key(choice), option), 0.0) for option in options]
        fitting = [i for i, price in enumerate(prices) if budget is None or spent + price <= budget]
        position = rng.choice(fitting or [0])
        choices[choice] = options[position]
        spent += prices[position]
    wanted: list[Edge] = [edge for edge in space.edges if rng.random() < 0.5]
    rng.shuffle(wanted)
    flows = []
    inputs: Counter[str] = Counter()
    for edge in wanted:
        flow = edge.with_operation(rng.choice(edge.operations))
        cost = 0.0 if costs is None else costs[flow.key, flow.operation]
        full = space.max_inputs is not None and inputs[flow.target] >= space.max_inputs
        if full or (budget is not None and spent + cost > budget):
            continue
        flows.append(flow)
        spent += cost
        inputs[flow.target] += 1
    genotype = Genotype(name, _in_order(flows, space), choices, {"rule": "random", "seed": seed})
    space.check(genotype)
    return genotype
