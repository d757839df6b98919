"""Values of config keys and of a genotype's choices that several layers share."""

ATTENTION_SITES = ("stuff.attention.levels", "stuff.attention.merged")
"""Names of a genotype's choices of attention.

``levels`` is a block after the last node of the stuff branch; all levels share its weights.
``merged`` is a block on the sum of the levels in the stuff head.
"""

ATTENTION_OPTIONS = ("none", "channel", "spatial", "cbam", "criss_cross", "non_local")
"""Options of a choice of attention; the first is the default."""

NODE_CONVS = ("plain", "deformable", "identity")
"""Options of the choice ``<node>.conv`` of a genotype; the first is the default.

A node of ``identity`` has no convolution: it adds or gates what flows bring to its input.
"""

POOLED_BRANCHES = ("region", "mask")
"""Branches from which boxes of objects are pooled."""

POOL_SOURCES = ("branch", "pyramid")
"""Values of ``MODEL.SPATIALFLOW.POOL_FROM``."""

RESIDUALS = ("none", "rms", "learned")
"""Values of ``MODEL.SPATIALFLOW.RESIDUAL``."""

ASSIGNMENTS = ("iou", "atss")
"""Values of ``MODEL.SPATIALFLOW.ASSIGNMENT``."""

FLOW_INITS = ("random", "zero")
"""Values of ``MODEL.SPATIALFLOW.FLOW_INIT``."""

STUFF_SOURCES = ("labels", "logits")
"""Values of ``MODEL.SPATIALFLOW.STUFF_FROM``."""

LOSS_NORMALIZERS = ("per_process", "global")
"""Values of ``MODEL.SPATIALFLOW.LOSS_NORMALIZER``."""

TRUNK_FEATURES = ("res3", "res4", "res5")
"""Feature maps of the trunk that the published pyramid reads, at strides 8, 16 and 32."""

FINER_TRUNK_FEATURES = ("res2", *TRUNK_FEATURES)
"""Feature maps of the trunk for a pyramid with P2, at strides 4 to 32."""

GROUP_NORM_GROUPS = 32
"""Groups of Detectron2's norm "GN"; the channels must be a multiple of it."""

SUPERNET = "SpatialFlowSupernet"
"""Value of ``MODEL.META_ARCHITECTURE`` in a search."""
