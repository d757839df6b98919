"""The network computes what the authors' code computes."""

import dataclasses

import numpy as np
import pytest
import torch

from spatialflow import get_cfg
from spatialflow.reference.parity import check_parity, read_fixture, things_other_index
from spatialflow.reference.parity.fusion import partition_difference
from spatialflow.reference.parity.network import match_detections

# What the authors' code was given, as against what it gave.
INPUTS = {
    "image_rgb",
    "final.size",
    "fusion.masks_packed",
    "fusion.boxes",
    "fusion.scores",
    "fusion.labels",
    "fusion.semantic",
    "train.gt_boxes",
    "train.gt_labels",
    "train.gt_masks",
    "train.gt_semantic",
}
LARGEST_COMPACT_COPY = 2_000_000  # bytes


def failed(result):
    return {row.key for row in result.rows if not row.holds}


def changed(value):
    """Return an array that differs in every entry by more than any tolerance."""
    if value.dtype == np.uint8:
        return value ^ 0xFF
    return value + np.asarray(1, dtype=value.dtype)


def test_compact_fixture_holds(compact_folder, narrow_config):
    result = check_parity(read_fixture(compact_folder), get_cfg(narrow_config))
    assert failed(result) == set()
    assert result.compact
    assert sum(file.stat().st_size for file in compact_folder.iterdir()) <= LARGEST_COMPACT_COPY


def test_full_fixture_holds(full_fixture, narrow_config):
    result = check_parity(read_fixture(full_fixture), get_cfg(narrow_config))
    assert failed(result) == set()
    assert not result.compact


def test_compact_fixture_is_the_full_one_rounded(full_fixture, compact_folder):
    full, compact = read_fixture(full_fixture), read_fixture(compact_folder)
    assert list(compact.arrays) == list(full.arrays)
    for key, value in full.arrays.items():
        np.testing.assert_array_equal(compact.arrays[key], compact.sample(key, value))
    assert list(compact.checkpoint) == list(full.checkpoint)
    for name, value in full.checkpoint.items():
        assert compact.checkpoint[name].dtype == value.dtype
        rows = value.reshape(max(len(value.shape) and value.shape[0], 1), -1).double()
        error = (compact.checkpoint[name].reshape(rows.shape).double() - rows).abs()
        half_a_step = rows.abs().amax(dim=1, keepdim=True) / 32767 / 2
        assert (error <= 1.01 * half_a_step).all(), name


def test_every_expected_value_is_compared(compact_folder, narrow_config):
    fixture = read_fixture(compact_folder)
    outputs = set(fixture.arrays) - INPUTS
    for key in outputs:
        fixture.arrays[key] = changed(fixture.arrays[key])
    assert failed(check_parity(fixture, get_cfg(narrow_config))) == outputs


def test_one_wrong_detection_is_enough(compact_folder, narrow_config):
    fixture = read_fixture(compact_folder)
    fixture.arrays["final.masks_packed"][7] ^= 0xFF
    fixture.arrays["detections.labels"][7] += 1
    assert failed(check_parity(fixture, get_cfg(narrow_config))) == {
        "final.masks_packed",
        "detections.boxes_network_scale",
        "detections.scores",
        "detections.labels",
        "detections.mask_logits",
    }


def test_nan_does_not_hold(compact_folder, narrow_config):
    fixture = read_fixture(compact_folder)
    outputs = {"fpn.p3", "train.loss_cls", "detections.scores"}
    for key in outputs:
        fixture.arrays[key] = np.full_like(fixture.arrays[key], np.nan)
    assert failed(check_parity(fixture, get_cfg(narrow_config))) >= outputs


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["MODEL.ANCHOR_GENERATOR.OFFSET", "0.5"], {"detections.boxes_network_scale"}),
        (["MODEL.RETINANET.NMS_THRESH_TEST", "0.5"], {"detections.labels", "final.labels"}),
        (["MODEL.SPATIALFLOW.MASK_CANONICAL_LEVEL", "5"], {"train.loss_mask"}),
        (["MODEL.RESNETS.NORM", "FrozenBN"], {"train.grad_norm"}),
        (["MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", "0.5"], {"train.loss_stuff"}),
        (["MODEL.RESNETS.STRIDE_IN_1X1", "True"], {"fpn.p3"}),
        (["MODEL.PIXEL_MEAN", "[103.53, 116.28, 123.675]"], {"fpn.p3", "cls_logits.p3"}),
    ],
)
def test_another_model_is_noticed(compact_folder, narrow_config, options, expected):
    result = check_parity(read_fixture(compact_folder), get_cfg(narrow_config, options))
    assert failed(result) >= expected


def test_unknown_values_are_not_passed_over(compact_folder, narrow_config):
    fixture = read_fixture(compact_folder)
    fixture.arrays["attention.p3"] = np.zeros(3)
    fixture.arrays["train.grad_norm.no.such.parameter"] = np.asarray(1.0)
    result = check_parity(fixture, get_cfg(narrow_config))
    assert failed(result) == {"attention.p3", "train.grad_norm.no.such.parameter"}


def test_missing_value_is_named(compact_folder, narrow_config):
    fixture = read_fixture(compact_folder)
    del fixture.arrays["stuff_logits"]
    with pytest.raises(ValueError, match="`stuff_logits` is not in"):
        check_parity(fixture, get_cfg(narrow_config))


def test_tool_exit_status(check_parity_tool, compact_folder, narrow_config, capsys):
    arguments = [str(compact_folder), "--config-file", str(narrow_config)]
    assert check_parity_tool.main(arguments) == 0
    assert "all rows hold" in capsys.readouterr().out
    assert check_parity_tool.main([*arguments, "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", "1.0"]) == 1
    assert "FAILED: train.loss_stuff" in capsys.readouterr().out
    assert check_parity_tool.main([*arguments, "--things-other-index", "1"]) == 1
    assert "fusion.plain.segment_ids" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="MODEL.RETINANET.NUM_CLASSES: got 7, expected 5"):
        check_parity_tool.main([*arguments, "MODEL.RETINANET.NUM_CLASSES", "7"])


def test_unreadable_fixture_is_named(check_parity_tool, tmp_path, narrow_config):
    arguments = [str(tmp_path), "--config-file", str(narrow_config)]
    with pytest.raises(SystemExit, match="expected.npz: no such file"):
        check_parity_tool.main(arguments)
    (tmp_path / "expected.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(SystemExit, match="expected.npz is not readable"):
        check_parity_tool.main(arguments)


def test_things_other_is_found_in_the_fixture(compact_folder):
    fixture = read_fixture(compact_folder)
    assert things_other_index(fixture) == 4
    shifted = {**fixture.arrays, "train.gt_semantic": (fixture.arrays["train.gt_semantic"] + 3) % 5}
    assert things_other_index(dataclasses.replace(fixture, arrays=shifted)) == 2
    unknown = {key: value for key, value in fixture.arrays.items() if key != "train.gt_masks"}
    assert things_other_index(dataclasses.replace(fixture, arrays=unknown)) == 4
    coco = {"stuff_head.conv.weight": torch.zeros(54, 8, 1, 1)}
    coco_fixture = dataclasses.replace(fixture, arrays=unknown, checkpoint=coco)
    assert things_other_index(coco_fixture) == 36


@pytest.mark.parametrize(
    ("first", "second", "pixels"),
    [
        ([0, 1, 1, 2], [0, 5, 5, 3], 0),  # renumbered
        ([0, 1, 1, 2], [0, 5, 5, 5], 3),  # two segments in one
        ([0, 1, 1, 1], [0, 5, 5, 3], 3),  # one segment in two
        ([0, 0, 1, 1], [2, 2, 0, 0], 4),  # void is not a segment
    ],
)
def test_partition_difference(first, second, pixels):
    assert partition_difference(np.array(first), np.array(second)) == pixels


def test_detections_match_one_to_one():
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 5], [9, 9, 12, 12]], dtype=np.float32)
    scores = np.array([0.9, 0.8, 0.7], dtype=np.float32)
    labels = np.array([1, 1, 2])
    order = [2, 0, 1]
    theirs = (boxes[order], scores[order], labels[order])
    assert match_detections((boxes, scores, labels), theirs) == [(2, 0), (0, 1), (1, 2)]
    other_label = (boxes[order], scores[order], np.array([3, 1, 1]))
    assert match_detections((boxes, scores, labels), other_label) == [(0, 1), (1, 2)]
    twice = (boxes[[0, 0]], scores[[0, 0]], labels[[0, 0]])
    assert len(match_detections((boxes[:1], scores[:1], labels[:1]), twice)) == 1
