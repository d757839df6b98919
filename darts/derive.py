"""From architecture parameters to a genotype."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from darts.genotype import Flow, Genotype
from darts.relaxation import Architecture, choice_key
from darts.space import Costs, Edge, SearchSpace

Strengths = dict[Flow, float]


def by_argmax(architecture: Architecture) -> Strengths:
    """Take each edge's likeliest candidate, and no flow where that is ``none``.

    With sigmoid gates ``none`` has no parameter: use :func:`by_threshold`.
    """
    return {
        flow: strength
        for flow, strength in _likeliest(architecture).items()
        if strength >= architecture.probabilities(flow.key)[-1]
    }


def by_presence(architecture: Architecture) -> Strengths:
    """Take each edge that is likelier there than not, with its likeliest operation.

    Operations that do much the same share the probability of the flow between them, so that
    ``none`` may be the likeliest candidate of an edge that is needed.
    """
    found = {}
    for edge in architecture.space.edges:
        operation, presence = architecture.carrier(edge)
        if presence > 0.5:
            found[edge.with_operation(operation)] = presence
    return found


def by_threshold(architecture: Architecture, threshold: float = 0.5) -> Strengths:
    """Take each edge's likeliest operation where its probability reaches a threshold.

    The rule of FairDARTS (Chu et al. 2020), whose threshold is 0.85.
    """
    found = _likeliest(architecture)
    return {flow: strength for flow, strength in found.items() if strength >= threshold}


def by_top_inputs(architecture: Architecture, inputs: int = 2) -> Strengths:
    """Give every node the flows of its ``inputs`` strongest edges, ``none`` left out of account.

    The rule of DARTS (Liu et al. 2019, sec. 2.4), which never leaves a node with fewer.
    """
    return _strongest_inputs(_likeliest(architecture), inputs)


def _likeliest(architecture: Architecture) -> Strengths:
    """Return each edge's strongest operation, ``none`` left out."""
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
"""Those that look at the architecture parameters alone."""


def by_perturbation(
    architecture: Architecture, evaluate: Callable[[], float], *, seed: int = 0
) -> Strengths:
    """Keep of each edge what hurts most when it is removed (Wang et al. 2021, DARTS-PT, alg. 1).

    Edges are visited in random order. Each operation is removed in turn: its share goes to
    ``none``, the others keep theirs. The one whose absence makes the loss the largest becomes the
    edge's only one, for the visits to come as well; where no absence hurts, the edge goes. The
    architecture parameters are put back. Unlike the paper's, the supernet is not trained between
    visits.

    Args:
        architecture: Trained, inside the supernet that ``evaluate`` runs.
        evaluate: Loss of the supernet on held-out data, always the same.
        seed: Of the order.

    Returns:
        The flows, each with what its removal adds to the loss.
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
    order = {edge.flow.edge: position for position, edge in enumerate(architecture.space.edges)}
    return dict(sorted(found.items(), key=lambda item: order[item[0].edge]))


@torch.no_grad()
def _losses_without(logits: Tensor, operations: int, evaluate: Callable[[], float]) -> Tensor:
    """Return the loss without each of an edge's operations, the others as they are."""
    losses = []
    whole = logits.clone()
    for position in range(operations):
        logits[position] = -torch.inf
        if len(logits) > operations:
            # With a softmax the shares of the others would grow: `none` takes what is free.
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

    Flows beyond the space's ``max_inputs`` of a node are dropped, and then, while the rest costs
    more than the budget, the weakest. Choices take their likeliest option that fits, before flows.

    Args:
        architecture: Of the space.
        strengths: Flows, each with a number by which to compare them.
        name: Of the genotype.
        costs: Needed with a budget.
        budget: What all flows may cost together, in the unit of ``costs``.
        provenance: Of the genotype.

    Returns:
        A point of the space.
    """
    space = architecture.space
    flows = strengths
    choices, spent = _choices(architecture, costs or {}, budget)
    if space.max_inputs is not None:
        flows = _strongest_inputs(flows, space.max_inputs)
    if budget is not None:
        flows = within_budget(flows, costs or {}, budget - spent)
    order = {edge.flow.edge: position for position, edge in enumerate(space.edges)}
    genotype = Genotype(
        name,
        tuple(sorted(flows, key=lambda flow: order[flow.edge])),
        choices,
        dict(provenance or {}),
    )
    space.check(genotype)
    return genotype


def _choices(
    architecture: Architecture, costs: Costs, budget: float | None
) -> tuple[dict[str, str], float]:
    """Return of each choice the likeliest option that fits into a budget, and what they cost."""
    chosen, spent = {}, 0.0
    for name, options in architecture.space.choices.items():
        key = choice_key(name)
        order = architecture.probabilities(key).argsort(descending=True).tolist()
        # The default, the first, is taken where nothing else fits.
        for position in [*order, 0]:
            cost = costs.get((key, options[position]), 0.0)
            if budget is None or spent + cost <= budget:
                break
        chosen[name] = options[position]
        spent += cost
    return chosen, spent


def _strongest_inputs(flows: Strengths, inputs: int) -> Strengths:
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
    """Drop the weakest flows until the rest costs no more than a budget."""
    kept = dict(flows)
    while kept and sum(costs[flow.key, flow.operation] for flow in kept) > budget:
        del kept[min(kept, key=lambda flow: kept[flow])]
    return kept


def random_genotype(
    space: SearchSpace, *, seed: int, name: str, costs: Costs | None = None, budget: float | None
) -> Genotype:
    """Draw a point of the space, each edge absent with even chance, within a budget.

    Flows are added in random order; one that does not fit is left out.

    Args:
        space: Where from.
        seed: Of the draw.
        name: Of the genotype.
        costs: Needed with a budget.
        budget: What choices and flows may cost together, in the unit of ``costs``; None for any.
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
    order = {edge.flow.edge: position for position, edge in enumerate(space.edges)}
    genotype = Genotype(
        name,
        tuple(sorted(flows, key=lambda flow: order[flow.edge])),
        choices,
        {"rule": "random", "seed": seed},
    )
    space.check(genotype)
    return genotype
