"""Architecture search over graphs of branches, part of SpatialFlow for Detectron2.

This is not the time-series library of the same import name. The package needs only PyTorch: it
knows nodes, ports, operations and choices, but neither segmentation nor Detectron2.
"""

from darts.architect import Architect, VirtualStep
from darts.genotype import Flow, Genotype
from darts.learner import ArchitectureLearner, LearnerSettings
from darts.mixed import MixedChoice, MixedEdge
from darts.operations import OPERATIONS, build_operation
from darts.relaxation import Architecture, Relaxation
from darts.space import Branch, Edge, Node, SearchSpace, Topology

__all__ = [
    "OPERATIONS",
    "Architect",
    "Architecture",
    "ArchitectureLearner",
    "Branch",
    "Edge",
    "Flow",
    "Genotype",
    "LearnerSettings",
    "MixedChoice",
    "MixedEdge",
    "Node",
    "Relaxation",
    "SearchSpace",
    "Topology",
    "VirtualStep",
    "build_operation",
]
