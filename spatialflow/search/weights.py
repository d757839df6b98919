"""Weights between a supernet and the network of one of its genotypes."""

from __future__ import annotations

import logging
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from darts.choice import MixedChoice
from darts.genotype import Genotype
from darts.inheritance import inherited, warm_start
from darts.relaxation import Architecture, MixedEdge
from spatialflow.config import genotype_of
from spatialflow.engine.checkpoint import Checkpointer
from spatialflow.meta_arch import SpatialFlow

logger = logging.getLogger(__name__)

APART = ("flow_graph.flows.", "stuff_head.attention.", "architecture.")
"""Parts whose weights a supernet has under other names than a derived network."""


def network(cfg: CfgNode, genotype: str) -> SpatialFlow:
    """Build the network of a genotype, on the CPU, with everything else as in a search.

    Args:
        cfg: Of a search.
        genotype: Name or path.
    """
    clone = cfg.clone()
    clone.defrost()
    clone.SEARCH.ENABLED = False
    clone.MODEL.SPATIALFLOW.GENOTYPE = genotype
    clone.MODEL.DEVICE = "cpu"
    model: SpatialFlow = build_model(clone)
    return model


def architecture_of(supernet: SpatialFlow) -> Architecture:
    """Return the architecture parameters of a supernet."""
    assert supernet.architecture is not None
    return supernet.architecture


def _mixed(supernet: SpatialFlow, key: str) -> MixedEdge:
    found = supernet.flow_graph.flows[key]
    assert isinstance(found, MixedEdge)
    return found


def inherit(cfg: CfgNode, supernet: SpatialFlow, genotype: Path) -> SpatialFlow:
    """Return the network of a genotype with a supernet's weights.

    It computes what the supernet does with one-hot architecture parameters.

    Args:
        cfg: Of the search.
        supernet: Trained.
        genotype: Path of a point of its space.
    """
    derived = network(cfg, str(genotype))
    _copy_shared(supernet, derived)
    for flow in Genotype.load(genotype).flows:
        state = inherited(_mixed(supernet, flow.key), flow.operation)
        derived.flow_graph.flows[flow.key].load_state_dict(state)
    choices = Genotype.load(genotype).choices
    for block, site in _blocks(derived, supernet):
        source = site.options[choices[site.name]] if isinstance(site, MixedChoice) else site
        block.load_state_dict(source.state_dict())
    return derived


def _blocks(one: SpatialFlow, other: SpatialFlow) -> list[tuple[nn.Module, nn.Module]]:
    """Return the blocks of attention of two networks, site by site."""
    sites = one.stuff_head.attention
    return [(block, other.stuff_head.attention[site]) for site, block in sites.items()]


def start_from(cfg: CfgNode, supernet: SpatialFlow) -> None:
    """Make a supernet compute what the network of ``SEARCH.WEIGHTS`` does.

    Raises:
        CheckpointError: If the checkpoint is not one of ``MODEL.SPATIALFLOW.GENOTYPE``.
        ValueError: If the genotype is no point of the space.
    """
    name = cfg.MODEL.SPATIALFLOW.GENOTYPE
    trained = network(cfg, name)
    # In eval mode weights of other flows are refused.
    Checkpointer(trained.eval(), save_to_disk=False).load(cfg.SEARCH.WEIGHTS)
    operations = {flow.key: flow.operation for flow in genotype_of(cfg).flows}
    _copy_shared(trained, supernet)
    for edge in architecture_of(supernet).space.edges:
        known = edge.key in operations
        state = trained.flow_graph.flows[edge.key].state_dict() if known else {}
        warm_start(_mixed(supernet, edge.key), operations.get(edge.key), state)
    choices = genotype_of(cfg).choices
    for block, site in _blocks(trained, supernet):
        target = (
            site.options[choices.get(site.name, "none")] if isinstance(site, MixedChoice) else site
        )
        target.load_state_dict(block.state_dict())
    logger.info("the supernet starts from %s, a network of %s", cfg.SEARCH.WEIGHTS, name)


def _copy_shared(source: nn.Module, target: nn.Module) -> None:
    """Copy everything that both have under one name."""
    state = {k: v for k, v in source.state_dict().items() if not k.startswith(APART)}
    training = target.training
    result = target.train().load_state_dict(state, strict=False)
    target.train(training)
    missing = [key for key in result.missing_keys if not key.startswith(APART)]
    assert not missing, missing
    assert not result.unexpected_keys, result.unexpected_keys
