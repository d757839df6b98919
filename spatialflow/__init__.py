"""SpatialFlow for Detectron2: panoptic segmentation with searchable flows between tasks.

Importing the package registers the meta-architecture, the backbone and the data sets. It is not
the geospatial package of the same import name.
"""

from spatialflow._environment import require_detectron2

__version__ = "0.1.0"

__all__ = [
    "FlowGraph",
    "SpatialFlow",
    "add_spatialflow_config",
    "build_spatialflow_fpn_backbone",
    "get_cfg",
    "register_panoptic",
]

if require_detectron2():
    from spatialflow.backbone import build_spatialflow_fpn_backbone
    from spatialflow.config import add_spatialflow_config, get_cfg
    from spatialflow.data import register_builtin, register_panoptic
    from spatialflow.flows import FlowGraph
    from spatialflow.meta_arch import SpatialFlow

    register_builtin()
