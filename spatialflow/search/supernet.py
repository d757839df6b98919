"""The supernet of a search: SpatialFlow with every edge and choice of the space relaxed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from torch import Tensor, nn

from darts.mixed import MixedChoice, MixedEdge
from darts.relaxation import Architecture
from spatialflow.config.genotypes import pooled_convs
from spatialflow.config.options import ATTENTION_SITES
from spatialflow.modeling.build import FlowParts, network_parts
from spatialflow.modeling.flow_graph import FlowGraph, build_node
from spatialflow.modeling.heads.attention import attention_channels, build_attention
from spatialflow.modeling.meta_arch import SpatialFlow
from spatialflow.modeling.topology import conv_choice
from spatialflow.search.space import relaxation_from_config, search_space


class FixedProposalBatch(list[dict[str, Any]]):
    """A batch whose proposals stay those of its first forward pass through a supernet.

    A central difference compares two passes with slightly different weights. Both need the same
    proposals, since a small change of the weights can exchange one proposal for another.
    """

    proposals: list[Instances] | None = None


@META_ARCH_REGISTRY.register()
class SpatialFlowSupernet(SpatialFlow):
    """SpatialFlow with all candidates of a search space mixed (Liu et al. 2019, DARTS, eq. 2)."""

    @configurable
    def __init__(self, *, architecture: Architecture, **parts: Any) -> None:
        """Put the parts together.

        Args:
            architecture: Architecture parameters that weigh the candidates in ``flow_graph`` and in
                the attention of ``stuff_head``.
            parts: Arguments of :class:`SpatialFlow`.
        """
        super().__init__(**parts)
        self.architecture = architecture

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts that a config describes, with the space of ``SEARCH.SPACE``.

        Raises:
            ValueError: If a key has a value that is not allowed.
        """
        return network_parts(cfg, supernet_parts)

    def training_losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the losses of a batch, with a new draw of the relaxation.

        Args:
            batched_inputs: As :meth:`SpatialFlow.forward` takes them. A
                :class:`FixedProposalBatch` keeps its proposals from one call to the next.
        """
        self.architecture.draw()
        images = self.preprocess_image(batched_inputs)
        maps = self.predict_maps(images)
        fixed = batched_inputs if isinstance(batched_inputs, FixedProposalBatch) else None
        if fixed is not None and fixed.proposals is not None:
            return self.losses(maps, fixed.proposals, fixed)
        proposals = self.propose(maps, images.image_sizes)
        if fixed is not None:
            fixed.proposals = proposals
        return self.losses(maps, proposals, batched_inputs)


def supernet_parts(cfg: CfgNode) -> FlowParts:
    """Build the architecture parameters of a config's space, and what they mix.

    Raises:
        ValueError: If a key under ``SEARCH`` has a value that is not allowed.
    """
    architecture = Architecture(search_space(cfg), relaxation_from_config(cfg))
    graph = relaxed_flow_graph(
        architecture,
        channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.RETINANET.NORM,
        convs=pooled_convs(cfg),
    )
    attention: dict[str, nn.Module] = {}
    for site in ATTENTION_SITES:
        channels = attention_channels(cfg, site)
        options = architecture.space.choices.get(site)
        if options is None:
            block = build_attention("none", channels)
        else:
            blocks = {option: build_attention(option, channels) for option in options}
            block = MixedChoice(site, blocks, architecture)
        attention[site.rpartition(".")[2]] = block
    return FlowParts({"flow_graph": graph, "architecture": architecture}, attention)


def relaxed_flow_graph(
    architecture: Architecture,
    *,
    channels: int = 256,
    norm: str = "",
    convs: Mapping[str, str] = MappingProxyType({}),
) -> FlowGraph:
    """Build the flow graph with every edge and every searched convolution of a space relaxed.

    Args:
        architecture: Parameters of the space, which the graph uses and does not own.
        channels: C, the width of the pyramid and of every branch.
        norm: Norm of every node, by Detectron2's name; "" for none.
        convs: Choice of a node's convolution → its option, where neither the space nor the default
            gives it.
    """
    space = architecture.space
    flows = {edge.flow: MixedEdge(edge, channels, architecture) for edge in space.edges}
    nodes: dict[str, nn.Module] = {}
    for node in space.topology.nodes:
        name = conv_choice(node)
        options = space.choices.get(name)
        if options is None:
            nodes[node.name] = build_node(convs.get(name, "plain"), channels, norm)
        else:
            built = {option: build_node(option, channels, norm) for option in options}
            nodes[node.name] = MixedChoice(name, built, architecture)
    return FlowGraph(topology=space.topology, nodes=nodes, flows=flows)
