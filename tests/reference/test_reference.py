"""Checkpoints of the authors' code become checkpoints of this project."""

import re

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.anchor_generator import build_anchor_generator

from spatialflow import get_cfg
from spatialflow.reference.conversion import (
    ReferenceLayout,
    convert_reference,
    permute_anchors,
    read_reference_checkpoint,
    stuff_order,
)
from spatialflow.reference.names import our_name
from spatialflow.reference.parity import read_fixture
from spatialflow_cli.main import main

THINGS_OTHER = 2
DEPTHS = {
    18: ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "8"],
    50: [],
    101: ["MODEL.RESNETS.DEPTH", "101", "MODEL.FPN.OUT_CHANNELS", "16"],
}


def reference_name(name):
    """Return the authors' name of one of our tensors, the inverse of the converter."""
    for pattern, replacement in (
        (r"stem\.conv1\.norm", "bn1"),
        (r"\.conv(\d)\.norm", r".bn\1"),
        (r"\.shortcut\.weight", ".downsample.0.weight"),
        (r"\.shortcut\.norm", ".downsample.1"),
        (r"^backbone\.bottom_up\.(stem\.)?", "backbone."),
        (r"^(flow_graph\.flows\.)box_4_to_mask_1_input", "bbox_head.mask_spatial_flow_convs.0"),
        (r"^(flow_graph\.flows\.)stuff_4_to_mask_1_input", "bbox_head.stuff_mask_flow_convs.0"),
        (r"^box_head\.cls_score", "bbox_head.retina_cls"),
        (r"^box_head\.bbox_pred", "bbox_head.retina_reg"),
        (r"^mask_head\.fcn\.deconv", "mask_head.upsample"),
        (r"^mask_head\.fcn\.predictor", "mask_head.conv_logits"),
        (r"^stuff_head\.predictor", "stuff_head.conv"),
        (r"(scale_heads\.p\d\.\d)\.weight", r"\1.conv.weight"),
        (r"(scale_heads\.p\d\.\d)\.norm", r"\1.gn"),
    ):
        name = re.sub(pattern, replacement, name)
    for pattern, template, shift in (
        (r"backbone\.res(\d)", "backbone.layer{}", -1),
        (r"backbone\.fpn_lateral(\d)", "neck.lateral_convs.{}.conv", -3),
        (r"backbone\.fpn_output(\d)", "neck.fpn_convs.{}.conv", -3),
        (r"backbone\.top_block\.p(\d)", "neck.fpn_convs.{}.conv", -3),
        (r"flow_graph\.nodes\.box_(\d)", "bbox_head.reg_convs.{}.conv", -1),
        (r"flow_graph\.nodes\.cls_(\d)", "bbox_head.cls_convs.{}.conv", -1),
        (r"flow_graph\.nodes\.stuff_(\d)", "bbox_head.stuff_convs.{}.conv", -1),
        (r"flow_graph\.nodes\.mask_(\d)", "bbox_head.mask_convs.{}.conv", -1),
        (
            r"flow_graph\.flows\.box_(\d)_to_cls_\d_input\.conv",
            "bbox_head.cls_spatial_flow_convs.{}.conv",
            -1,
        ),
        (
            r"flow_graph\.flows\.box_(\d)_to_stuff_\d_input\.conv",
            "bbox_head.stuff_spatial_flow_convs.{}.conv",
            -1,
        ),
        (r"mask_head\.fcn\.mask_fcn(\d)", "mask_head.convs.{}.conv", -1),
        (r"stuff_head\.scale_heads\.p(\d)", "stuff_head.lateral_convs.{}", -3),
    ):
        name = re.sub(pattern, lambda m, t=template, s=shift: t.format(int(m[1]) + s), name)
    return name


def reference_tensor(name, value):
    """Return one of our tensors in the authors' order of anchors or stuff classes."""
    if name.startswith(("box_head.cls_score", "box_head.bbox_pred")):
        by_anchor = value.unflatten(0, (3, 3, -1))  # sizes, ratios
        return by_anchor.transpose(0, 1).flatten(0, 2)
    if name.startswith("stuff_head.predictor"):
        before, after = value[1 : THINGS_OTHER + 1], value[THINGS_OTHER + 1 :]
        return torch.cat([before, value[:1], after])
    return value


@pytest.fixture(scope="module", params=list(DEPTHS))
def pair(request, narrow_config):
    """A model of some depth: its config, its tensors (random), and the same as the authors have."""
    cfg = get_cfg(narrow_config, [*DEPTHS[request.param], "MODEL.DEVICE", "cpu"])
    state = build_model(cfg).state_dict()
    generator = torch.Generator().manual_seed(request.param)
    state = {
        name: torch.rand(value.shape, generator=generator)
        if value.is_floating_point()
        else torch.tensor(len(name))
        for name, value in state.items()
    }
    theirs = {reference_name(name): reference_tensor(name, v) for name, v in state.items()}
    return cfg, state, theirs


@pytest.fixture
def theirs(pair):
    return dict(pair[2])


def convert(reference, cfg):
    layout = ReferenceLayout.from_config(cfg, reference, THINGS_OTHER)
    return convert_reference(reference, build_model(cfg).state_dict(), layout)


def test_every_tensor_finds_its_place(pair):
    cfg, ours, reference = pair
    conversion = convert(reference, cfg)
    assert conversion.state.keys() == ours.keys()
    for name, value in ours.items():
        assert torch.equal(conversion.state[name], value), name
    assert len(conversion.permuted) == 6
    assert conversion.dropped == ()


def test_all_names_of_the_fixture_are_known(compact_folder):
    names = list(read_fixture(compact_folder).checkpoint)
    assert len({our_name(name) for name in names} - {None}) == len(names) == 416


def test_batch_norm_counters_are_dropped_where_the_model_has_none(pair):
    cfg, _, reference = pair
    frozen = cfg.clone()
    frozen.MODEL.RESNETS.NORM = "FrozenBN"
    conversion = convert(reference, frozen)
    counters = {name for name in reference if name.endswith("num_batches_tracked")}
    assert set(conversion.dropped) == counters
    assert f"{len(counters)} BatchNorm counters dropped" in conversion.summary()


def test_anchor_order_by_hand():
    # Two sizes (s, S), three ratios, two values an anchor; theirs: for each ratio, for each size.
    theirs = ["0s", "0s'", "0S", "0S'", "1s", "1s'", "1S", "1S'", "2s", "2s'", "2S", "2S'"]
    ours = ["0s", "0s'", "1s", "1s'", "2s", "2s'", "0S", "0S'", "1S", "1S'", "2S", "2S'"]
    order = permute_anchors(torch.arange(12), num_sizes=2, num_ratios=3)
    assert [theirs[i] for i in order] == ours
    columns = permute_anchors(torch.arange(12).expand(4, 12), 2, 3, dim=1)
    assert torch.equal(columns, order.expand(4, 12))


def test_permuted_anchors_are_those_of_detectron2(narrow_config):
    cfg = get_cfg(narrow_config)
    shapes = [ShapeSpec(channels=1, stride=8 * 2**level) for level in range(5)]
    generator = build_anchor_generator(cfg, shapes)
    ratios = torch.tensor([0.5, 1.0, 2.0])
    scales = 4 * 2 ** (torch.arange(3) / 3)
    for shape, ours in zip(shapes, generator.cell_anchors, strict=True):
        # The authors' base anchors: height / width = ratio, area = (stride * scale)^2.
        widths = (shape.stride / ratios.sqrt()[:, None] * scales).reshape(-1)
        heights = (shape.stride * ratios.sqrt()[:, None] * scales).reshape(-1)
        theirs = torch.stack([-widths, -heights, widths, heights], dim=1) / 2
        torch.testing.assert_close(permute_anchors(theirs, 3, 3), ours, rtol=1e-6, atol=1e-4)


def test_stuff_order_by_hand():
    assert stuff_order(5, 2) == [2, 0, 1, 3, 4]
    assert stuff_order(5, 4) == [4, 0, 1, 2, 3]
    with pytest.raises(ValueError, match="got 5, expected 0 to 4"):
        stuff_order(5, 5)


def test_all_problems_are_named_at_once(pair, theirs):
    theirs["bbox_head.attention.weight"] = torch.zeros(1)
    theirs["bbox_head.mask_convs.1.conv.weight"] = torch.zeros(32, 32, 3, 3)
    del theirs["neck.fpn_convs.4.conv.bias"]
    theirs["backbone.layer1.0.conv1.weight"] = torch.zeros(3, 7, 1, 1)
    with pytest.raises(ValueError, match="does not fit") as error:
        convert(theirs, pair[0])
    message = str(error.value)
    unplaced, rest = message.split("parameters of the model without a value")
    assert "could not be placed (2)" in unplaced
    assert "bbox_head.attention.weight" in unplaced
    assert "bbox_head.mask_convs.1.conv.weight" in unplaced
    missing, shapes = rest.split("shapes differ (1)")
    assert missing.split() == ["(1):", "backbone.top_block.p7.bias"]
    assert "backbone.layer1.0.conv1.weight (3, 7, 1, 1)" in shapes
    assert "backbone.bottom_up.res2.0.conv1.weight (8, " in shapes
    assert "MODEL.RESNETS" in message


def test_deformable_checkpoint_is_recognised(pair, theirs):
    theirs["bbox_head.cls_spatial_flow_convs.0.conv.weight"] = torch.zeros(27, 32, 3, 3)
    with pytest.raises(ValueError, match="deformable model"):
        convert(theirs, pair[0])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.RETINANET.NUM_CLASSES", "6", "RETINANET.NUM_CLASSES: got 6, expected 5"),
        ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "54", "SEM_SEG_HEAD.NUM_CLASSES: got 54, expected 5"),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[1.0]]", "ASPECT_RATIOS: got 3, expected 9"),
        ("INPUT.FORMAT", "BGR", "INPUT.FORMAT: got 'BGR', expected 'RGB'"),
    ],
)
def test_config_of_another_model_is_refused(compact_folder, narrow_config, key, value, message):
    reference = read_fixture(compact_folder).checkpoint
    with pytest.raises(ValueError, match=message):
        ReferenceLayout.from_config(get_cfg(narrow_config, [key, value]), reference, 4)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("nested", [True, False])
def test_layouts_of_the_file(tmp_path, prefix, nested):
    state = {f"{prefix}backbone.conv1.weight": torch.ones(2)}
    meta = {"mmcv_version": "1.0.5", "CLASSES": ("person",), "epoch": 20}
    path = tmp_path / "epoch_20.pth"
    torch.save({"meta": meta, "state_dict": state} if nested else state, path)
    assert list(read_reference_checkpoint(path)) == ["backbone.conv1.weight"]


def test_unreadable_files_are_named(tmp_path):
    whole = tmp_path / "whole.pth"
    torch.save({"state_dict": {"backbone.conv1.weight": torch.ones(1000)}}, whole)
    contents = {
        "cut.pth": whole.read_bytes()[:2000],
        "empty.pth": b"",
        "text.pth": b"version https://git-lfs.github.com/spec/v1\n",
        "page.pth": b"<!doctype html><html></html>",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: not readable"):
            read_reference_checkpoint(tmp_path / name)
    with pytest.raises(ValueError, match=r"absent\.pth: no such file"):
        read_reference_checkpoint(tmp_path / "absent.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "found none"),
        ({"state_dict": {}}, "found none"),
        ({"model": {"a": torch.ones(1)}, "epoch": 3}, "these are not: model, epoch"),
        ({"state_dict": {"a": np.ones(1)}}, "not readable"),
    ],
)
def test_foreign_contents_are_refused(tmp_path, content, message):
    path = tmp_path / "foreign.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=rf"foreign\.pth: .*{message}"):
        read_reference_checkpoint(path)


def save_fixture_checkpoint(folder, path):
    torch.save({"meta": {}, "state_dict": read_fixture(folder).checkpoint}, path)


def test_tool_writes_what_detectron2_loads(compact_folder, narrow_config, tmp_path, capsys):
    source, target = tmp_path / "theirs.pth", tmp_path / "ours.pth"
    save_fixture_checkpoint(compact_folder, source)
    arguments = ["--input", str(source), "--output", str(target)]
    arguments += ["--config-file", str(narrow_config), "--things-other-index", "4"]
    assert main(["import-weights", *arguments, "MODEL.DEVICE", "cpu"]) == 0
    assert "416 tensors placed (6 of them with channels reordered)" in capsys.readouterr().out
    assert {file.name for file in tmp_path.iterdir()} == {"theirs.pth", "ours.pth"}

    model = build_model(get_cfg(narrow_config, ["MODEL.DEVICE", "cpu"]))
    loaded = torch.load(target, weights_only=True)
    assert loaded["matching_heuristics"] is False
    incompatible = model.load_state_dict(loaded["model"], strict=False)
    assert incompatible.missing_keys == []
    assert incompatible.unexpected_keys == []
    DetectionCheckpointer(model).load(str(target))
    expected = read_fixture(compact_folder).checkpoint["neck.lateral_convs.1.conv.weight"]
    assert torch.equal(model.backbone.fpn_lateral4.weight, expected)


def test_tool_asks_for_the_index(compact_folder, narrow_config, tmp_path):
    source, target = tmp_path / "theirs.pth", tmp_path / "ours.pth"
    save_fixture_checkpoint(compact_folder, source)
    target.write_bytes(b"what was there before")
    arguments = ["--input", str(source), "--output", str(target)]
    arguments += ["--config-file", str(narrow_config)]
    with pytest.raises(SystemExit, match="import-weights: --things-other-index is needed"):
        main(["import-weights", *arguments])
    with pytest.raises(SystemExit, match="import-weights: .*got 7, expected 0 to 4"):
        main(["import-weights", *arguments, "--things-other-index", "7"])
    assert target.read_bytes() == b"what was there before"
    assert {file.name for file in tmp_path.iterdir()} == {"theirs.pth", "ours.pth"}
