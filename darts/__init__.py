"""Architecture search over graphs of branches, part of SpatialFlow for Detectron2.

Not the time-series library of the same import name. Pure PyTorch: this package knows nodes, ports,
operations and choices, and nothing of segmentation or of Detectron2.
"""

from darts.architect import Architect, VirtualStep
from darts.choice import MixedChoice
from darts.genotype import Flow, Genotype
from darts.learner import ArchitectureLearner, LearnerSettings
from darts.operations import OPERATIONS, build_operation
from darts.relaxation import Architecture, MixedEdge, Relaxation
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
