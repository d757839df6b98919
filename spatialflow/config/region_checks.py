"""Rules for the region head: ``MODEL.RPN``, ``MODEL.ROI_HEADS`` and ``MODEL.ROI_BOX_HEAD``.

The reasons for a rule are those of :mod:`spatialflow.config.checks`.
"""

from __future__ import annotations

from spatialflow.config.levels import LEVEL_NAMES, are_consecutive_levels
from spatialflow.config.rules import Rule, above_zero, in_range, matching, norm, one_of

MOST_LAYERS = 100
"""Number of layers in a row from which building a network would take too long."""
MOST_CHANNELS = 16384

REGION_RULES: tuple[Rule, ...] = (
    ("MODEL.ROI_HEADS.IN_FEATURES", LEVEL_NAMES, are_consecutive_levels),
    *in_range(1, 1e6, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"),
    (
        "MODEL.ROI_HEADS.POSITIVE_FRACTION",
        "1 or more objects in a sample of BATCH_SIZE_PER_IMAGE proposals",
        lambda v, c: int(v * c.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE) >= 1,
    ),
    *in_range(1, 1e6, "MODEL.RPN.POST_NMS_TOPK_TRAIN", "MODEL.RPN.POST_NMS_TOPK_TEST"),
    *in_range(
        0,
        1,
        "MODEL.RPN.NMS_THRESH",
        "MODEL.ROI_HEADS.POSITIVE_FRACTION",
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
        "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    ),
    *matching("MODEL.ROI_HEADS"),
    one_of("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"),
    one_of("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "smooth_l1", "giou", "diou", "ciou"),
    *in_range(
        0, 1e6, "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA"
    ),
    ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", "4 numbers", lambda v, _: len(v) == 4),
    *above_zero("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS"),
    one_of("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign", "ROIAlignV2", "ROIPool"),
    *in_range(1, 64, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"),
    *in_range(0, 64, "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO"),
    *in_range(0, MOST_LAYERS, "MODEL.ROI_BOX_HEAD.NUM_FC", "MODEL.ROI_BOX_HEAD.NUM_CONV"),
    (
        "MODEL.ROI_BOX_HEAD.NUM_FC",
        "1 or more, or NUM_CONV of 1 or more,",
        lambda v, c: v + c.MODEL.ROI_BOX_HEAD.NUM_CONV >= 1,
    ),
    *in_range(1, MOST_CHANNELS, "MODEL.ROI_BOX_HEAD.FC_DIM", "MODEL.ROI_BOX_HEAD.CONV_DIM"),
    *norm("MODEL.ROI_BOX_HEAD.NORM", "MODEL.ROI_BOX_HEAD.CONV_DIM", "BN"),
    # Only these values are built.
    one_of("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", False),
    one_of("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", False),
    one_of("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", False),
)
