"""The branches of SpatialFlow and the flows between them.

Shape legend: N images, C channels of pyramid and branches, H and W the size of a pyramid level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.nn import functional as F

from darts.genotype import Flow, Genotype, GenotypeError
from darts.operations import GATE_OPERATIONS, build_operation, initialise
from darts.space import Node, Topology
from spatialflow.modeling.layers.deformable import DeformableNode
from spatialflow.modeling.layers.norms import build_norm
from spatialflow.modeling.topology import check_choices, conv_choice, spatialflow_topology


class FlowGraph(nn.Module):
    """Branches that run in parallel on a feature pyramid, connected by flows.

    The design of the paper (arXiv 1910.08787, section 3). Each row is a branch. A vertical arrow is
    a flow, which carries the output of a node through its operation, a 3×3 convolution, and adds it
    to the input of another node. Crossing lines do not meet::

                    stage 1        stage 2             stage 4

        pyramid ─┬─→ cls.1 ───────→ cls.2 ───→ … ─────→ cls.4 ───────────→ classes
                 │     ↑              ↑                   ↑
                 ├─→ box.1 ───────→ box.2 ───→ … ─────→ box.4 ──────┬────→ boxes
                 │     ↓              ↓                   ↓         │
                 ├─→ stuff.1 ─────→ stuff.2 ─→ … ─────→ stuff.4 ─┬──┼────→ stuff
                 │                                               ↓  ↓
                 └────────────────────────────────────────────→ mask.1 ──→ masks

    Every node runs on each pyramid level of its branch, with the same weights on all levels. Its
    input x is the output of the node before it, or the pyramid map. Flows arrive at three ports::

              operation(source)    operation(source)
                     │ gate               │ input
                     ↓                    ↓
        x ─┬─→ x · (1 + tanh(·)) ───→ x + (·) ───→ conv 3×3 ──→ norm ──→ ReLU ──→ output
           │                                          ↑
           └─→ x + (·) ───→ offset conv 3×3 ──────────┘
                   ↑
                   │ offset
                 source

    Several flows may arrive at one port: all gates come first, then all sums. A gate starts as the
    identity, as its operation starts at zero. Only deformable nodes have the lower path, whose
    convolution predicts the offsets and modulations of DCNv2 (arXiv 1811.11168). The norm is
    optional. Gradients run back through every flow into its source. A flow acts on the levels that
    its source has, and on finer ones by its finest output, enlarged by nearest neighbour.

    The graph takes built modules for nodes and flows, so a search can pass mixtures instead.
    """

    def __init__(
        self,
        *,
        topology: Topology,
        nodes: Mapping[str, nn.Module],
        flows: Mapping[Flow, nn.Module],
    ) -> None:
        """Connect nodes and flows.

        Args:
            topology: Branches and their order. Every flow must be an edge of it.
            nodes: Node name → convolution with norm and activation, (N, C, H, W) → (N, C, H, W). A
                module whose attribute ``takes_offset_input`` is true gets a second map of the same
                shape, from which it predicts offsets.
            flows: Flow → module that computes its operation, (N, C, H, W) → (N, C, H, W). A module
                with a method ``forward_levels`` gets the maps of all levels in one call.
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
        from_zero: bool = False,
    ) -> FlowGraph:
        """Build the graph that a genotype describes.

        Args:
            genotype: Flows, and choices of the nodes' convolutions.
            channels: C, the width of the pyramid and of every branch.
            topology: Branches and their order; None for SpatialFlow's branches on P3 to P7.
            norm: Norm of every node, by Detectron2's name; "" for none.
            from_zero: Start the last layer of added flows at zero, as that of gates, so that the
                graph starts as the one without flows (zero convolutions, arXiv 2302.05543).

        Raises:
            ValueError: If a flow is not an edge of the topology, an operation does not fit its
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
                flow,
                channels,
                genotype.name,
                deformable=convs[flow.target] == "deformable",
                from_zero=from_zero,
            )
            for flow in genotype.flows
        }
        nodes = {name: build_node(conv, channels, norm) for name, conv in convs.items()}
        return cls(topology=topology, nodes=nodes, flows=flows)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Run all branches.

        Args:
            features: Feature pyramid, level name → (N, C, H, W).

        Returns:
            Branch name → level name → output of the branch's last node, (N, C, H, W).
        """
        outputs: dict[str, dict[str, Tensor]] = {}
        for node in self.topology.nodes:
            first = node.index == 1
            inputs = features if first else outputs[f"{node.branch.name}.{node.index - 1}"]
            signals = self._signals(node, outputs, inputs)
            outputs[node.name] = {
                level: self._run_node(node, level, inputs[level], signals)
                for level in node.branch.levels
            }
        return {
            branch.name: outputs[f"{branch.name}.{branch.nodes}"]
            for branch in self.topology.branches
        }

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Refuse weights of a graph with other flows in eval mode.

        Detectron2's checkpointer only warns about missing and unexpected keys, and a network with
        random flows would still return results. Training may start from another graph's weights.

        Raises:
            ValueError: If the flows differ; lists those on one side only.
        """
        stored = {
            key.removeprefix(f"{prefix}flows.").split(".")[0]
            for key in state_dict
            if key.startswith(f"{prefix}flows.")
        }
        own = {key for key, flow in self.flows.items() if list(flow.parameters())}
        # An offset flow has no weights of its own: the node's offset convolution counts as one.
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

    def _signals(
        self,
        node: Node,
        outputs: Mapping[str, Mapping[str, Tensor]],
        inputs: Mapping[str, Tensor],
    ) -> list[tuple[Flow, dict[str, Tensor]]]:
        """Return every flow into a node with its output: level → (N, C, H, W).

        A level that is finer than all of the source's gets the finest output, enlarged to its size.
        """
        signals = []
        for flow in self._incoming[node.name]:
            source, module = outputs[flow.source], self.flows[flow.key]
            shared = [level for level in node.branch.levels if level in source]
            maps = {level: source[level] for level in shared}
            if hasattr(module, "forward_levels"):
                signal = dict(module.forward_levels(maps))
            else:
                signal = {level: module(x) for level, x in maps.items()}
            finest = next(iter(source))
            finer = node.branch.levels.index(finest) if finest in shared else 0
            for level in node.branch.levels[:finer]:
                signal[level] = F.interpolate(signal[finest], inputs[level].shape[-2:])
            signals.append((flow, signal))
        return signals

    def _run_node(
        self, node: Node, level: str, x: Tensor, signals: Sequence[tuple[Flow, dict[str, Tensor]]]
    ) -> Tensor:
        """Run a node on one level, (N, C, H, W) → (N, C, H, W)."""
        arriving = [(flow.port, maps[level]) for flow, maps in signals if level in maps]
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
    """Return whether a key of a state dict is the weight of a node's offset convolution."""
    return key.startswith(f"{prefix}nodes.") and key.endswith(".offset.weight")


def _key(node_name: str) -> str:
    """Return a node's name as a module's name, which may not contain a dot."""
    return node_name.replace(".", "_")


def build_node(conv: str, channels: int, norm: str) -> nn.Module:
    """Build a node: a 3×3 convolution with norm and ReLU, (N, C, H, W) → (N, C, H, W).

    A node of ``identity`` returns its input.

    Args:
        conv: Type of the convolution, one of :data:`NODE_CONVS`.
        channels: C, the channels of input and output.
        norm: Norm after the convolution, by Detectron2's name; "" for none.
    """
    if conv == "identity":
        return nn.Identity()
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


def _flow_module(
    flow: Flow, channels: int, genotype_name: str, *, deformable: bool, from_zero: bool
) -> nn.Module:
    """Build the operation of a flow.

    Args:
        flow: The flow.
        channels: C of its source and target.
        genotype_name: Name of its genotype, for errors.
        deformable: Whether its target is deformable.
        from_zero: Whether a flow that is added starts at zero.

    Raises:
        ValueError: If the operation does not exist or does not fit the flow's port.
    """
    where = f"genotype {genotype_name!r}: flow {flow}"
    if flow.port == "offset":
        if flow.operation != "identity":
            raise GenotypeError(f"{where}: an offset port takes its source as it is, by 'identity'")
        if not deformable:
            raise GenotypeError(
                f"{where}: an offset port needs a deformable target; choice "
                f"'{flow.target}.conv': 'deformable' expected"
            )
    zero = flow.port == "gate" or (from_zero and flow.port == "input")
    if zero and flow.operation not in GATE_OPERATIONS:
        why = (
            "not an operation of a gate"
            if flow.port == "gate"
            else "cannot start at zero, as MODEL.SPATIALFLOW.FLOW_INIT asks"
        )
        raise GenotypeError(f"{where}: {why}, one of {', '.join(GATE_OPERATIONS)} expected")
    return build_operation(flow.operation, channels, zero_init=zero)
