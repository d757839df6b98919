"""Weights between a relaxed edge and the one operation that a network has in its place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from darts.operations import ConvOperation, SeparableConv
from darts.relaxation import MixedEdge


def inherited(mixed: MixedEdge, operation: str) -> dict[str, Tensor]:
    """Return the weights with which an operation alone computes what it does in the supernet.

    That is at the full weight that a derived network gives it; the constant by which a supernet
    multiplies its output is folded into its last layer.

    Args:
        mixed: The relaxed edge.
        operation: One of its candidates.

    Returns:
        A state dict of ``build_operation(operation, C)``.

    Raises:
        ValueError: If the candidates see only a part of the channels.
    """
    _require_all_channels(mixed)
    module = mixed.operations[operation]
    state = {name: value.detach().clone() for name, value in module.state_dict().items()}
    for name in _of_last_layer(module):
        state[name] *= mixed.scales[operation]
    return state


@torch.no_grad()
def warm_start(mixed: MixedEdge, operation: str | None, state: Mapping[str, Tensor]) -> None:
    """Make a relaxed edge compute what a trained operation does, at its weights as they are.

    The other candidates leave zero, as far as they can: identity and the self-gated sources have
    no layer that could be zero.

    Args:
        mixed: The relaxed edge.
        operation: The trained operation, None where the network had no flow.
        state: Its weights.

    Raises:
        ValueError: If the candidates see only a part of the channels, or the operation is none of
            them.
    """
    _require_all_channels(mixed)
    if operation is not None and operation not in mixed.operations:
        raise ValueError(
            f"{mixed.edge}: {operation} has been trained, and is none of the candidates "
            f"{list(mixed.operations)}"
        )
    for name, module in mixed.operations.items():
        own = dict(module.named_parameters())
        if name != operation:
            for key in _of_last_layer(module):
                own[key].zero_()
            continue
        module.load_state_dict(dict(state))
        for key in _of_last_layer(module):
            own[key].div_(mixed.scales[name] * _weight(mixed, name))


def _weight(mixed: MixedEdge, operation: str) -> float:
    """Return by what an operation is weighed now; with Gumbel draws, by what it is when drawn."""
    if mixed.architecture.relaxation.kind == "gumbel":
        return 1.0
    position = list(mixed.operations).index(operation)
    return float(mixed.architecture.edge_weights(mixed.edge)[position])


def _of_last_layer(module: nn.Module) -> list[str]:
    """Return the parameters of the layer that writes an operation's output, if it is linear."""
    if not isinstance(module, ConvOperation | SeparableConv):
        return []
    last = {id(parameter) for parameter in module.last.parameters()}
    return [name for name, parameter in module.named_parameters() if id(parameter) in last]


def _require_all_channels(mixed: MixedEdge) -> None:
    partial = mixed.architecture.relaxation.partial_channels
    if partial != 1:
        raise ValueError(
            f"weights cannot pass between a network and candidates on one channel of {partial}"
        )
