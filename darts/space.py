"""Search spaces: branches, their nodes, causal edges between nodes, and the searched edges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from darts.genotype import PORTS, Flow, Genotype, GenotypeError
from darts.operations import GATE_OPERATIONS, OPERATIONS

Costs = Mapping[tuple[str, str], float]
"""(key of an edge or choice, operation or option) → cost in any unit."""


class SpaceError(ValueError):
    """A search space or its relaxation is not valid."""


@dataclass(frozen=True, slots=True)
class Branch:
    """Chain of nodes that runs on several pyramid levels with one set of weights.

    Attributes:
        name: Name of the branch, for example ``box``.
        nodes: Number of nodes.
        levels: Pyramid levels that the branch runs on, finest first.
        first_stage: Stage of the first node. For example ``mask.1`` runs last, at stage 4.
    """

    name: str
    nodes: int
    levels: tuple[str, ...]
    first_stage: int = 1


@dataclass(frozen=True, slots=True)
class Node:
    """One convolution stage of one branch.

    Attributes:
        branch: The branch.
        index: Position in the branch, counted from 1.
    """

    branch: Branch
    index: int

    @property
    def name(self) -> str:
        """Name ``branch.index`` such as ``box.4``."""
        return f"{self.branch.name}.{self.index}"

    @property
    def stage(self) -> int:
        """Stage of the node; all nodes of a stage run before those of the next stage."""
        return self.branch.first_stage + self.index - 1


class Topology:
    """Branches in their running order within a stage, and the causal edges between their nodes.

    An edge goes to a later branch of this order at the same stage, or comes from another branch at
    exactly the previous stage. Within a branch the chain is the only connection.

    Attributes:
        branches: Branches in their running order.
        nodes: All nodes in their running order.
    """

    def __init__(self, branches: Sequence[Branch]) -> None:
        """Sort the nodes into their running order.

        Args:
            branches: Branches in their running order within a stage.

        Raises:
            ValueError: If two branches have the same name.
        """
        names = [branch.name for branch in branches]
        if len(set(names)) != len(names):
            raise ValueError(f"branch names must differ, got {names}")
        self.branches = tuple(branches)
        rank = {branch.name: i for i, branch in enumerate(branches)}
        nodes = [Node(branch, i + 1) for branch in branches for i in range(branch.nodes)]
        nodes.sort(key=lambda node: (node.stage, rank[node.branch.name]))
        self._order = {node.name: position for position, node in enumerate(nodes)}
        self.nodes = tuple(nodes)

    def node(self, name: str) -> Node:
        """Return the node of a name.

        Raises:
            GenotypeError: If no node has this name.
        """
        if name not in self._order:
            raise GenotypeError(f"unknown node {name!r}; the nodes are {', '.join(self._order)}")
        return self.nodes[self._order[name]]

    def is_causal(self, source: Node, target: Node) -> bool:
        """Return whether an edge from ``source`` to ``target`` is causal."""
        if source.branch.name == target.branch.name:
            return False
        if source.stage == target.stage:
            return self._order[source.name] < self._order[target.name]
        return source.stage == target.stage - 1

    def edges(self) -> list[tuple[Node, Node]]:
        """Return every causal (source, target), in the running order of the targets."""
        return [
            (source, target)
            for target in self.nodes
            for source in self.nodes
            if self.is_causal(source, target)
        ]

    def shared_levels(self, flow: Flow) -> tuple[str, ...]:
        """Return the pyramid levels on which both ends of a flow run, finest first."""
        source, target = self.node(flow.source), self.node(flow.target)
        return tuple(level for level in target.branch.levels if level in source.branch.levels)

    def check(self, genotype: Genotype) -> None:
        """Check that every flow of a genotype is a causal edge with a common level.

        Raises:
            GenotypeError: If a flow is not; the message names the first such flow and the reason.
        """
        for flow in genotype.flows:
            where = f"genotype {genotype.name!r}: flow {flow}"
            try:
                source, target = self.node(flow.source), self.node(flow.target)
            except GenotypeError as error:
                raise GenotypeError(f"{where}: {error}") from error
            if not self.is_causal(source, target):
                order = ", ".join(branch.name for branch in self.branches)
                raise GenotypeError(
                    f"{where}: not causal; a flow goes to a later branch (order: {order}) of the "
                    f"same stage, or comes from another branch's previous stage"
                )
            if not self.shared_levels(flow):
                raise GenotypeError(
                    f"{where}: no common level, source runs on {source.branch.levels}, "
                    f"target on {target.branch.levels}"
                )


@dataclass(frozen=True, slots=True)
class Edge:
    """Possible flow and its candidate operations.

    Attributes:
        flow: Flow with the edge's source, target and port, and the first operation.
        operations: Names of the candidates, in the order of their architecture parameters, without
            ``none``.
    """

    flow: Flow
    operations: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.flow.source} -> {self.flow.target} [{self.flow.port}]"

    @property
    def key(self) -> str:
        """Name of the edge's module and of its architecture parameters."""
        return self.flow.key

    def with_operation(self, operation: str) -> Flow:
        """Return the edge's flow with an operation."""
        return replace(self.flow, operation=operation)


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """Set of genotypes that a search can find.

    Attributes:
        topology: Branches and nodes.
        edges: Possible flows, in the running order of their targets.
        choices: Name of a choice → its options; the first option is the default.
        max_inputs: Largest number of flows into a node; None for no limit.
    """

    topology: Topology
    edges: tuple[Edge, ...]
    choices: Mapping[str, tuple[str, ...]]
    max_inputs: int | None = None

    @classmethod
    def build(
        cls,
        topology: Topology,
        *,
        operations: Sequence[str],
        pairs: Sequence[tuple[str, str]] | None = None,
        stages: Sequence[int] | None = None,
        ports: Sequence[str] = ("input",),
        complete_levels: bool = False,
        choices: Mapping[str, Sequence[str]] | None = None,
        max_inputs: int | None = None,
    ) -> SearchSpace:
        """Build a space from the causal edges of a topology.

        Args:
            topology: Branches and nodes.
            operations: Candidate operations of every edge. An edge into a ``gate`` port takes only
                those that can write a gate.
            pairs: Allowed (source branch, target branch) pairs; None for all.
            stages: Allowed stages of targets; None for all.
            ports: Ports of each target that have an edge.
            complete_levels: Leave out edges whose target runs on a level that the source lacks.
            choices: Name of a choice → its options; the first option is the default.
            max_inputs: Largest number of flows into a node; None for no limit.

        Raises:
            SpaceError: If a name is unknown or given twice, or no edge and no choice is left.
        """
        _check_names(topology, operations, pairs, stages, ports)
        edges = []
        for source, target in topology.edges():
            wanted = pairs is None or (source.branch.name, target.branch.name) in pairs
            wanted &= stages is None or target.stage in stages
            if complete_levels:
                wanted &= set(target.branch.levels) <= set(source.branch.levels)
            for port in ports if wanted else ():
                able = [o for o in operations if port != "gate" or o in GATE_OPERATIONS]
                if able:
                    flow = Flow(source.name, target.name, port, able[0])
                    edges.append(Edge(flow, tuple(able)))
        options = {name: tuple(values) for name, values in (choices or {}).items()}
        if not edges and not options:
            raise SpaceError("the search space has no edge and no choice")
        return cls(topology, tuple(edges), options, max_inputs)

    def check(self, genotype: Genotype) -> None:
        """Check that a genotype is in the space.

        Raises:
            GenotypeError: If it is not; the message names the first such flow or choice and the
                reason.
        """
        self.topology.check(genotype)
        edges = {edge.flow.edge: edge for edge in self.edges}
        inputs: Counter[str] = Counter()
        for flow in genotype.flows:
            where = f"genotype {genotype.name!r}: flow {flow}"
            if flow.edge not in edges:
                raise GenotypeError(f"{where}: no edge of the search space")
            operations = edges[flow.edge].operations
            if flow.operation not in operations:
                raise GenotypeError(f"{where}: operation not in the space, one of {operations} is")
            inputs[flow.target] += 1
            if self.max_inputs is not None and inputs[flow.target] > self.max_inputs:
                raise GenotypeError(
                    f"{where}: the {inputs[flow.target]}. input of {flow.target}, "
                    f"{self.max_inputs} expected at most"
                )
        for name, option in genotype.choices.items():
            # The builder of the network checks choices that the space does not search.
            if option not in self.choices.get(name, (option,)):
                raise GenotypeError(
                    f"genotype {genotype.name!r}: choice {name!r}: {option!r} given, one of "
                    f"{self.choices[name]} expected"
                )


def _check_names(
    topology: Topology,
    operations: Sequence[str],
    pairs: Sequence[tuple[str, str]] | None,
    stages: Sequence[int] | None,
    ports: Sequence[str],
) -> None:
    branches = [branch.name for branch in topology.branches]
    known_stages = sorted({node.stage for node in topology.nodes})
    for what, given, known in (
        ("operations", operations, OPERATIONS),
        ("branches", [name for pair in pairs or () for name in pair], branches),
        ("stages", stages or (), known_stages),
        ("ports", ports, PORTS),
    ):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise SpaceError(f"{what} {unknown} given, some of {list(known)} expected")
        if what in ("operations", "ports") and len(set(given)) != len(list(given)):
            raise SpaceError(f"{what} {list(given)} given, each expected once")
    if not operations:
        raise SpaceError("the search space has no operation")
