"""Relaxed edges: all candidates of an edge at once, weighed by architecture parameters.

E edges, O operations of an edge; N images, C channels, H and W the size of a pyramid level.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from darts.genotype import Genotype
from darts.operations import build_operation, kernel_of, reference_scale
from darts.space import Edge, SearchSpace

KINDS = ("softmax", "sigmoid", "gumbel")
EDGE_WEIGHTS = ("none", "independent", "softmax")
# Logits that make a relaxation discrete to float32's precision.
CERTAIN = 50.0


@dataclass(frozen=True, slots=True)
class Relaxation:
    """How architecture parameters become weights.

    Attributes:
        kind: ``softmax``: the candidates and ``none`` share a weight of 1 (Liu et al. 2019, eq.
            2). ``sigmoid``: each candidate has a gate of its own, so all may be absent (Chu et al.
            2020, FairDARTS). ``gumbel``: one candidate or ``none`` is drawn in each step,
            with a straight-through gradient (Dong and Yang 2019, GDAS).
        edge_weights: A further weight of each edge: ``none``; ``independent``, a gate; or
            ``softmax`` over the edges of a target, times their number (Xu et al. 2020, PC-DARTS,
            where such weights sum to 1). All are 1 at the start, and in a genotype.
        partial_channels: One channel of so many passes through the candidates; the others carry
            nothing (PC-DARTS, whose bypass would be an edge of its own here).
        initial_std: Standard deviation of the architecture parameters at the start.
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
                raise ValueError(f"{what}: {given!r} given, one of {known} expected")
        if self.partial_channels < 1:
            raise ValueError(f"partial channels: {self.partial_channels} given, 1 or more expected")


class Architecture(nn.Module):
    """The architecture parameters of a space, by the names of its edges and choices.

    The last entry of an edge's parameters is that of ``none``, except with sigmoid gates, where
    an edge is absent when all its gates are shut. A choice has one entry an option.
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
        """Of the softmax and of the Gumbel draws."""
        self._noise: dict[str, Tensor] = {}
        self._rivals = {
            edge.key: [other.key for other in space.edges if other.flow.target == edge.flow.target]
            for edge in space.edges
        }

    def _start(self, size: int) -> nn.Parameter:
        return nn.Parameter(self.relaxation.initial_std * torch.randn(size))

    def draw(self) -> None:
        """Draw the noise of the Gumbel relaxation; it stays until the next call.

        A weight is asked for once a pyramid level, and twice or more in a second-order step: all
        have to see the same draw.
        """
        if self.relaxation.kind == "gumbel":
            for key, logits in self._logits():
                uniform = torch.rand_like(logits).clamp(1e-10, 1 - 1e-7)
                self._noise[key] = -torch.log(-torch.log(uniform))

    def _logits(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.edges.items()
        yield from self.choices.items()

    def edge_weights(self, edge: Edge) -> Tensor:
        """Return the weights of an edge's operations, (O,), without that of ``none``."""
        weights = self._weights(edge.key, self.edges[edge.key])[: len(edge.operations)]
        return weights * self._edge_weight(edge)

    def _edge_weight(self, edge: Edge) -> Tensor | float:
        """Return the further weight of an edge."""
        if self.relaxation.edge_weights == "none":
            return 1.0
        if self.relaxation.edge_weights == "independent":
            return 2 * torch.sigmoid(self.edge_gates[edge.key])
        rivals = self._rivals[edge.key]
        shares = torch.stack([self.edge_gates[key] for key in rivals]).softmax(dim=0)
        return len(rivals) * shares[rivals.index(edge.key)]

    def choice_weights(self, name: str) -> Tensor:
        """Return the weights of a choice's options, which sum to 1."""
        key = choice_key(name)
        logits: Tensor = self.choices[key]
        # Options exclude each other, also where operations do not.
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
        # Outside of training the likeliest candidate is taken.
        soft = self._soft(logits + self._noise[key] if self.training else logits)
        hard = F.one_hot(soft.argmax(), len(soft)).to(soft)
        return hard + (soft - soft.detach())

    def shares(self, key: str) -> Tensor:
        """Return the softmax or sigmoid of an edge's or choice's logits, with a gradient.

        Args:
            key: Of an edge, or of a choice by :func:`choice_key`.

        Returns:
            (O + 1,) with that of ``none`` last, (O,) with sigmoid gates, or one of each option.
        """
        logits: Tensor = self.choices[key] if key in self.choices else self.edges[key]
        gates = self.relaxation.kind == "sigmoid" and key in self.edges
        return logits.sigmoid() if gates else logits.softmax(dim=0)

    @torch.no_grad()
    def probabilities(self, key: str) -> Tensor:
        """Return :meth:`shares` without a gradient: what a derivation compares."""
        return self.shares(key)

    @torch.no_grad()
    def strengths(self, edge: Edge) -> Tensor:
        """Return the probabilities of an edge's operations, (O,), times the edge's own weight."""
        return self.probabilities(edge.key)[: len(edge.operations)] * self._edge_weight(edge)

    def carrier(self, edge: Edge) -> tuple[str, float]:
        """Return an edge's strongest operation, and what all have together: how likely a flow is.

        With sigmoid gates that is the widest of them.
        """
        own = self.strengths(edge)
        presence = own.max() if self.relaxation.kind == "sigmoid" else own.sum()
        return edge.operations[int(own.argmax())], float(presence)

    @torch.no_grad()
    def favour(self, genotype: Genotype, logit: float) -> None:
        """Add a logit to the parameters of a genotype's flows: a prior.

        Raises:
            ValueError: If the genotype is no point of the space.
        """
        self.space.check(genotype)
        flows = {flow.edge: flow for flow in genotype.flows}
        for edge in self.space.edges:
            if edge.flow.edge in flows:
                position = edge.operations.index(flows[edge.flow.edge].operation)
                self.edges[edge.key][position] += logit

    @torch.no_grad()
    def set_genotype(self, genotype: Genotype) -> None:
        """Make the relaxation that very genotype, to float32's precision; edges then weigh 1.

        Raises:
            ValueError: If the genotype is no point of the space.
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
        """Be that very genotype inside, and what it was before again afterwards.

        Raises:
            ValueError: As :meth:`set_genotype`.
        """
        state = {name: value.clone() for name, value in self.state_dict().items()}
        try:
            self.set_genotype(genotype)
            yield
        finally:
            self.load_state_dict(state)


class MixedEdge(nn.Module):
    """All operations of an edge, weighed; in the place of the one that a derived network has.

    Candidates leave at comparable scale: each output is multiplied by a constant of its operation,
    which a derived network folds into the weights of its last layer.
    """

    def __init__(self, edge: Edge, channels: int, architecture: Architecture) -> None:
        super().__init__()
        partial = architecture.relaxation.partial_channels
        if channels % partial:
            raise ValueError(f"partial channels: {channels} channels in {partial} parts given")
        self.edge = edge
        self.channels = channels // partial
        gate = edge.flow.port == "gate"
        self.operations = nn.ModuleDict(
            {name: build_operation(name, self.channels, zero_init=gate) for name in edge.operations}
        )
        # A gate's operations start at zero, at one scale.
        self.scales = {name: 1.0 if gate else reference_scale(name) for name in edge.operations}
        self.auxiliary_skip = 0.0
        """Share of the source that is added, to keep identity from winning as a mere shortcut
        (Chu et al. 2021, DARTS-); faded to 0 by the end of a search."""
        # Not a sub-module: the parameters are the architecture's, and no weights of this edge.
        self._architecture = [architecture]

    @property
    def architecture(self) -> Architecture:
        """What weighs the operations."""
        return self._architecture[0]

    def forward(self, x: Tensor) -> Tensor:
        """Mix the operations, (N, C, H, W) → (N, C, H, W)."""
        return self.forward_levels({"": x})[""]

    def forward_levels(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Mix the operations on several maps, each (N, C, H, W) → (N, C, H, W).

        A sum of convolutions is a convolution with the sum of their kernels, so all linear
        candidates cost what the largest costs, and none of their outputs is kept for the backward
        pass. What was drawn alone, by Gumbel, is computed alone.
        """
        weights = self.architecture.edge_weights(self.edge)
        shares = {name: weights[i] * self.scales[name] for i, name in enumerate(self.operations)}
        if self.architecture.relaxation.kind == "gumbel":
            drawn = {n: s for (n, s), w in zip(shares.items(), weights, strict=True) if w != 0}
            return {key: self._mix(x, [], drawn) for key, x in maps.items()}
        convolutions, others = self._convolutions(shares)
        return {key: self._mix(x, convolutions, others) for key, x in maps.items()}

    def _convolutions(
        self, shares: Mapping[str, Tensor]
    ) -> tuple[list[tuple[int, Tensor, Tensor | None]], dict[str, Tensor]]:
        """Return dilation, kernel and bias of the linear candidates together, and the others."""
        found: dict[int, tuple[Tensor, Tensor | None]] = {}
        others = {}
        for name, share in shares.items():
            linear = kernel_of(self.operations[name], self.channels, like=share)
            if linear is None:
                others[name] = share
                continue
            dilation, kernel, bias = linear
            kernel = share * kernel
            bias = None if bias is None else share * bias
            if dilation in found:
                before, bias_before = found[dilation]
                kernel = _sum_of_kernels(before, kernel)
                if bias is None or bias_before is None:
                    bias = bias_before if bias is None else bias
                else:
                    bias = bias + bias_before
            found[dilation] = (kernel, bias)
        return [(dilation, *pair) for dilation, pair in found.items()], others

    def _mix(
        self,
        x: Tensor,
        convolutions: Sequence[tuple[int, Tensor, Tensor | None]],
        others: Mapping[str, Tensor],
    ) -> Tensor:
        part = x[:, : self.channels]
        mixed = self.auxiliary_skip * part
        for dilation, kernel, bias in convolutions:
            padding = dilation * (kernel.shape[-1] // 2)
            mixed = mixed + F.conv2d(part, kernel, bias, padding=padding, dilation=dilation)
        for name, share in others.items():
            mixed = mixed + share * self.operations[name](part)
        return F.pad(mixed, (0, 0, 0, 0, 0, x.shape[1] - self.channels))


def _sum_of_kernels(one: Tensor, other: Tensor) -> Tensor:
    """Add kernels of odd sizes, the smaller in the middle of the larger."""
    margin = (one.shape[-1] - other.shape[-1]) // 2
    if margin < 0:
        return _sum_of_kernels(other, one)
    return one + F.pad(other, [margin] * 4)


def choice_key(name: str) -> str:
    """Return a choice's name as parameters have it: without dots."""
    return name.replace(".", "_")


def architecture_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the architecture parameters of a model by name, and none of its weights.

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
