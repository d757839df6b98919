"""Architecture search over graphs of branches, part of SpatialFlow for Detectron2.

Not the time-series library of the same import name. Pure PyTorch: this package knows nodes, ports,
operations and choices, and nothing of segmentation or of Detectron2.
"""

from darts.genotype import Flow, Genotype
from darts.operations import OPERATIONS, build_operation
from darts.space import Branch, Node, Topology

__all__ = ["OPERATIONS", "Branch", "Flow", "Genotype", "Node", "Topology", "build_operation"]
