"""Architecture parameters, and how they become weights of candidates.

O operations of an edge.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from darts.genotype import Genotype
from darts.space import Edge, SearchSpace, SpaceError

KINDS = ("softmax", "sigmoid", "gumbel")
EDGE_WEIGHTS = ("none", "independent", "softmax")
CERTAIN = 50.0
"""Logit that makes a relaxation discrete to the precision of float32."""


@dataclass(frozen=True, slots=True)
class Relaxation:
    """How architecture parameters become weights.

    Attributes:
        kind: ``softmax``: the candidates and ``none`` share a weight of 1 (DARTS, Liu et al. 2019,
            arXiv 1806.09055, eq. 2). ``sigmoid``: each candidate has a gate of its own, so that all
            may be absent (FairDARTS, Chu et al. 2020, arXiv 1911.12126). ``gumbel``: each step
            draws one candidate or ``none``, with a straight-through gradient (GDAS, Dong and Yang
            2019, arXiv 1910.04465).
        edge_weights: Second weight of each edge: ``none``; ``independent``, a gate per edge; or
            ``softmax``, a softmax over the edges of a target times their number. PC-DARTS (Xu et
            al. 2020, arXiv 1907.05737) uses a softmax that sums to 1. Every such weight is 1 at the
            start and in a genotype.
        partial_channels: Number K: one channel of K passes through the candidates, the others carry
            nothing. In PC-DARTS the others bypass the candidates; here a bypass is an edge.
        initial_std: Standard deviation of the architecture parameters at the start.

    Raises:
        SpaceError: If a name is unknown or ``partial_channels`` is below 1.
    """

    kind: str = "softmax"
    edge_weights: str = "none"
    partial_channels: int = 1
    initial_std: float = 1e-3

    def __post_init__(self) -> None:
        for what, given, known in (
            ("relaxation", self.kind, KINDS),
            ("edge weights", self.edge_weights, EDGE_WEIGHTS),
        ):
            if given not in known:
                raise SpaceError(f"{what}: {given!r} given, one of {known} expected")
        if self.partial_channels < 1:
            raise SpaceError(f"partial channels: {self.partial_channels} given, 1 or more expected")


class Architecture(nn.Module):
    """Architecture parameters α of a search space, by the names of its edges and choices.

    Attributes:
        space: The search space.
        relaxation: How parameters become weights.
        edges: Key of an edge → logits (O + 1,), that of ``none`` last. With sigmoid gates (O,): an
            edge is absent when all its gates are closed.
        choices: Key of a choice (:func:`choice_key`) → one logit per option.
        edge_gates: Key of an edge → logit () of the edge's second weight; empty without such
            weights.
        temperature: Divisor of the logits in softmax, sigmoid and Gumbel draws.
    """

    def __init__(self, space: SearchSpace, relaxation: Relaxation | None = None) -> None:
        super().__init__()
        self.space = space
        self.relaxation = relaxation or Relaxation()
        none = 0 if self.relaxation.kind == "sigmoid" else 1
        sizes = {edge.key: len(edge.operations) + none for edge in space.edges}
        self.edges = nn.ParameterDict({key: self._start(size) for key, size in sizes.items()})
        self.choices = nn.ParameterDict(
            {choice_key(name): self._start(len(options)) for name, options in space.choices.items()}
        )
        self.edge_gates = nn.ParameterDict(
            {key: nn.Parameter(torch.zeros(())) for key in sizes}
            if self.relaxation.edge_weights != "none"
            else {}
        )
        self.temperature = 1.0
        self._noise: dict[str, Tensor] = {}
        self._rivals = {
            edge.key: [other.key for other in space.edges if other.flow.target == edge.flow.target]
            for edge in space.edges
        }

    def _start(self, size: int) -> nn.Parameter:
        return nn.Parameter(self.relaxation.initial_std * torch.randn(size))

    def draw(self) -> None:
        """Draw the noise of the Gumbel relaxation; all weights use it until the next call.

        A supernet calls it in each forward pass in training. The evaluations of one second-order
        gradient draw the same noise, since :class:`darts.Architect` rewinds the random generators.
        """
        if self.relaxation.kind == "gumbel":
            for key, logits in self._logits():
                uniform = torch.rand_like(logits).clamp(1e-10, 1 - 1e-7)
                self._noise[key] = -torch.log(-torch.log(uniform))

    def _logits(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.edges.items()
        yield from self.choices.items()

    def edge_weights(self, edge: Edge) -> Tensor:
        """Return the weights (O,) of an edge's operations, without the weight of ``none``."""
        weights = self._weights(edge.key, self.edges[edge.key])[: len(edge.operations)]
        return weights * self._edge_weight(edge)

    def _edge_weight(self, edge: Edge) -> Tensor | float:
        """Return the second weight of an edge, see ``Relaxation.edge_weights``."""
        if self.relaxation.edge_weights == "none":
            return 1.0
        if self.relaxation.edge_weights == "independent":
            return 2 * torch.sigmoid(self.edge_gates[edge.key])
        rivals = self._rivals[edge.key]
        shares = torch.stack([self.edge_gates[key] for key in rivals]).softmax(dim=0)
        return len(rivals) * shares[rivals.index(edge.key)]

    def choice_weights(self, name: str) -> Tensor:
        """Return the weights of a choice's options, in the order of the space; their sum is 1."""
        key = choice_key(name)
        logits: Tensor = self.choices[key]
        # The options of a choice exclude each other, so sigmoid gates do not apply to them.
        return self._drawn(key, logits) if self.relaxation.kind == "gumbel" else self._soft(logits)

    def _weights(self, key: str, logits: Tensor) -> Tensor:
        match self.relaxation.kind:
            case "sigmoid":
                return torch.sigmoid(logits / self.temperature)
            case "gumbel":
                return self._drawn(key, logits)
            case _:
                return self._soft(logits)

    def _soft(self, logits: Tensor) -> Tensor:
        return (logits / self.temperature).softmax(dim=0)

    def _drawn(self, key: str, logits: Tensor) -> Tensor:
        if self.training and key not in self._noise:
            raise RuntimeError("draw() has to be called before weights are asked for")
        # In eval mode take the likeliest candidate.
        soft = self._soft(logits + self._noise[key] if self.training else logits)
        hard = F.one_hot(soft.argmax(), len(soft)).to(soft)
        return hard + (soft - soft.detach())

    def shares(self, key: str) -> Tensor:
        """Return the softmax or sigmoid of the logits of an edge or choice, with a gradient.

        Args:
            key: Key of an edge, or of a choice (:func:`choice_key`).

        Returns:
            For an edge (O + 1,), that of ``none`` last, or (O,) with sigmoid gates; for a choice
            one number per option.
        """
        logits: Tensor = self.choices[key] if key in self.choices else self.edges[key]
        gates = self.relaxation.kind == "sigmoid" and key in self.edges
        return logits.sigmoid() if gates else logits.softmax(dim=0)

    @torch.no_grad()
    def probabilities(self, key: str) -> Tensor:
        """Return :meth:`shares` without a gradient, for the rules that derive a genotype."""
        return self.shares(key)

    @torch.no_grad()
    def strengths(self, edge: Edge) -> Tensor:
        """Return the probabilities (O,) of an edge's operations, times the edge's second weight."""
        return self.probabilities(edge.key)[: len(edge.operations)] * self._edge_weight(edge)

    def strongest(self, edge: Edge) -> tuple[str, float]:
        """Return an edge's strongest operation, and the probability that the edge has any flow.

        This probability is the sum over the operations, or the largest gate with sigmoid gates.
        """
        own = self.strengths(edge)
        presence = own.max() if self.relaxation.kind == "sigmoid" else own.sum()
        return edge.operations[int(own.argmax())], float(presence)

    @torch.no_grad()
    def favour(self, genotype: Genotype, logit: float) -> None:
        """Add a number to the logits of a genotype's flows, as a prior.

        Args:
            genotype: The flows to prefer.
            logit: The number.

        Raises:
            ValueError: If the genotype is not in the space.
        """
        self.space.check(genotype)
        flows = {flow.edge: flow for flow in genotype.flows}
        for edge in self.space.edges:
            if edge.flow.edge in flows:
                position = edge.operations.index(flows[edge.flow.edge].operation)
                self.edges[edge.key][position] += logit

    @torch.no_grad()
    def set_genotype(self, genotype: Genotype) -> None:
        """Set all parameters so that the relaxation equals a genotype, to the precision of float32.

        The second weight of every edge becomes 1.

        Raises:
            ValueError: If the genotype is not in the space.
        """
        self.space.check(genotype)
        flows = {flow.edge: flow for flow in genotype.flows}
        for edge in self.space.edges:
            logits: Tensor = self.edges[edge.key].fill_(-CERTAIN)
            flow = flows.get(edge.flow.edge)
            if flow is not None:
                logits[edge.operations.index(flow.operation)] = CERTAIN
            elif len(logits) > len(edge.operations):
                logits[-1] = CERTAIN
        for gate in self.edge_gates.values():
            gate.zero_()
        for name, options in self.space.choices.items():
            option = options.index(genotype.choices.get(name, options[0]))
            self.choices[choice_key(name)].fill_(-CERTAIN)[option] = CERTAIN

    @contextlib.contextmanager
    def as_genotype(self, genotype: Genotype) -> Iterator[None]:
        """Set a genotype for the body of a ``with`` statement, and restore the parameters after.

        Example::

            with architecture.as_genotype(genotype):
                loss = supernet(batch)  # the loss of this genotype

        Raises:
            ValueError: If the genotype is not in the space.
        """
        state = {name: value.clone() for name, value in self.state_dict().items()}
        try:
            self.set_genotype(genotype)
            yield
        finally:
            self.load_state_dict(state)


def choice_key(name: str) -> str:
    """Return the name of a choice's parameters: PyTorch allows no dots, so they become ``_``."""
    return name.replace(".", "_")


def architecture_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the architecture parameters of a model by their names in it.

    Raises:
        ValueError: If the model has no :class:`Architecture`.
    """
    found: Mapping[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, Architecture)
    }
    if not found:
        raise ValueError("the model has no architecture parameters")
    return {
        f"{prefix}.{name}" if prefix else name: parameter
        for prefix, module in found.items()
        for name, parameter in module.named_parameters()
    }
