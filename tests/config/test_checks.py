"""Values that a config may not have are named in one line; all others train."""

import re

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spatialflow import get_cfg
from spatialflow.config import configs_root
from spatialflow.config.checks import check_backbone_config, check_config, check_training_config

NAN, INF = float("nan"), float("inf")
FILES = sorted(str(path.relative_to(configs_root())) for path in configs_root().rglob("*.yaml"))

# For each key values that are wrong, and values that are unusual and right, for the tiny model.
VALUES = {
    "MODEL.DEVICE": (["warp", "cpu:x", "cuda:99"], ["cpu:0"]),
    "MODEL.PIXEL_MEAN": ([[], [1.0], [1.0, 2.0, NAN], ["a", "b", "c"]], [[0.0, 0.0, 0.0]]),
    "MODEL.PIXEL_STD": ([[1.0, 1.0], [1.0, 0.0, 1.0], [1.0, -1.0, 1.0]], [[1.0, 1.0, 1.0]]),
    "MODEL.FPN.OUT_CHANNELS": ([0, -32], [1, 48, 64]),
    "MODEL.FPN.NORM": (["gn", "EvalBN"], ["", "LN", "FrozenBN", "GN", "BN"]),
    "MODEL.BACKBONE.FREEZE_AT": ([-1, 6], [0, 5]),
    "MODEL.RESNETS.NORM": (["", "LN", "GN"], ["FrozenBN", "BN"]),
    "MODEL.RESNETS.DEPTH": ([20], []),
    "MODEL.RESNETS.STEM_OUT_CHANNELS": ([0], [3]),
    "MODEL.RESNETS.RES2_OUT_CHANNELS": ([-8], [5]),
    "MODEL.ANCHOR_GENERATOR.NAME": (["RotatedAnchorGenerator", "Mine"], []),
    "MODEL.ANCHOR_GENERATOR.OFFSET": ([1.0, -0.5, NAN], [0.5]),
    "MODEL.ANCHOR_GENERATOR.SIZES": (
        [
            [],
            [[]],
            [[8.0], [16.0]],
            [[8.0]] * 4 + [[8.0, 16.0]],
            [[0.0]],
            [[-8.0]],
            [[NAN]],
            [["8"]],
        ],
        [[[8.0]], [[2.0, 500.0]], [8.0, 16.0]],
    ),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": (
        [[], [[]], [[1.0], [2.0]], [[0.0]], [[-1.0]], [[INF]]],
        [[[1.0]], [1.0]],
    ),
    "MODEL.RETINANET.NUM_CLASSES": ([0, -1], [3, 9]),
    "MODEL.RETINANET.IN_FEATURES": (
        [[], ["p2"], ["p3", "p5"], ["p4", "p3"], ["p3", "p3"], ["res3"], [3]],
        [],
    ),
    "MODEL.RETINANET.NUM_CONVS": ([0, -1], [1, 2]),
    "MODEL.RETINANET.NORM": (["BN", "SyncBN", "EvalBN", "x"], ["GN", "LN", "FrozenBN"]),
    "MODEL.RETINANET.PRIOR_PROB": ([0.0, 1.0, -0.1, NAN], [0.5]),
    "MODEL.RETINANET.IOU_THRESHOLDS": (
        [[], [0.5], [0.5, 0.4], [0.0, 0.5], [0.4, 1.5], [NAN, 0.5]],
        [[0.3, 0.3], [0.1, 1.0]],
    ),
    "MODEL.RETINANET.IOU_LABELS": ([[], [0, 1], [0, 2, 1]], [[0, 0, 1]]),
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": (
        [(1.0, 1.0, 1.0), (0.0, 1.0, 1.0, 1.0), (1.0, 1.0, -1.0, 1.0)],
        [(10.0, 10.0, 5.0, 5.0)],
    ),
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": (["giou", ""], []),
    "MODEL.PANOPTIC_FPN.COMBINE.ENABLED": ([False], [True]),
    "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT": ([2.0], [1.0]),
    "MODEL.FPN.FUSE_TYPE": (["avg"], ["sum"]),
    "MODEL.FPN.IN_FEATURES": ([["res2", "res3"]], [[], ["res3", "res4", "res5"]]),
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": ([1.5, -0.5, NAN], [0.0, 1.0, -1.0]),
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": ([-1.0, INF], [0.0]),
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": ([-0.1], [0.1]),
    "MODEL.RETINANET.SCORE_THRESH_TEST": ([-0.1, 1.1, NAN], [0.0, 1.0]),
    "MODEL.RETINANET.NMS_THRESH_TEST": ([-0.1, 1.1], [0.0, 1.0]),
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": ([0, -1], [1]),
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": ([0, -1], [1, 4]),
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": (
        [[], ["p2", "p3"], ["p5", "p3"], ["p3", "p3"], ["p3", "p6"]],
        [["p3"], ["p5"], ["p3", "p5"]],
    ),
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": ([0, 48], [64]),
    "MODEL.SEM_SEG_HEAD.NORM": (["x"], ["", "LN", "BN"]),
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": ([0, 3, 16, 64, -4], [1, 2, 8]),
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": ([-1.0, NAN, INF], [0.0]),
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": ([0, 3], [255]),
    "MODEL.ROI_MASK_HEAD.CONV_DIM": ([0], [7]),
    "MODEL.ROI_MASK_HEAD.NUM_CONV": ([-1], [0]),
    "MODEL.ROI_MASK_HEAD.NORM": (["SyncBN", "x"], ["GN", "BN", "LN"]),
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": ([0, -14], [1, 7]),
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": ([-2], [-1, 2]),
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": (["ROIAlignRotated", "x"], ["ROIAlign", "ROIPool"]),
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": ([True], []),
    "MODEL.SPATIALFLOW.MASK_IN_FEATURES": (
        [[], ["p3", "p5"], ["p4", "p3"], ["p2"]],
        [["p3"], ["p5", "p6"], ["p3", "p4", "p5", "p6", "p7"]],
    ),
    "MODEL.SPATIALFLOW.MASK_CANONICAL_BOX_SIZE": ([0, -112], [1]),
    "MODEL.SPATIALFLOW.MASK_CANONICAL_LEVEL": ([-1], [0, 9]),
    "MODEL.SPATIALFLOW.MASK_PROPOSAL_IOU": ([0.0, 1.1, -0.5, NAN], [0.01, 1.0]),
    "MODEL.SPATIALFLOW.STUFF_FROM": (["pixels"], ["logits"]),
    "MODEL.SPATIALFLOW.LOSS_NORMALIZER": (["local"], ["global"]),
    "TEST.AMP.DTYPE": (["float32"], ["float16"]),
    "MODEL.SPATIALFLOW.BOX_FILL.THRESH": ([-0.1, 1.1], [0.0, 1.0]),
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": ([-0.1, 1.1, NAN], [0.0, 1.0]),
    "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH": ([-0.1, 1.1], [0.0, 1.0]),
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": ([-1], [0]),
    "TEST.DETECTIONS_PER_IMAGE": ([0, -1], [1, 300]),
}
TRAINING_VALUES = {
    "INPUT.FORMAT": (["XYZ", ""], ["BGR", "L"]),
    "INPUT.MIN_SIZE_TRAIN": ([(), (-1,), (320.0,), ("320",)], [(0,), (64, 32)]),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": (["range", "random"], ["choice"]),
    "INPUT.MAX_SIZE_TRAIN": ([0, -1], [1]),
    "INPUT.MIN_SIZE_TEST": ([-1], [0]),
    "INPUT.MAX_SIZE_TEST": ([0], [1]),
    "INPUT.RANDOM_FLIP": (["both", ""], ["none", "vertical"]),
    "INPUT.CROP.TYPE": (["square"], ["relative"]),
    "SOLVER.IMS_PER_BATCH": ([0, -2, 3], [2, 4]),
    "SOLVER.BASE_LR": ([0.0, -0.1, NAN, INF], [1e-9]),
    "SOLVER.MAX_ITER": ([0, -1, 30000], [1, 100]),
    "SOLVER.STEPS": ([(20, 10), (10, 10), (0,), (-5,), (40000,), (0.5,)], [(), (10, 20), (50000,)]),
    "SOLVER.GAMMA": ([-0.1], [1.0]),
    "SOLVER.MOMENTUM": ([-0.1], [0.0]),
    "SOLVER.WARMUP_ITERS": ([-1], [0]),
    "SOLVER.WARMUP_FACTOR": ([-0.1, NAN], [1.0]),
    "SOLVER.WARMUP_METHOD": (["exponential"], ["constant"]),
    "SOLVER.WEIGHT_DECAY": ([-0.1, NAN], [0.0]),
    "SOLVER.WEIGHT_DECAY_NORM": ([-0.1], [None, 0.0]),
    "SOLVER.WEIGHT_DECAY_BIAS": ([-0.1], [None, 0.0]),
    "SOLVER.BIAS_LR_FACTOR": ([-1.0], [2.0]),
    "SOLVER.TRUNK_MULTIPLIER": ([-1.0, INF], [0.0]),
    "SOLVER.CHECKPOINT_PERIOD": ([0, -1], [1]),
    "SOLVER.ACCUMULATION_STEPS": ([0, -1], [8]),
    "SOLVER.OPTIMIZER": (["Adam", ""], ["AdamW"]),
    "SOLVER.LR_SCHEDULER_NAME": (["Cosine"], ["WarmupCosineLR", "WarmupStepWithFixedGammaLR"]),
    "SOLVER.NUM_DECAYS": ([0], [1]),
    "SOLVER.AMP.DTYPE": (["float32"], ["float16"]),
    "DATALOADER.NUM_WORKERS": ([-1], [0]),
    "DATALOADER.REPEAT_THRESHOLD": ([-0.1], [0.5]),
    "TEST.EVAL_PERIOD": ([-1], [0, 7]),
}


def pairs(table, side):
    return [(key, value) for key, sides in table.items() for value in sides[side]]


def put(cfg: CfgNode, changes):
    """Set keys whatever the type of the values: Python code may, and YAML's lists may hold all."""
    for key, value in changes.items():
        *path, name = key.split(".")
        node = cfg
        for part in path:
            node = node[part]
        node[name] = value
    return cfg


def problem_of(check, *args):
    """The one line that a check raises."""
    with pytest.raises(ValueError, match="given, .*expected") as raised:
        check(*args)
    message = str(raised.value)
    assert "\n" not in message
    return message


def short(value):
    return re.sub(r"\W+", " ", str(value))


@pytest.mark.parametrize(("key", "value"), pairs(VALUES, 0), ids=short)
def test_wrong_values_of_the_model_are_named(tiny_cfg, key, value):
    cfg = put(tiny_cfg(), {key: value})
    message = problem_of(check_config, cfg)
    assert message.count("given") == message.count("also") + 1
    assert key.rpartition(".")[2] in message
    assert problem_of(build_model, cfg) == message


@pytest.mark.parametrize(("key", "value"), pairs(TRAINING_VALUES, 0), ids=short)
def test_wrong_values_of_training_are_named(tiny_cfg, key, value):
    message = problem_of(check_training_config, put(tiny_cfg(), {key: value}), 2)
    assert key.rpartition(".")[2] in message


@pytest.mark.parametrize(("key", "value"), pairs(TRAINING_VALUES, 1), ids=short)
def test_unusual_values_of_training_pass(tiny_cfg, key, value):
    check_training_config(put(tiny_cfg(), {key: value}), 2)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"TYPE": "absolute", "SIZE": [0.5, 0.5]}, "SIZE"),
        ({"TYPE": "absolute", "SIZE": [64]}, "SIZE"),
        ({"TYPE": "absolute_range", "SIZE": [64, 32]}, "SIZE"),
        ({"TYPE": "relative", "SIZE": [1.5, 1.0]}, "SIZE"),
        ({"TYPE": "relative_range", "SIZE": [0.0, 1.0]}, "SIZE"),
        ({"TYPE": "absolute", "SIZE": [64, 32]}, ""),
        ({"TYPE": "relative_range", "SIZE": [1.0, 0.3]}, ""),
    ],
)
def test_crops(tiny_cfg, changes, wrong):
    cfg = put(tiny_cfg(), {f"INPUT.CROP.{key}": value for key, value in changes.items()})
    check_training_config(cfg, 1)  # a crop that is not made may be anything
    cfg.INPUT.CROP.ENABLED = True
    if wrong:
        assert problem_of(check_training_config, cfg, 1).startswith("INPUT.CROP.SIZE: [")
    else:
        check_training_config(cfg, 1)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"CLIP_GRADIENTS.CLIP_TYPE": "full_model"}, "CLIP_TYPE"),
        ({"CLIP_GRADIENTS.CLIP_VALUE": 0.0}, "CLIP_VALUE"),
        ({"CLIP_GRADIENTS.NORM_TYPE": 0.0}, "NORM_TYPE"),
        ({"NESTEROV": True, "MOMENTUM": 0.0}, "MOMENTUM"),
        ({"LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR_END": 1.0}, "BASE_LR_END"),
        ({"REFERENCE_WORLD_SIZE": 5}, "IMS_PER_BATCH"),
        ({"REFERENCE_WORLD_SIZE": -1}, "REFERENCE_WORLD_SIZE"),
    ],
)
def test_settings_of_the_solver_that_do_not_go_together(tiny_cfg, changes, wrong):
    keys = {f"SOLVER.{key}": value for key, value in changes.items()}
    cfg = put(tiny_cfg(), {"SOLVER.CLIP_GRADIENTS.ENABLED": True, **keys})
    assert f"{wrong}: " in problem_of(check_training_config, cfg, 1)


def test_a_batch_is_shared_by_the_processes_it_was_written_for(tiny_cfg):
    cfg = put(tiny_cfg(), {"SOLVER.IMS_PER_BATCH": 6, "SOLVER.REFERENCE_WORLD_SIZE": 3})
    check_training_config(cfg, 4)
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
    expected = "SOLVER.IMS_PER_BATCH: 6 given, a multiple of the number of processes, 4, expected"
    assert problem_of(check_training_config, cfg, 4) == expected


def test_all_that_is_wrong_is_named_at_once(tiny_cfg):
    wrong = {"MODEL.FPN.OUT_CHANNELS": 48, "MODEL.RETINANET.NORM": "GN", "MODEL.FPN.NORM": "GN"}
    message = problem_of(check_config, put(tiny_cfg(), wrong))
    assert message == (
        "MODEL.RETINANET.NORM: 'GN' given, MODEL.FPN.OUT_CHANNELS a multiple of 32 or another norm "
        "expected; also MODEL.FPN.NORM: 'GN' given, OUT_CHANNELS a multiple of 32 or another norm "
        "expected"
    )


def test_long_values_are_cut(tiny_cfg):
    cfg = put(tiny_cfg(), {"MODEL.ANCHOR_GENERATOR.SIZES": [[8.0] * 100] * 4})
    message = problem_of(check_config, cfg)
    assert "…" in message
    assert len(message) < 300


def test_the_backbone_alone_and_another_backbone(tiny_cfg):
    cfg = put(tiny_cfg(), {"MODEL.RESNETS.DEPTH": 20, "MODEL.RETINANET.NUM_CONVS": 0})
    expected = "MODEL.RESNETS.DEPTH: 20 given, one of 18, 34, 50, 101, 152 expected"
    assert problem_of(check_backbone_config, cfg) == expected
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    assert problem_of(check_config, cfg).startswith("MODEL.RETINANET.NUM_CONVS: 0 given")
    cfg.MODEL.BACKBONE.NAME = "build_mine"
    assert problem_of(check_config, cfg).startswith("MODEL.BACKBONE.NAME: 'build_mine' given")


def test_group_norm_in_the_trunk(tiny_cfg):
    widths = {f"MODEL.RESNETS.{key}_OUT_CHANNELS": 32 for key in ("STEM", "RES2")}
    cfg = put(tiny_cfg(), {"MODEL.RESNETS.NORM": "GN", **widths})
    check_config(cfg)
    put(cfg, {"MODEL.RESNETS.DEPTH": 50, "MODEL.RESNETS.WIDTH_PER_GROUP": 8})
    assert problem_of(check_config, cfg).startswith("MODEL.RESNETS.NORM: 'GN' given, STEM")
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 32
    check_config(cfg)


def test_grey_images_have_one_channel(tiny_cfg, make_input):
    cfg = put(tiny_cfg(), {"MODEL.PIXEL_MEAN": [100.0], "MODEL.PIXEL_STD": [50.0]})
    assert problem_of(check_config, cfg).startswith("MODEL.PIXEL_MEAN: [100.0] given")
    cfg.INPUT.FORMAT = "L"
    result = build_model(cfg).eval()([{"image": make_input(40, 50)["image"][:1]}])
    assert result[0]["sem_seg"].shape == (4, 40, 50)


@pytest.mark.parametrize("file", FILES)
def test_every_config_of_ours_passes(file):
    cfg = get_cfg(file, ["MODEL.DEVICE", "cpu"])
    check_training_config(cfg, 1)
    for node in (cfg.MODEL.RETINANET, cfg.MODEL.SEM_SEG_HEAD):
        node.NUM_CLASSES = abs(node.NUM_CLASSES)  # the small ones take it from the data
    check_config(cfg)


def assert_trains(cfg, batch):
    """Build a model and take a step in which all that learns gets a finite gradient."""
    model = build_model(cfg).train()
    for item in batch:
        known = item["sem_seg"] < cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        item["sem_seg"] = item["sem_seg"].where(known, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    for name, value in losses.items():
        assert torch.isfinite(value), name
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, f"unused: {name}"
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    return model


@pytest.mark.parametrize(("key", "value"), pairs(VALUES, 1), ids=short)
def test_unusual_values_train(tiny_cfg, make_input, key, value):
    # The published flows need four stages.
    changes = {"MODEL.SPATIALFLOW.GENOTYPE": "parallel", key: value}
    assert_trains(put(tiny_cfg(), changes), [make_input(64, 40)] * 2)


@pytest.mark.parametrize("last", ["p4", "p5", "p6"])
def test_levels_that_nobody_reads_learn_nothing(tiny_cfg, make_input, last):
    few = [last]
    changes = {
        "MODEL.RETINANET.IN_FEATURES": few,
        "MODEL.ANCHOR_GENERATOR.SIZES": [[8.0]],
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["p5"],
        "MODEL.SPATIALFLOW.MASK_IN_FEATURES": few,
        "MODEL.SPATIALFLOW.GENOTYPE": "parallel",
    }
    model = assert_trains(put(tiny_cfg(), changes), [make_input(64, 40)] * 2)
    assert not model.backbone.top_block.p7.weight.requires_grad
    assert model.backbone.fpn_lateral5.weight.requires_grad


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(data=st.data())
def test_any_values_are_named_or_train(tiny_cfg, make_input, data):
    keys = data.draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=4, unique=True))
    values = {key: [*VALUES[key][0], *VALUES[key][1]] for key in keys}
    # Mostly values that are right alone, for what they make together.
    right = {key: VALUES[key][1] or VALUES[key][0] for key in keys}
    chosen = data.draw(st.sampled_from([values, right, right]))
    changes = {key: data.draw(st.sampled_from(chosen[key]), label=key) for key in keys}
    cfg = put(tiny_cfg({"MODEL.SPATIALFLOW.GENOTYPE": "parallel"}), changes)
    try:
        check_config(cfg)
    except ValueError:
        message = problem_of(build_model, cfg)
        assert any(key.rpartition(".")[2] in message for key in keys), message
        return
    assert_trains(cfg, [make_input(40, 33)] * 2)
