"""Relaxed choices: all options of a named attribute at once, weighed by architecture parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from darts.relaxation import Architecture


class MixedChoice(nn.Module):
    """All options of a choice, weighed; in the place of the one that a derived network has."""

    steered = True

    def __init__(
        self, name: str, options: Mapping[str, nn.Module], architecture: Architecture
    ) -> None:
        """Put the options side by side.

        Args:
            name: Of the choice, one of the space's.
            options: For each option, in the space's order, a module that keeps shapes.
            architecture: What weighs them.

        Raises:
            ValueError: If the options are not the space's.
        """
        super().__init__()
        expected = architecture.space.choices.get(name)
        if expected != tuple(options):
            raise ValueError(f"choice {name!r}: options {list(options)} given, {expected} expected")
        self.name = name
        self.options = nn.ModuleDict(options)
        # Not a sub-module: the parameters are the architecture's, and no weights of this choice.
        self._architecture = [architecture]

    def forward(self, x: Tensor, steering: Tensor | None = None) -> Tensor:
        """Mix the options' outputs.

        Args:
            x: What all options take.
            steering: What those take beside it that have a ``steered`` attribute.
        """
        architecture = self._architecture[0]
        weights = architecture.choice_weights(self.name)
        hard = architecture.relaxing.kind == "gumbel"
        mixed = torch.zeros_like(x)
        for weight, option in zip(weights, self.options.values(), strict=True):
            # What was not drawn is not computed.
            if not hard or weight != 0:
                output = option(x, steering) if hasattr(option, "steered") else option(x)
                mixed = mixed + weight * output
        return mixed
