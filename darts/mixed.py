"""Modules of a supernet: all candidates of an edge or choice, weighed by the architecture.

O operations of an edge; N images, C channels, H and W the size of a pyramid level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from darts.operations import build_operation, kernel_of, reference_scale
from darts.relaxation import Architecture
from darts.space import Edge

Convolution = tuple[int, Tensor, Tensor | None]
"""Dilation, kernel (C, C, k, k) and bias (C,) or None."""


class _Mixed(nn.Module):
    """A module that reads its candidates' weights from a shared architecture.

    Attributes:
        architecture: The architecture; its parameters are not parameters of this module.
    """

    architecture: Architecture

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        # Plain assignment would register a sub-module: every mixed module would then have the
        # architecture's parameters in its state_dict().
        object.__setattr__(self, "architecture", architecture)


class MixedEdge(_Mixed):
    """All operations of an edge in one module; a derived network has one operation in its place.

    Each output is multiplied by a constant of its operation, so that all candidates start at a
    comparable scale. A derived network folds this constant into the weights of the last layer
    (:mod:`darts.inheritance`).

    Attributes:
        edge: The edge.
        channels: Number of channels that pass through the candidates.
        operations: The candidates by name.
        scales: Constant factor of each candidate's output, by name.
        auxiliary_skip: Share of the source that is added to the output, so that identity does not
            win as a mere shortcut (DARTS-, Chu et al. 2021, arXiv 2009.01027). It falls to 0 by
            the end of a search.
    """

    def __init__(self, edge: Edge, channels: int, architecture: Architecture) -> None:
        """Build the candidates.

        Args:
            edge: The edge, one of the architecture's space.
            channels: C of source and target.
            architecture: The weights of the candidates.

        Raises:
            ValueError: If C cannot be divided by the relaxation's ``partial_channels``.
        """
        super().__init__(architecture)
        partial = architecture.relaxation.partial_channels
        if channels % partial:
            raise ValueError(f"partial channels: {channels} channels in {partial} parts given")
        self.edge = edge
        self.channels = channels // partial
        gate = edge.flow.port == "gate"
        self.operations = nn.ModuleDict(
            {name: build_operation(name, self.channels, zero_init=gate) for name in edge.operations}
        )
        # All operations of a gate start at zero, so they have one scale already.
        self.scales = {name: 1.0 if gate else reference_scale(name) for name in edge.operations}
        self.auxiliary_skip = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Mix the operations, (N, C, H, W) → (N, C, H, W)."""
        return self.forward_levels({"": x})[""]

    def forward_levels(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Mix the operations on several maps.

        A weighted sum of convolutions is one convolution with the weighted sum of their kernels.
        All linear candidates together therefore cost as much as the largest of them, and the
        backward pass keeps none of their outputs. With Gumbel draws only the drawn operation runs.

        Args:
            maps: (N, C, H, W) by level.

        Returns:
            (N, C, H, W) by level, of the same sizes.
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
    ) -> tuple[list[Convolution], dict[str, Tensor]]:
        """Return one convolution per dilation for the linear candidates, and the others' shares."""
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
        self, x: Tensor, convolutions: Sequence[Convolution], others: Mapping[str, Tensor]
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
    """Add two kernels of odd sizes; the smaller lies in the middle of the larger."""
    margin = (one.shape[-1] - other.shape[-1]) // 2
    if margin < 0:
        return _sum_of_kernels(other, one)
    return one + F.pad(other, [margin] * 4)


class MixedChoice(_Mixed):
    """All options of a choice in one module; a derived network has one option in its place."""

    takes_offset_input = True

    def __init__(
        self, name: str, options: Mapping[str, nn.Module], architecture: Architecture
    ) -> None:
        """Keep the options.

        Args:
            name: Name of the choice in the architecture's space.
            options: Option → module (N, C, H, W) → (N, C, H, W), in the order of the space.
            architecture: The weights of the options.

        Raises:
            ValueError: If the options differ from those of the space.
        """
        super().__init__(architecture)
        expected = architecture.space.choices.get(name)
        if expected != tuple(options):
            raise ValueError(f"choice {name!r}: options {list(options)} given, {expected} expected")
        self.name = name
        self.options = nn.ModuleDict(options)

    def forward(self, x: Tensor, offset_input: Tensor | None = None) -> Tensor:
        """Mix the options' outputs.

        Args:
            x: (N, C, H, W), the input of every option.
            offset_input: (N, C, H, W), the second input of the options that take one
                (attribute ``takes_offset_input``).

        Returns:
            (N, C, H, W).
        """
        weights = self.architecture.choice_weights(self.name)
        hard = self.architecture.relaxation.kind == "gumbel"
        mixed = torch.zeros_like(x)
        for weight, option in zip(weights, self.options.values(), strict=True):
            # With Gumbel draws only the drawn option runs.
            if not hard or weight != 0:
                takes_two = getattr(option, "takes_offset_input", False)
                output = option(x, offset_input) if takes_two else option(x)
                mixed = mixed + weight * output
        return mixed
