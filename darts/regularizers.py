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
        if architecture.relaxation.kind == "sigmoid":
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
    edges = architecture.space.edges
    shares = [architecture.shares(edge.key)[: len(edge.operations)].sum() for edge in edges]
    return torch.stack(shares).mean()


def expected_cost(architecture: Architecture, costs: Costs) -> Tensor:
    """Cost of all flows and choices, each weighed by the probability of operation or option.

    Args:
        architecture: Of the space.
        costs: In any unit; what is absent costs nothing.
    """
    candidates = {edge.key: edge.operations for edge in architecture.space.edges}
    candidates |= {choice_key(n): options for n, options in architecture.space.choices.items()}
    expected = []
    for key, names in candidates.items():
        # Without that of ``none``, which costs nothing.
        shares = architecture.shares(key)[: len(names)]
        expected.append(shares @ shares.new_tensor([costs.get((key, name), 0.0) for name in names]))
    return torch.stack(expected).sum()


def over_budget(cost: Tensor, budget: float) -> Tensor:
    """relu(cost / budget − 1): nothing within the budget, and the excess share beyond."""
    return torch.relu(cost / budget - 1)
