"""SpatialFlow for Detectron2: panoptic segmentation with searchable flows between tasks.

Importing the package registers the meta-architectures, the backbone and the data sets. It is not
the geospatial package of the same import name.
"""

from spatialflow.utils.environment import let_threads_sleep, require_detectron2

__version__ = "0.1.0"

__all__ = [
    "FlowGraph",
    "SpatialFlow",
    "add_spatialflow_config",
    "build_spatialflow_fpn_backbone",
    "get_cfg",
    "register_panoptic",
]

let_threads_sleep()
require_detectron2()

import spatialflow.search.supernet  # noqa: F401
from spatialflow.config import add_spatialflow_config, get_cfg
from spatialflow.data import register_builtin, register_panoptic
from spatialflow.modeling import FlowGraph, SpatialFlow, build_spatialflow_fpn_backbone
from spatialflow.utils.moved import keep_moved_modules

register_builtin()
keep_moved_modules(
    {
        "spatialflow.backbone": "spatialflow.modeling.backbone",
        "spatialflow.flows": "spatialflow.modeling.flow_graph",
        "spatialflow.fusion": "spatialflow.modeling.fusion",
        "spatialflow.heads": "spatialflow.modeling.heads",
        "spatialflow.losses": "spatialflow.modeling.losses",
        "spatialflow.packed": "spatialflow.modeling.layers.packed_conv",
        "spatialflow.trunks": "spatialflow.modeling.backbone.trunks",
        "spatialflow.visualize": "spatialflow.utils.visualize",
    }
)
