"""Copy weights between a relaxed edge and the single operation of a derived network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from darts.genotype import GenotypeError
from darts.mixed import MixedEdge
from darts.operations import ConvOperation, SeparableConv


def inherited(mixed: MixedEdge, operation: str) -> dict[str, Tensor]:
    """Return weights with which an operation alone computes the same as in the supernet.

    "The same" means at an architecture weight of 1. The constant by which the supernet multiplies
    the output (``MixedEdge.scales``) is folded into the last layer.

    Args:
        mixed: The relaxed edge.
        operation: Name of the candidate.

    Returns:
        State dict of ``build_operation(operation, C)``.

    Raises:
        ValueError: If the relaxation has partial channels.
    """
    _require_all_channels(mixed)
    module = mixed.operations[operation]
    state = {name: value.detach().clone() for name, value in module.state_dict().items()}
    for name in _last_layer(module):
        state[name] *= mixed.scales[operation]
    return state


@torch.no_grad()
def warm_start(mixed: MixedEdge, operation: str | None, state: Mapping[str, Tensor]) -> None:
    """Make a relaxed edge compute the same as a trained operation, at its current parameters α.

    The last layer of every other candidate becomes zero. Identity and the self-gated sources have
    no such layer: they keep their output.

    Args:
        mixed: The relaxed edge; its weights are changed.
        operation: Name of the trained operation; None where the trained network has no flow.
        state: State dict of the trained operation.

    Raises:
        GenotypeError: If the operation is not a candidate.
        ValueError: If the relaxation has partial channels.
    """
    _require_all_channels(mixed)
    if operation is not None and operation not in mixed.operations:
        raise GenotypeError(
            f"{mixed.edge}: {operation} has been trained, and is none of the candidates "
            f"{list(mixed.operations)}"
        )
    for name, module in mixed.operations.items():
        own = dict(module.named_parameters())
        if name != operation:
            for key in _last_layer(module):
                own[key].zero_()
            continue
        module.load_state_dict(dict(state))
        for key in _last_layer(module):
            own[key].div_(mixed.scales[name] * _weight(mixed, name))


def _weight(mixed: MixedEdge, operation: str) -> float:
    """Return the current weight of an operation; with Gumbel draws, its weight when drawn."""
    if mixed.architecture.relaxation.kind == "gumbel":
        return 1.0
    position = list(mixed.operations).index(operation)
    return float(mixed.architecture.edge_weights(mixed.edge)[position])


def _last_layer(module: nn.Module) -> list[str]:
    """Return the names of the parameters of an operation's last layer, if the operation is linear.

    Only there can a factor of the output be folded into the weights.
    """
    if not isinstance(module, ConvOperation | SeparableConv):
        return []
    last = {id(parameter) for parameter in module.last.parameters()}
    return [name for name, parameter in module.named_parameters() if id(parameter) in last]


def _require_all_channels(mixed: MixedEdge) -> None:
    partial = mixed.architecture.relaxation.partial_channels
    if partial != 1:
        raise ValueError(
            f"partial channels: {partial} given, 1 expected to copy weights between a supernet and "
            "a network"
        )
