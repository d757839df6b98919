"""Options of config keys and of genotype choices: names that the network is built from."""

ATTENTION_SITES = ("stuff.attention.levels", "stuff.attention.merged")
"""Choices of a genotype: an attention block after the last node of the stuff branch, on each level
with one set of weights, and one where the stuff head has summed the levels."""

ATTENTION_OPTIONS = ("none", "channel", "spatial", "cbam", "criss_cross", "non_local")
"""Options of these choices, the default first."""

NODE_CONVS = ("plain", "deformable")
"""Options of a node's choice ``<node>.conv``, the default first."""

STUFF_SOURCES = ("labels", "logits")
"""``MODEL.SPATIALFLOW.STUFF_FROM``."""

LOSS_NORMALIZERS = ("per_process", "global")
"""``MODEL.SPATIALFLOW.LOSS_NORMALIZER``."""

TRUNK_FEATURES = ("res3", "res4", "res5")
"""Feature maps of a trunk that the pyramid reads."""

GROUP_NORM_GROUPS = 32
"""Groups of Detectron2's "GN"; channels must be a multiple of it."""

SUPERNET = "SpatialFlowSupernet"
"""``MODEL.META_ARCHITECTURE`` of a search."""
