"""The graph that flows live in: branches, their nodes, and which edges are causal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from darts.genotype import Flow, Genotype


@dataclass(frozen=True, slots=True)
class Branch:
    """A chain of nodes with one set of weights on several pyramid levels.

    Attributes:
        name: The branch's name, for example ``box``.
        nodes: How many nodes it has.
        levels: The pyramid levels it runs on, finest first.
        first_stage: The stage of its first node; ``mask.1``, which runs last, is of stage 4.
    """

    name: str
    nodes: int
    levels: tuple[str, ...]
    first_stage: int = 1


@dataclass(frozen=True, slots=True)
class Node:
    """One convolution stage of one branch."""

    branch: Branch
    index: int

    @property
    def name(self) -> str:
        """``branch.index``, counted from 1."""
        return f"{self.branch.name}.{self.index}"

    @property
    def stage(self) -> int:
        """When the node runs: all nodes of a stage run before those of the next."""
        return self.branch.first_stage + self.index - 1


class Topology:
    """Branches in the order they run within a stage, and the causality that follows.

    An edge goes from a branch to a later one of that order at the same stage, or from another
    branch's previous stage exactly; within a branch the chain itself is the only connection.
    """

    def __init__(self, branches: Sequence[Branch]) -> None:
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
        """Return the node of that name.

        Raises:
            ValueError: If there is none.
        """
        if name not in self._order:
            raise ValueError(f"unknown node {name!r}; the nodes are {', '.join(self._order)}")
        return self.nodes[self._order[name]]

    def is_causal(self, source: Node, target: Node) -> bool:
        """Tell whether an edge from ``source`` to ``target`` is in the full space."""
        if source.branch.name == target.branch.name:
            return False
        if source.stage == target.stage:
            return self._order[source.name] < self._order[target.name]
        return source.stage == target.stage - 1

    def edges(self) -> list[tuple[Node, Node]]:
        """Return every (source, target) of the full space, in running order of the targets."""
        return [
            (source, target)
            for target in self.nodes
            for source in self.nodes
            if self.is_causal(source, target)
        ]

    def shared_levels(self, flow: Flow) -> tuple[str, ...]:
        """Return the levels on which both ends of a flow exist, finest first."""
        source, target = self.node(flow.source), self.node(flow.target)
        return tuple(level for level in target.branch.levels if level in source.branch.levels)

    def check(self, genotype: Genotype) -> None:
        """Check that every flow of a genotype is an edge of this graph.

        Raises:
            ValueError: Naming the first flow that is not, and why.
        """
        for flow in genotype.flows:
            where = f"genotype {genotype.name!r}: flow {flow}"
            try:
                source, target = self.node(flow.source), self.node(flow.target)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            if not self.is_causal(source, target):
                order = ", ".join(branch.name for branch in self.branches)
                raise ValueError(
                    f"{where}: not causal; a flow goes to a later branch (order: {order}) of the "
                    f"same stage, or comes from another branch's previous stage"
                )
            if not self.shared_levels(flow):
                raise ValueError(
                    f"{where}: no common level, source runs on {source.branch.levels}, "
                    f"target on {target.branch.levels}"
                )
