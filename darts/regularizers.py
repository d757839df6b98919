"""What is added to the loss of the architecture, each term a scalar with a gradient by α."""

from __future__ import annotations

import torch
from torch import Tensor

from darts.relaxation import Architecture, choice_key
from darts.space import Costs


def beta_decay(architecture: Architecture) -> Tensor:
    """Mean over edges of logsumexp(α), which keeps large parameters from winning early.

    Ye et al. 2022, β-DARTS; its factor grows from 0 during a search.
    """
    return torch.stack([logits.logsumexp(dim=0) for logits in architecture.edges.values()]).mean()


def entropy(architecture: Architecture) -> Tensor:
    """Mean entropy of the edges' relaxations in nats, to be pushed down late in a search.

    The smaller, the nearer is the supernet to the network that is derived from it (Gao et al. 2020,
    MTL-NAS). With sigmoid gates, of each gate.
    """
    per_edge = []
    for logits in architecture.edges.values():
        if architecture.relaxing.kind == "sigmoid":
            p, log_p, log_q = logits.sigmoid(), _log_sigmoid(logits), _log_sigmoid(-logits)
            per_edge.append(-(p * log_p + (1 - p) * log_q).mean())
        else:
            per_edge.append(-(logits.softmax(dim=0) * logits.log_softmax(dim=0)).sum())
    return torch.stack(per_edge).mean()


def _log_sigmoid(x: Tensor) -> Tensor:
    return torch.nn.functional.logsigmoid(x)


def expected_flows(architecture: Architecture) -> Tensor:
    """Expected number of flows over the number of edges: what an L0 penalty pushes down.

    An edge that is of no use has no gradient of its own, so without it ``none`` wins no edge but by
    chance (Louizos et al. 2018, L0 regularisation). Of sigmoid gates the sum is taken, which may
    be more than 1 an edge.
    """
    shares = []
    for edge in architecture.space.edges:
        logits: Tensor = architecture.edges[edge.key]
        sigmoid = architecture.relaxing.kind == "sigmoid"
        probabilities = logits.sigmoid() if sigmoid else logits.softmax(dim=0)
        shares.append(probabilities[: len(edge.operations)].sum())
    return torch.stack(shares).mean()


def expected_cost(architecture: Architecture, costs: Costs) -> Tensor:
    """Cost of all flows and choices, each weighed by the probability of operation or option.

    Args:
        architecture: Of the space.
        costs: In any unit; what is absent costs nothing.
    """
    total = torch.zeros((), device=next(iter(architecture.edges.values())).device)
    for edge in architecture.space.edges:
        logits: Tensor = architecture.edges[edge.key]
        sigmoid = architecture.relaxing.kind == "sigmoid"
        probabilities = logits.sigmoid() if sigmoid else logits.softmax(dim=0)
        for probability, operation in zip(probabilities, edge.operations, strict=False):
            total = total + probability * costs.get((edge.key, operation), 0.0)
    for name, options in architecture.space.choices.items():
        shares = architecture.choices[choice_key(name)].softmax(dim=0)
        for probability, option in zip(shares, options, strict=True):
            total = total + probability * costs.get((choice_key(name), option), 0.0)
    return total


def over_budget(cost: Tensor, budget: float) -> Tensor:
    """relu(cost / budget − 1): nothing within the budget, and the excess share beyond."""
    return torch.relu(cost / budget - 1)
