"""Copying of weights between a supernet and the network of one of its genotypes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from darts.genotype import Genotype
from darts.inheritance import inherited, warm_start
from darts.mixed import MixedChoice, MixedEdge
from spatialflow.config import genotype_of
from spatialflow.config.genotypes import pooled_convs
from spatialflow.engine.checkpoint import Checkpointer
from spatialflow.engine.preparation import for_checkpoint
from spatialflow.modeling.meta_arch import SpatialFlow
from spatialflow.modeling.topology import default_option
from spatialflow.search.supernet import SpatialFlowSupernet
from spatialflow.utils.errors import ConfigError

logger = logging.getLogger(__name__)

DIFFERENT_PARTS = ("flow_graph.", "stuff_head.attention.", "architecture.")
"""Prefixes of the parameters whose names differ between a supernet and a derived network."""


def build_network(cfg: CfgNode, genotype: str) -> SpatialFlow:
    """Build the network of a genotype on the CPU, with all other keys of a search's config.

    All its weights are to be replaced.

    Args:
        cfg: Config of a search.
        genotype: Name or path of the genotype.
    """
    clone = for_checkpoint(cfg)
    clone.MODEL.META_ARCHITECTURE = "SpatialFlow"
    clone.MODEL.SPATIALFLOW.GENOTYPE = genotype
    clone.MODEL.DEVICE = "cpu"
    model: SpatialFlow = build_model(clone)
    return model


def _mixed(supernet: SpatialFlowSupernet, key: str) -> MixedEdge:
    found = supernet.flow_graph.flows[key]
    assert isinstance(found, MixedEdge)
    return found


def inherit(
    cfg: CfgNode, supernet: SpatialFlowSupernet, genotype: Genotype, path: Path
) -> SpatialFlow:
    """Return the network of a genotype with a supernet's weights.

    Its outputs equal those of the supernet with one-hot architecture parameters.

    Args:
        cfg: Config of the search.
        supernet: Trained supernet.
        genotype: Genotype of the supernet's space.
        path: File of that genotype.
    """
    derived = build_network(cfg, str(path))
    _copy_shared(supernet, derived)
    for flow in genotype.flows:
        state = inherited(_mixed(supernet, flow.key), flow.operation)
        derived.flow_graph.flows[flow.key].load_state_dict(state)
    for block, chosen in _chosen(derived, supernet, genotype.choices):
        block.load_state_dict(chosen.state_dict())
    return derived


def _chosen(
    network: SpatialFlow, supernet: SpatialFlowSupernet, choices: Mapping[str, str]
) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield each node and attention block of a network, with its counterpart in a supernet."""
    for network_modules, supernet_modules in (
        (network.flow_graph.nodes, supernet.flow_graph.nodes),
        (network.stuff_head.attention, supernet.stuff_head.attention),
    ):
        for key, block in network_modules.items():
            found = supernet_modules[key]
            if isinstance(found, MixedChoice):
                option = choices.get(found.name, default_option(found.name))
                if option not in found.options:
                    raise ConfigError(
                        f"SEARCH.SPACE.CHOICES: {found.name} without {option!r}, which the network "
                        f"has; {option!r} among its options expected"
                    )
                found = found.options[option]
            yield block, found


def start_from(cfg: CfgNode, supernet: SpatialFlowSupernet) -> None:
    """Initialise a supernet so that its outputs equal those of the network of ``SEARCH.WEIGHTS``.

    Args:
        cfg: Config of the search, whose genotype is that of the network.
        supernet: Supernet to be changed in place.

    Raises:
        CheckpointError: If the checkpoint does not fit ``MODEL.SPATIALFLOW.GENOTYPE``.
        ConfigError: If the genotype is not in the search space.
    """
    name, genotype = cfg.MODEL.SPATIALFLOW.GENOTYPE, genotype_of(cfg)
    searched = supernet.architecture.space.choices
    pooled = pooled_convs(cfg)
    for choice, option in genotype.choices.items():
        given = pooled.get(choice, default_option(choice))
        if choice not in searched and option != given:
            raise ConfigError(
                f"SEARCH.WEIGHTS: the genotype {name!r} has {choice!r}: {option!r}, which is not "
                "searched; SEARCH.SPACE.CHOICES with it expected"
            )
    trained = build_network(cfg, name)
    # In eval mode weights of other flows are refused.
    check = cfg.MODEL.SPATIALFLOW.CHECK_WEIGHTS
    checkpointer = Checkpointer(trained.eval(), save_to_disk=False, check_weights=check)
    checkpointer.load(cfg.SEARCH.WEIGHTS)
    operations = {flow.key: flow.operation for flow in genotype.flows}
    _copy_shared(trained, supernet)
    for edge in supernet.architecture.space.edges:
        known = edge.key in operations
        state = trained.flow_graph.flows[edge.key].state_dict() if known else {}
        warm_start(_mixed(supernet, edge.key), operations.get(edge.key), state)
    for block, chosen in _chosen(trained, supernet, genotype.choices):
        chosen.load_state_dict(block.state_dict())
    logger.info("the supernet starts from %s, a network of %s", cfg.SEARCH.WEIGHTS, name)


def _copy_shared(source: nn.Module, target: nn.Module) -> None:
    """Copy the tensors that have the same name in both modules."""
    state = {k: v for k, v in source.state_dict().items() if not k.startswith(DIFFERENT_PARTS)}
    training = target.training
    result = target.train().load_state_dict(state, strict=False)
    target.train(training)
    missing = [key for key in result.missing_keys if not key.startswith(DIFFERENT_PARTS)]
    assert not missing, missing
    assert not result.unexpected_keys, result.unexpected_keys
