"""The four branches and the flows between them.

Shape legend: N images, C channels, H and W the size of a pyramid level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.nn import functional as F

from darts.genotype import Flow, Genotype
from darts.operations import build_operation, initialise
from darts.space import Branch, Node, Topology
from spatialflow.config.options import ATTENTION_OPTIONS, ATTENTION_SITES, NODE_CONVS
from spatialflow.modeling.layers.deformable import DeformableNode
from spatialflow.modeling.layers.norms import build_norm


def spatialflow_topology(
    *,
    box_levels: Sequence[str] = ("p3", "p4", "p5", "p6", "p7"),
    stuff_levels: Sequence[str] = ("p3", "p4", "p5"),
    mask_levels: Sequence[str] = ("p3", "p4", "p5"),
    stages: int = 4,
) -> Topology:
    """Return SpatialFlow's graph: box, stuff, mask and cls, in causal order.

    Args:
        box_levels: Levels of the box and cls branches.
        stuff_levels: Levels of the stuff branch.
        mask_levels: Levels of the mask branch.
        stages: Nodes of the box, cls and stuff branches; the mask branch has one, at the last.
    """
    return Topology(
        [
            Branch("box", stages, tuple(box_levels)),
            Branch("stuff", stages, tuple(stuff_levels)),
            Branch("mask", 1, tuple(mask_levels), first_stage=stages),
            Branch("cls", stages, tuple(box_levels)),
        ]
    )


def topology_from_config(cfg: CfgNode) -> Topology:
    """Return the branches of a config: ``RETINANET``, ``SEM_SEG_HEAD`` and ``MASK_IN_FEATURES``."""
    return spatialflow_topology(
        box_levels=cfg.MODEL.RETINANET.IN_FEATURES,
        stuff_levels=cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES,
        mask_levels=cfg.MODEL.SPATIALFLOW.MASK_IN_FEATURES,
        stages=cfg.MODEL.RETINANET.NUM_CONVS,
    )


class FlowGraph(nn.Module):
    """Four branches side by side on a feature pyramid, joined by flows (arXiv 1910.08787, sec. 3).

    The published design at stage i, on each pyramid level (``f`` is the operation of a flow)::

        pyramid ──┬── box.1 ───── box.2 ── … ── box.4 ──────────→ boxes
                  │     │ f         │ f           │ f   ╲ f
                  ├── stuff.1 ─── stuff.2 ─ … ── stuff.4 ─╲─────→ stuff
                  │     ╎           ╎             │ f      ╲
                  ├─────╎───────────╎───────────── mask.1 ←─╯───→ masks
                  │     ╎ f         ╎ f           ╎ f
                  └── cls.1 ───── cls.2 ── … ── cls.4 ──────────→ classes

    (the dotted flows start at the box branch.) Inside a node x, the output of the node before it
    in its branch or the pyramid map, passes the node's ports in this order::

        x ──→ × (1 + tanh(f(source))) ──→ + f(source) ──→ conv 3×3 ──→ norm ──→ ReLU ──→
        │          gate ports                input ports      ↑
        └──→ + source ──→ conv 3×3: 27 offset channels ───────┘  (deformable nodes only)
               offset ports

    Gate operations start at zero, so a gate starts as the identity. A node without a norm has none.
    Weights are shared over levels. Gradients run back through every flow into its source.

    The graph does not know what the branches are for. Nodes and flows are built modules, so that
    a search can put relaxed ones in their place.
    """

    def __init__(
        self,
        *,
        topology: Topology,
        nodes: Mapping[str, nn.Module],
        flows: Mapping[Flow, nn.Module],
    ) -> None:
        """Wire nodes and flows.

        Args:
            topology: Branches and their order; every flow must be an edge of it.
            nodes: Node name → its convolution with norm and activation, (N, C, H, W) →
                (N, C, H, W). A module with a true attribute ``takes_offset_input`` is called with a
                second map of the same shape, from which it predicts offsets.
            flows: Flow → the module that carries it, (N, C, H, W) → (N, C, H, W). A module with a
                method ``forward_levels`` is given the maps of all levels in one call.
        """
        super().__init__()
        self.topology = topology
        self.nodes = nn.ModuleDict({_key(name): module for name, module in nodes.items()})
        self.flows = nn.ModuleDict({flow.key: module for flow, module in flows.items()})
        self._incoming: dict[str, list[Flow]] = {node.name: [] for node in topology.nodes}
        for flow in flows:
            self._incoming[flow.target].append(flow)

    @classmethod
    def from_genotype(
        cls,
        genotype: Genotype,
        *,
        channels: int = 256,
        topology: Topology | None = None,
        norm: str = "",
    ) -> FlowGraph:
        """Build the graph that a genotype describes.

        Args:
            genotype: Flows and choices.
            channels: C, the width of the pyramid and of every branch.
            topology: Branches and their order; None takes SpatialFlow's on P3 to P7.
            norm: Norm of every node, by Detectron2's name; "" for none.

        Raises:
            ValueError: If a flow is not an edge of the topology, its operation does not fit its
                port, or a choice is unknown.
        """
        topology = topology or spatialflow_topology()
        topology.check(genotype)
        check_choices(genotype, topology)
        convs = {
            node.name: genotype.choices.get(conv_choice(node), "plain") for node in topology.nodes
        }
        flows = {
            flow: _flow_module(
                flow, channels, genotype.name, deformable=convs[flow.target] == "deformable"
            )
            for flow in genotype.flows
        }
        nodes = {name: build_node(conv, channels, norm) for name, conv in convs.items()}
        return cls(topology=topology, nodes=nodes, flows=flows)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Run all branches.

        Args:
            features: The pyramid, level name → (N, C, H, W).

        Returns:
            Branch name → level name → (N, C, H, W), the output of the branch's last node.
        """
        outputs: dict[str, dict[str, Tensor]] = {}
        for node in self.topology.nodes:
            first = node.index == 1
            inputs = features if first else outputs[f"{node.branch.name}.{node.index - 1}"]
            carried = self._carried(node, outputs)
            outputs[node.name] = {
                level: self._run_node(node, level, inputs[level], carried)
                for level in node.branch.levels
            }
        return {
            branch.name: outputs[f"{branch.name}.{branch.nodes}"]
            for branch in self.topology.branches
        }

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Refuse, in eval mode, weights of a graph with other flows.

        Detectron2's checkpointer only warns of missing and unexpected keys, and a network with
        random flows still gives results. Training may start from another graph's weights.
        """
        stored = {
            key.removeprefix(f"{prefix}flows.").split(".")[0]
            for key in state_dict
            if key.startswith(f"{prefix}flows.")
        }
        own = {key for key, flow in self.flows.items() if list(flow.parameters())}
        # An offset convolution counts as a flow, as offset ports write to it.
        stored |= {key.split(".")[-3] for key in state_dict if _is_offset(key, prefix)}
        own |= {key.split(".")[-3] for key in self.state_dict() if _is_offset(key, "")}
        graph_is_stored = any(key.startswith(f"{prefix}nodes.") for key in state_dict)
        if graph_is_stored and not self.training and stored != own:
            raise ValueError(
                "the checkpoint has other flows than MODEL.SPATIALFLOW.GENOTYPE: "
                f"only in the checkpoint {sorted(stored - own)}, only in the genotype "
                f"{sorted(own - stored)}"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _carried(
        self, node: Node, outputs: Mapping[str, Mapping[str, Tensor]]
    ) -> list[tuple[Flow, dict[str, Tensor]]]:
        """Return what every flow brings to a node, on the levels where both ends exist."""
        carried = []
        for flow in self._incoming[node.name]:
            source, module = outputs[flow.source], self.flows[flow.key]
            maps = {level: source[level] for level in node.branch.levels if level in source}
            if hasattr(module, "forward_levels"):
                carried.append((flow, module.forward_levels(maps)))
            else:
                carried.append((flow, {level: module(x) for level, x in maps.items()}))
        return carried

    def _run_node(
        self, node: Node, level: str, x: Tensor, carried: Sequence[tuple[Flow, dict[str, Tensor]]]
    ) -> Tensor:
        arriving = [(flow.port, maps[level]) for flow, maps in carried if level in maps]
        offset_input = x
        for port, signal in arriving:
            if port == "offset":
                offset_input = offset_input + signal
        for port, signal in arriving:
            if port == "gate":
                x = x * (1 + torch.tanh(signal))
        for port, signal in arriving:
            if port == "input":
                x = x + signal
        module = self.nodes[_key(node.name)]
        if getattr(module, "takes_offset_input", False):
            return module(x, offset_input)
        return module(x)


def _is_offset(key: str, prefix: str) -> bool:
    return key.startswith(f"{prefix}nodes.") and key.endswith(".offset.weight")


def _key(node_name: str) -> str:
    return node_name.replace(".", "_")


def default_option(choice: str) -> str:
    """Return what a choice is where a genotype does not name it."""
    return NODE_CONVS[0] if choice.endswith(".conv") else ATTENTION_OPTIONS[0]


def known_choices(topology: Topology) -> dict[str, tuple[str, ...]]:
    """Return the options of every choice that can be built, here or in the heads."""
    known: dict[str, tuple[str, ...]] = dict.fromkeys(ATTENTION_SITES, ATTENTION_OPTIONS)
    return known | {conv_choice(node): NODE_CONVS for node in topology.nodes}


def check_choices(genotype: Genotype, topology: Topology) -> None:
    """Check that every choice of a genotype can be built, here or in the heads.

    Raises:
        ValueError: Naming the first that cannot.
    """
    known = known_choices(topology)
    for name, option in genotype.choices.items():
        if option not in known.get(name, ()):
            expected = (
                list(known[name])
                if name in known
                else f"choice {[*ATTENTION_SITES, '<node>.conv']}"
            )
            raise ValueError(
                f"genotype {genotype.name!r}: choice {name!r}: {option!r} cannot be built, one of "
                f"{expected} expected"
            )


def conv_choice(node: Node) -> str:
    """Return the name of the choice of a node's convolution."""
    return f"{node.name}.conv"


def build_node(conv: str, channels: int, norm: str) -> Conv2d:
    """Build a node's convolution, with norm and ReLU.

    Args:
        conv: One of :data:`NODE_CONVS`.
        channels: C.
        norm: A name that Detectron2 knows; "" for none.
    """
    node = (DeformableNode if conv == "deformable" else Conv2d)(
        channels,
        channels,
        kernel_size=3,
        padding=1,
        bias=not norm,
        norm=build_norm(norm, channels),
        activation=F.relu,
    )
    initialise(node)
    return node


def _flow_module(flow: Flow, channels: int, genotype_name: str, *, deformable: bool) -> nn.Module:
    where = f"genotype {genotype_name!r}: flow {flow}"
    if flow.port == "offset":
        if flow.operation != "identity":
            raise ValueError(f"{where}: an offset port takes its source as it is, by 'identity'")
        if not deformable:
            raise ValueError(
                f"{where}: an offset port needs a deformable target; choice "
                f"'{flow.target}.conv': 'deformable' expected"
            )
    try:
        return build_operation(flow.operation, channels, zero_init=flow.port == "gate")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
