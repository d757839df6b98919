"""From a config to the arguments of the network's constructor."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from torch import nn

from darts.genotype import GenotypeError
from darts.space import SpaceError
from spatialflow.config.checks import check_config
from spatialflow.config.genotypes import genotype_of
from spatialflow.config.levels import has_own_backbone
from spatialflow.config.options import ATTENTION_SITES
from spatialflow.modeling.backbone import FeaturePyramid
from spatialflow.modeling.flow_graph import FlowGraph
from spatialflow.modeling.fusion import PanopticFusion
from spatialflow.modeling.heads import DenseBoxHead, ProposalMaskHead, RegionHead, StuffHead
from spatialflow.modeling.heads.attention import attention_channels, build_attention
from spatialflow.modeling.initialization import RandomTape
from spatialflow.modeling.layers.packed_conv import pack_convolutions
from spatialflow.modeling.layers.residual import PyramidResidual
from spatialflow.modeling.losses import LossNormalizer
from spatialflow.modeling.topology import topology_from_config
from spatialflow.utils.errors import CheckpointError, ConfigError
from spatialflow.utils.precision import amp_dtype


class FlowParts(NamedTuple):
    """The parts of the network that depend on a genotype, or on a search space.

    Attributes:
        modules: Argument of the network's constructor → module. ``flow_graph`` is one of them.
        attention: Site in the stuff head, ``levels`` or ``merged`` → its attention block.
    """

    modules: dict[str, nn.Module]
    attention: dict[str, nn.Module]


def network_parts(cfg: CfgNode, build_flow_parts: Callable[[CfgNode], FlowParts]) -> dict[str, Any]:
    """Build the arguments of :class:`spatialflow.SpatialFlow` from a config.

    With a ``SEED`` of 0 or more, the initial value of a parameter is a function of the seed and of
    the parameter's name. Networks with different flows then start from the same branches, heads and
    pyramid. Pretrained weights stay as they are.

    Args:
        cfg: A config with SpatialFlow's keys.
        build_flow_parts: Function that builds flow graph and attention from the config.

    Returns:
        The arguments by name, and every other module of ``build_flow_parts``.

    Raises:
        ValueError: If a key has a value that is not allowed.
    """
    check_config(cfg)
    own, combine = cfg.MODEL.SPATIALFLOW, cfg.MODEL.PANOPTIC_FPN.COMBINE
    with built_from_keys(cfg, own=has_own_backbone(cfg)):
        if cfg.SEED < 0:
            modules = _modules(cfg, build_flow_parts)
        else:
            with RandomTape() as tape:
                modules = _modules(cfg, build_flow_parts)
            tape.draw_again(modules, cfg.SEED)
    if own.PACK_CONVOLUTIONS and torch.device(cfg.MODEL.DEVICE).type == "cpu":
        for module in modules.values():
            pack_convolutions(module)
    return {
        **modules,
        "fusion": PanopticFusion(
            score_threshold=combine.INSTANCES_CONFIDENCE_THRESH,
            overlap_threshold=combine.OVERLAP_THRESH,
            stuff_area_limit=combine.STUFF_AREA_LIMIT,
            box_fill=own.BOX_FILL.ENABLED,
            box_fill_threshold=own.BOX_FILL.THRESH,
        ),
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "stuff_from": own.STUFF_FROM,
        "inference_dtype": amp_dtype(cfg.TEST.AMP),
        "input_format": cfg.INPUT.FORMAT,
    }


@contextlib.contextmanager
def built_from_keys(cfg: CfgNode, *, own: bool) -> Iterator[None]:
    """Raise a ConfigError where a part of Detectron2 or of a user cannot be built from a config.

    Such a part does not check its keys, and raises whatever comes of them.

    Args:
        cfg: Config of the model.
        own: Whether all parts are SpatialFlow's, which check theirs: another error is a bug then.
    """
    try:
        yield
    except (ConfigError, CheckpointError, GenotypeError, SpaceError, OSError, ImportError):
        raise
    except Exception as error:
        if own:
            raise
        model = cfg.MODEL
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {model.META_ARCHITECTURE!r} with MODEL.BACKBONE.NAME "
            f"{model.BACKBONE.NAME!r} cannot be built from the other keys of MODEL: "
            f"{type(error).__name__}: {error}"
        ) from error


def _modules(
    cfg: CfgNode, build_flow_parts: Callable[[CfgNode], FlowParts]
) -> dict[str, nn.Module]:
    """Build the modules of the network: name of an argument → module."""
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    normalizer = LossNormalizer(cfg.MODEL.SPATIALFLOW.LOSS_NORMALIZER)
    flow_modules, attention = build_flow_parts(cfg)
    if isinstance(backbone, FeaturePyramid):
        branches = topology_from_config(cfg).branches
        backbone.freeze_unread({level for branch in branches for level in branch.levels})
    own = cfg.MODEL.SPATIALFLOW
    modules: dict[str, nn.Module] = {}
    if own.REGIONS.ENABLED:
        modules["region_head"] = RegionHead(cfg, shapes)
    if own.RESIDUAL != "none":
        modules["residual"] = PyramidResidual(
            own.RESIDUAL, _residual_branches(flow_modules["flow_graph"])
        )
    return {
        **flow_modules,
        **modules,
        "backbone": backbone,
        "box_head": DenseBoxHead(cfg, shapes, normalizer),
        "mask_head": ProposalMaskHead(cfg, shapes, normalizer),
        "stuff_head": StuffHead(cfg, shapes, normalizer, attention=attention),
    }


def _residual_branches(graph: nn.Module) -> list[str]:
    """Return the branches to whose output the pyramid is added: those of objects.

    A branch that ends with a node without a convolution is the pyramid already.
    """
    assert isinstance(graph, FlowGraph)
    return [
        branch.name
        for branch in graph.topology.branches
        if branch.name != "stuff"
        and not isinstance(graph.nodes[f"{branch.name}_{branch.nodes}"], nn.Identity)
    ]


def genotype_parts(cfg: CfgNode) -> FlowParts:
    """Build the flow graph and the attention blocks of a config's genotype.

    Raises:
        ValueError: If the genotype does not exist, or cannot be built.
    """
    genotype = genotype_of(cfg)
    try:
        graph = FlowGraph.from_genotype(
            genotype,
            channels=cfg.MODEL.FPN.OUT_CHANNELS,
            topology=topology_from_config(cfg),
            norm=cfg.MODEL.RETINANET.NORM,
            from_zero=cfg.MODEL.SPATIALFLOW.FLOW_INIT == "zero",
        )
    except GenotypeError as error:
        name = cfg.MODEL.SPATIALFLOW.GENOTYPE
        raise GenotypeError(f"MODEL.SPATIALFLOW.GENOTYPE: {name}: {error}") from error
    attention = {
        site.rpartition(".")[2]: build_attention(
            genotype.choices.get(site, "none"), attention_channels(cfg, site)
        )
        for site in ATTENTION_SITES
    }
    return FlowParts({"flow_graph": graph}, attention)
