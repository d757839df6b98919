"""Terms of the architecture's loss, each a scalar with a gradient by the parameters α."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from darts.relaxation import Architecture, choice_key
from darts.space import Costs


def beta_decay(architecture: Architecture) -> Tensor:
    """Return the mean over edges of logsumexp(α).

    It keeps a candidate from winning early by a large parameter (β-DARTS, Ye et al. 2022, arXiv
    2203.01665). Its factor grows from 0 during a search.
    """
    return torch.stack([logits.logsumexp(dim=0) for logits in architecture.edges.values()]).mean()


def entropy(architecture: Architecture) -> Tensor:
    """Return the mean entropy of the edges' relaxations, in nats.

    The smaller it is, the closer the supernet is to its derived network (MTL-NAS, Gao et al. 2020,
    arXiv 2003.14058); it is reduced late in a search. With sigmoid gates it is the mean over the
    gates.
    """
    per_edge = []
    for logits in architecture.edges.values():
        if architecture.relaxation.kind == "sigmoid":
            p, log_p, log_q = logits.sigmoid(), logsigmoid(logits), logsigmoid(-logits)
            per_edge.append(-(p * log_p + (1 - p) * log_q).mean())
        else:
            per_edge.append(-(logits.softmax(dim=0) * logits.log_softmax(dim=0)).sum())
    return torch.stack(per_edge).mean()


def expected_flows(architecture: Architecture) -> Tensor:
    """Return the expected number of flows divided by the number of edges, an L0 penalty.

    The loss has no gradient against a useless edge. Without this penalty ``none`` therefore wins an
    edge only by chance (L0 regularisation, Louizos et al. 2018, arXiv 1712.01312). With sigmoid
    gates an edge counts the sum of its gates, which can be above 1.
    """
    edges = architecture.space.edges
    shares = [architecture.shares(edge.key)[: len(edge.operations)].sum() for edge in edges]
    return torch.stack(shares).mean()


def expected_cost(architecture: Architecture, costs: Costs) -> Tensor:
    """Return the expected cost of all flows and choices under the architecture's probabilities.

    Args:
        architecture: The architecture.
        costs: Cost of operations and options in any unit; a missing entry costs 0.
    """
    candidates = {edge.key: edge.operations for edge in architecture.space.edges}
    candidates |= {choice_key(n): options for n, options in architecture.space.choices.items()}
    expected = []
    for key, names in candidates.items():
        # The share of ``none``, the last, costs nothing.
        shares = architecture.shares(key)[: len(names)]
        expected.append(shares @ shares.new_tensor([costs.get((key, name), 0.0) for name in names]))
    return torch.stack(expected).sum()


def over_budget(cost: Tensor, budget: float) -> Tensor:
    """Return relu(cost / budget − 1): 0 within the budget, the relative excess above it."""
    return torch.relu(cost / budget - 1)
