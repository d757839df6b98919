"""The network: backbone, flow graph, heads, fusion and the meta-architecture."""

from spatialflow.modeling.backbone import FeaturePyramid, build_spatialflow_fpn_backbone
from spatialflow.modeling.flow_graph import FlowGraph
from spatialflow.modeling.meta_arch import SpatialFlow

__all__ = ["FeaturePyramid", "FlowGraph", "SpatialFlow", "build_spatialflow_fpn_backbone"]
