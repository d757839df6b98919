"""Wrong values of a config are named in one line; unusual right values train."""

import re

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from spatialflow import get_cfg
from spatialflow.config import configs_root
from spatialflow.config.checks import check_backbone_config, check_config
from spatialflow.config.rules import value_of
from spatialflow.config.training_checks import check_training_config
from spatialflow.engine import Trainer

NAN, INF = float("nan"), float("inf")
FILES = sorted(str(path.relative_to(configs_root())) for path in configs_root().rglob("*.yaml"))

# For each key wrong values, and unusual right values, for the tiny model with BASE.
VALUES = {
    "MODEL.DEVICE": (["warp", "cpu:x", "cuda:99"], ["cpu:0"]),
    "MODEL.PIXEL_MEAN": ([[], [1.0], [1.0, 2.0, NAN], ["a", "b", "c"]], [[0.0, 0.0, 0.0]]),
    "MODEL.PIXEL_STD": ([[1.0, 1.0], [1.0, 0.0, 1.0], [1.0, -1.0, 1.0]], [[1.0, 1.0, 1.0]]),
    "MODEL.BACKBONE.NAME": (["build_resnet"], []),
    "MODEL.FPN.OUT_CHANNELS": ([0], [1, 48, 64]),
    "MODEL.FPN.NORM": (["gn", "EvalBN"], ["", "LN", "FrozenBN", "GN", "BN"]),
    "MODEL.FPN.FUSE_TYPE": (["avg"], []),
    "MODEL.FPN.IN_FEATURES": ([["res2", "res3"]], [["res3", "res4", "res5"]]),
    "MODEL.BACKBONE.FREEZE_AT": ([-1, 6], [0, 5]),
    "MODEL.RESNETS.NORM": (["", "LN", "gn"], ["FrozenBN", "BN"]),
    "MODEL.RESNETS.DEPTH": ([20], []),
    "MODEL.RESNETS.WIDTH_PER_GROUP": ([0], [1]),
    "MODEL.RESNETS.RES2_OUT_CHANNELS": ([0], []),
    "MODEL.RESNETS.OUT_FEATURES": ([["res4"]], [["res2", "res3", "res4", "res5"]]),
    "MODEL.RESNETS.RES5_DILATION": ([2], []),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": ([[False], [False, False, False, True]], []),
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": ([2], []),
    "MODEL.ANCHOR_GENERATOR.NAME": (["RotatedAnchorGenerator", "Anchors"], []),
    "MODEL.ANCHOR_GENERATOR.OFFSET": ([-0.1, 1.0], [0.5]),
    "MODEL.ANCHOR_GENERATOR.SIZES": (
        [[], [[]], [[8.0], [16.0]], [[8.0]] * 4 + [[8.0, 16.0]], [[0.0]], [[NAN]], [["8"]]],
        [[[8.0]], [[2.0, 500.0]], [8.0, 16.0]],
    ),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": ([[], [[1.0], [2.0]], [[-1.0]]], [[[1.0]], [1.0]]),
    "MODEL.RETINANET.NUM_CLASSES": ([0, -1], [3, 9]),
    "MODEL.RETINANET.IN_FEATURES": ([[], ["p2"], ["p3", "p5"], ["p4", "p3"], ["res3"], [3]], []),
    "MODEL.RETINANET.NUM_CONVS": ([0], [1]),
    "MODEL.RETINANET.NORM": (["BN", "SyncBN", "EvalBN"], ["GN", "LN", "FrozenBN"]),
    "MODEL.RETINANET.PRIOR_PROB": ([0.0, 1.0, NAN], [0.5]),
    "MODEL.RETINANET.IOU_THRESHOLDS": ([[0.5], [0.4, 1.5], [0.5, 0.4], [0.0, 0.5]], [[0.1, 1.0]]),
    "MODEL.RETINANET.IOU_LABELS": ([[], [0, 1], [0, 1, 2]], [[0, 0, 1]]),
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": (
        [(0.0, 1.0, 1.0, 1.0), (1.0, 1.0)],
        [(10.0, 10.0, 5.0, 5.0)],
    ),
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": (["giou"], []),
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": ([1.5, NAN], [0.0, 1.0, -1.0]),
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": ([-1.0, INF], [0.0]),
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": ([-0.1], [0.1]),
    "MODEL.RETINANET.SCORE_THRESH_TEST": ([-0.1, 1.1, NAN], [0.0, 1.0]),
    "MODEL.RETINANET.NMS_THRESH_TEST": ([1.1], [0.0, 1.0]),
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": ([0, -1], [1]),
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": ([0, -1], [1, 4]),
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": (
        [[], ["p2", "p3"], ["p5", "p3"], ["p3", "p3"], ["p3", "p6"]],
        [["p3"], ["p5"], ["p3", "p5"]],
    ),
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": ([48, 0], [64]),
    "MODEL.SEM_SEG_HEAD.NORM": (["x"], ["", "LN", "BN"]),
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": ([0, 3, 16, -4], [1, 2, 8]),
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": ([-1.0, NAN], [0.0]),
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": ([0, 3], [255]),
    "MODEL.ROI_MASK_HEAD.NORM": (["SyncBN", "x"], ["GN", "BN", "LN"]),
    "MODEL.ROI_MASK_HEAD.NUM_CONV": ([-1], [0]),
    "MODEL.ROI_MASK_HEAD.CONV_DIM": ([0], []),
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": ([0], []),
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": ([True], []),
    "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT": ([2.0], []),
    "MODEL.PANOPTIC_FPN.COMBINE.ENABLED": ([False], []),
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": ([-0.1, NAN], [0.0, 1.0]),
    "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH": ([1.1], [0.0, 1.0]),
    "MODEL.SPATIALFLOW.MASK_IN_FEATURES": (
        [[], ["p3", "p5"], ["p4", "p3"], ["p2"]],
        [["p3"], ["p5", "p6"], ["p3", "p4", "p5", "p6", "p7"]],
    ),
    "MODEL.SPATIALFLOW.MASK_CANONICAL_BOX_SIZE": ([0], [1]),
    "MODEL.SPATIALFLOW.MASK_CANONICAL_LEVEL": ([-1], [0, 9]),
    "MODEL.SPATIALFLOW.MASK_PROPOSAL_IOU": ([0.0, 1.1, NAN], [0.01, 1.0]),
    "MODEL.SPATIALFLOW.STUFF_FROM": (["pixels"], ["logits"]),
    "MODEL.SPATIALFLOW.LOSS_NORMALIZER": (["local"], ["global"]),
    "MODEL.SPATIALFLOW.BOX_FILL.THRESH": ([-0.1, 1.1], [0.0, 1.0]),
    "TEST.AMP.DTYPE": (["float32"], ["float16"]),
    "TEST.DETECTIONS_PER_IMAGE": ([0, -1], [1, 300]),
    "INPUT.FORMAT": (["XYZ"], ["BGR"]),
    "INPUT.MIN_SIZE_TRAIN": ([(), (-1,), ("320",)], [(0,), (64, 32)]),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": (["range", "random"], []),
    "INPUT.MAX_SIZE_TRAIN": ([0], [1]),
    "INPUT.MIN_SIZE_TEST": ([-1], [0]),
    "INPUT.MAX_SIZE_TEST": ([0], [1]),
    "INPUT.RANDOM_FLIP": (["both"], ["none", "vertical"]),
    "INPUT.CROP.TYPE": (["square"], ["relative"]),
    "INPUT.CROP.SIZE": ([[0.5], [1.5, 1.0], [0.0, 1.0]], [[1.0, 0.3]]),
    "SOLVER.BASE_LR": ([0.0, NAN, INF], [1e-9]),
    "SOLVER.MAX_ITER": ([0], [1]),
    "SOLVER.STEPS": ([(0,), (0.5,)], [(), (10, 20), (50000,)]),
    "SOLVER.GAMMA": ([-0.1], [1.0]),
    "SOLVER.WARMUP_ITERS": ([-1], [0]),
    "SOLVER.WARMUP_FACTOR": ([-0.1, NAN], [1.0]),
    "SOLVER.WEIGHT_DECAY_NORM": ([-0.1], [None, 0.0]),
    "SOLVER.WEIGHT_DECAY_BIAS": ([-0.1], [None, 0.0]),
    "SOLVER.BIAS_LR_FACTOR": ([-1.0], [2.0]),
    "SOLVER.TRUNK_MULTIPLIER": ([-1.0, INF], [0.0]),
    "SOLVER.CHECKPOINT_PERIOD": ([0], [1]),
    "SOLVER.ACCUMULATION_STEPS": ([0], [8]),
    "SOLVER.IMS_PER_BATCH": ([0, -2], [1]),
    "SOLVER.REFERENCE_WORLD_SIZE": ([3, -1], [0, 2]),
    "SOLVER.OPTIMIZER": (["Adam"], ["AdamW"]),
    "SOLVER.AMP.DTYPE": (["float32"], ["float16"]),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": ([0.0], [0.1]),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": ([0.0], [INF]),
    "DATALOADER.REPEAT_THRESHOLD": ([-0.1], [0.5]),
}
BASE = {
    "MODEL.SPATIALFLOW.GENOTYPE": "parallel",  # The published flows need four stages.
    "INPUT.CROP.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "SOLVER.IMS_PER_BATCH": 2,
}
MODEL_KEYS = sorted(key for key in VALUES if key.startswith(("MODEL", "TEST")))


def pairs(keys, side):
    return [(key, value) for key in keys for value in VALUES[key][side]]


def put(cfg: CfgNode, changes):
    """Set keys to values of any type: Python code may, and lists in YAML may hold anything."""
    for key, value in changes.items():
        node, _, name = key.rpartition(".")
        value_of(cfg, node)[name] = value
    return cfg


def check(cfg):
    check_config(cfg)
    check_training_config(cfg, processes=1)


def problem_of(check, cfg):
    """Return the one line that a check raises."""
    with pytest.raises(ValueError, match="given, .*expected") as raised:
        check(cfg)
    message = str(raised.value)
    assert "\n" not in message
    return message


def short(value):
    return re.sub(r"\W+", " ", str(value))


@pytest.mark.parametrize(("key", "value"), pairs(VALUES, 0), ids=short)
def test_wrong_values_are_named(tiny_cfg, key, value):
    message = problem_of(check, put(tiny_cfg(), {**BASE, key: value}))
    assert message.count("given") == message.count("also") + 1
    assert key.rpartition(".")[2] in message


@pytest.mark.parametrize(("key", "value"), pairs(VALUES, 1), ids=short)
def test_unusual_values_pass(tiny_cfg, key, value):
    check(put(tiny_cfg(), {**BASE, key: value}))


def test_a_model_and_a_trainer_check_their_configs(tiny_cfg):
    wrong = {"MODEL.RETINANET.NUM_CONVS": 0, "SOLVER.MAX_ITER": 0}
    assert "NUM_CONVS: 0 given" in problem_of(build_model, put(tiny_cfg(), wrong))
    assert "MAX_ITER: 0 given" in problem_of(Trainer, put(tiny_cfg(), wrong))


EXPECTED = ["panoptic_seg", "PQ", 50.0, 1.0]
COSINE = {"SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR"}


@pytest.mark.parametrize(
    ("wrong", "repair"),
    [
        ({"INPUT.CROP.SIZE": [64, 32]}, {"INPUT.CROP.TYPE": "absolute"}),
        ({"INPUT.CROP.SIZE": [64, 32]}, {"INPUT.CROP.ENABLED": False}),
        ({"SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.0}, {"SOLVER.CLIP_GRADIENTS.ENABLED": False}),
        ({"SOLVER.BASE_LR_END": 1.0, **COSINE}, {"SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR"}),
        ({"INPUT.MIN_SIZE_TRAIN_SAMPLING": "range"}, {"INPUT.MIN_SIZE_TRAIN": (32, 64)}),
        ({"SOLVER.REFERENCE_WORLD_SIZE": 3}, {"SOLVER.IMS_PER_BATCH": 6}),
        ({"MODEL.PIXEL_MEAN": [0.0], "MODEL.PIXEL_STD": [1.0]}, {"INPUT.FORMAT": "L"}),
        ({"MODEL.RESNETS.DEPTH": 20}, {"MODEL.SPATIALFLOW.TRUNK": "mobilenet_v2"}),
        (
            {"TEST.AUG.ENABLED": True, "TEST.AUG.MIN_SIZES": []},
            {"TEST.AUG.MIN_SIZES": [1, 480]},
        ),
        (
            {"TEST.PRECISE_BN.ENABLED": True, "TEST.PRECISE_BN.NUM_ITER": 0},
            {"TEST.PRECISE_BN.ENABLED": False},
        ),
        ({"TEST.EXPECTED_RESULTS": [EXPECTED]}, {"DATASETS.TEST": ("scenes_val",)}),
        ({"TEST.EXPECTED_RESULTS": [EXPECTED[:3]]}, {"TEST.EXPECTED_RESULTS": []}),
        ({"TEST.EXPECTED_RESULTS": [["sem_seg", *EXPECTED[1:]]]}, {"TEST.EXPECTED_RESULTS": []}),
    ],
    ids=short,
)
def test_values_that_depend_on_another_key(tiny_cfg, wrong, repair):
    cfg = put(tiny_cfg(), {**BASE, **wrong})
    problem_of(check, cfg)
    check(put(cfg, repair))


def test_all_wrong_keys_are_named_at_once(tiny_cfg):
    wrong = {"MODEL.FPN.OUT_CHANNELS": 48, "MODEL.RETINANET.NORM": "GN", "MODEL.FPN.NORM": "GN"}
    message = problem_of(check_config, put(tiny_cfg(), wrong))
    expected = "'GN' given, MODEL.FPN.OUT_CHANNELS a multiple of 32 or another norm expected"
    assert message == f"MODEL.RETINANET.NORM: {expected}; also MODEL.FPN.NORM: {expected}"


def test_a_batch_is_shared_by_the_processes(tiny_cfg):
    cfg = put(tiny_cfg(), {"SOLVER.IMS_PER_BATCH": 6})
    check_training_config(cfg, processes=3)
    message = problem_of(lambda c: check_training_config(c, processes=4), cfg)
    assert message.startswith(
        "SOLVER.IMS_PER_BATCH: 6 given, a multiple of the number of processes"
    )


def test_long_values_are_cut(tiny_cfg):
    cfg = put(tiny_cfg(), {"MODEL.ANCHOR_GENERATOR.SIZES": [[8.0] * 100] * 4})
    assert " … given" in problem_of(check, cfg)


def test_the_backbone_alone_and_another_backbone(tiny_cfg):
    cfg = put(tiny_cfg(), {"MODEL.RESNETS.DEPTH": 20, "MODEL.RETINANET.NUM_CONVS": 0})
    assert problem_of(check_backbone_config, cfg) == (
        "MODEL.RESNETS.DEPTH: 20 given, one of 18, 34, 50, 101, 152 "
        "(with MODEL.SPATIALFLOW.TRUNK 'resnet') expected"
    )
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    assert problem_of(check_config, cfg) == "MODEL.RETINANET.NUM_CONVS: 0 given, 1 to 100 expected"


@pytest.mark.parametrize("file", FILES)
def test_every_config_of_ours_passes(file):
    cfg = get_cfg(file, ["MODEL.DEVICE", "cpu"])
    check_training_config(cfg, processes=1)
    for node in (cfg.MODEL.RETINANET, cfg.MODEL.SEM_SEG_HEAD):
        node.NUM_CLASSES = abs(node.NUM_CLASSES)  # -1 in configs that take it from the data
    check_config(cfg)


def assert_trains(cfg, batch):
    """Build a model and check that all losses and gradients of one step are finite."""
    model = build_model(cfg).train()
    for item in batch:
        known = item["sem_seg"] < cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        item["sem_seg"] = item["sem_seg"].where(known, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    assert all(map(torch.isfinite, losses.values())), losses
    learning = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, grad in learning.items() if grad is None or not grad.isfinite().all()] == []
    return model


@pytest.mark.parametrize("last", ["p4", "p5", "p6"])
def test_unread_levels_learn_nothing(tiny_cfg, make_input, last):
    changes = {
        "MODEL.RETINANET.IN_FEATURES": [last],
        "MODEL.ANCHOR_GENERATOR.SIZES": [[8.0]],
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["p5"],
        "MODEL.SPATIALFLOW.MASK_IN_FEATURES": [last],
        "MODEL.SPATIALFLOW.GENOTYPE": "parallel",
    }
    model = assert_trains(put(tiny_cfg(), changes), [make_input(64, 40)] * 2)
    assert not model.backbone.top_block.p7.weight.requires_grad
    assert model.backbone.fpn_lateral5.weight.requires_grad


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=8)
@given(data=st.data())
def test_unusual_values_train_together(tiny_cfg, make_input, data):
    right = {key: VALUES[key][1] for key, _ in pairs(MODEL_KEYS, 1)}
    keys = data.draw(st.lists(st.sampled_from(sorted(right)), min_size=1, max_size=3, unique=True))
    changes = {key: data.draw(st.sampled_from(right[key]), label=key) for key in keys}
    cfg = put(tiny_cfg(), {**BASE, **changes})
    try:
        check(cfg)
    except ValueError:
        assume(False)
    assert_trains(cfg, [make_input(40, 33)] * 2)
