"""Relaxed choices: all options of a named attribute at once, weighed by architecture parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from darts.relaxation import Architecture


class MixedChoice(nn.Module):
    """All options of a choice, weighed; in the place of the one that a derived network has."""

    takes_offset_input = True

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

    def forward(self, x: Tensor, offset_input: Tensor | None = None) -> Tensor:
        """Mix the options' outputs.

        Args:
            x: (N, C, H, W), the input of every option.
            offset_input: (N, C, H, W), the second input of options that take one
                (``takes_offset_input``).
        """
        architecture = self._architecture[0]
        weights = architecture.choice_weights(self.name)
        hard = architecture.relaxation.kind == "gumbel"
        mixed = torch.zeros_like(x)
        for weight, option in zip(weights, self.options.values(), strict=True):
            # What was not drawn is not computed.
            if not hard or weight != 0:
                takes_two = getattr(option, "takes_offset_input", False)
                output = option(x, offset_input) if takes_two else option(x)
                mixed = mixed + weight * output
        return mixed
