"""The feature pyramid on ResNets."""

import pytest
import torch
import torchvision
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn
from torch.nn import functional as F

from spatialflow.modeling.backbone.pyramid import ExtraLevels, build_spatialflow_fpn_backbone

FEATURES = ("res3", "res4", "res5")


@pytest.fixture
def build(tiny_cfg):
    """Return a function that builds a pyramid from keys below MODEL."""

    def make(**changes):
        keys = {f"MODEL.{key.replace('__', '.')}": value for key, value in changes.items()}
        return build_backbone(tiny_cfg(keys))

    return make


def randomise(module):
    """Replace the initial statistics and affine parameters of norms by random ones."""
    for part in module.modules():
        if hasattr(part, "running_mean"):
            part.running_mean.uniform_(-0.5, 0.5)
            part.running_var.uniform_(0.5, 2.0)


def test_pyramid_by_hand(build):
    backbone = build().eval()
    randomise(backbone)
    state = backbone.state_dict()
    x = torch.randn(2, 3, 64, 96)

    def conv(name, value, **options):
        return F.conv2d(value, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    c3, c4, c5 = (backbone.bottom_up(x)[name] for name in FEATURES)
    m5 = conv("fpn_lateral5", c5)
    m4 = conv("fpn_lateral4", c4) + F.interpolate(m5, scale_factor=2, mode="nearest")
    m3 = conv("fpn_lateral3", c3) + F.interpolate(m4, scale_factor=2, mode="nearest")
    expected = {
        f"p{i}": conv(f"fpn_output{i}", m, padding=1) for i, m in ((3, m3), (4, m4), (5, m5))
    }
    expected["p6"] = conv("top_block.p6", c5, stride=2, padding=1)
    expected["p7"] = conv("top_block.p7", expected["p6"], stride=2, padding=1)
    assert (expected["p6"] < 0).any(), "a ReLU before P7 would go unseen"
    actual = backbone(x)
    assert list(actual) == list(expected)
    for level, value in expected.items():
        torch.testing.assert_close(actual[level], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 2)])
def test_gradients_of_levels_of_one_column_in_bfloat16(size):
    """Repeat the check, because PyTorch alone returns wrong gradients in some runs only."""
    levels = ExtraLevels(32, 32)
    c5 = torch.randn(2, 32, *size)
    for x in levels(c5):
        x.sum().backward(retain_graph=True)
    expected = {name: p.grad.clone() for name, p in levels.named_parameters()}
    torch.testing.assert_close(levels(c5)[0], levels.p6(c5))
    for _ in range(10):
        levels.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = levels(c5)
        for x in outputs:
            x.float().sum().backward(retain_graph=True)
        for name, p in levels.named_parameters():
            scale = expected[name].abs().max().item()
            torch.testing.assert_close(p.grad, expected[name], rtol=0.05, atol=0.05 * scale)


@pytest.mark.parametrize("size", [(32, 32), (64, 160), (96, 32)])
def test_levels_have_the_size_of_their_stride(build, size):
    backbone = build()
    assert backbone.size_divisibility == 32
    shapes = backbone.output_shape()
    assert {level: shape.stride for level, shape in shapes.items()} == {
        f"p{i}": 2**i for i in range(3, 8)
    }
    for level, x in backbone(torch.randn(1, 3, *size)).items():
        assert x.shape[1] == shapes[level].channels == 32
        stride = shapes[level].stride
        assert x.shape[2:] == tuple(-(-side // stride) for side in size)


def test_pyramid_starts_as_published(build):
    backbone = build(FPN__OUT_CHANNELS=64)
    convs = [*backbone.lateral_convs, *backbone.output_convs, backbone.top_block.p6]
    for conv in (*convs, backbone.top_block.p7):
        fan = (conv.in_channels + conv.out_channels) * conv.kernel_size[0] ** 2
        bound = (6 / fan) ** 0.5
        assert 0.9 * bound < conv.weight.abs().max().item() <= bound
        assert not conv.bias.any()


def test_batch_norm_stays_in_eval_mode_but_its_affine_learns(build):
    backbone = build(RESNETS__NORM="EvalBN", BACKBONE__FREEZE_AT=2)
    randomise(backbone)
    x = torch.randn(2, 3, 64, 64)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    expected = backbone.eval()(x)
    actual = backbone.train()(x)
    assert backbone.training
    for level, value in expected.items():
        torch.testing.assert_close(actual[level], value)
    sum(value.square().sum() for value in actual.values()).backward()
    for key, value in backbone.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    norms = {
        name: module
        for name, module in backbone.bottom_up.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    }
    assert {name.split(".")[0] for name in norms} == {"res3", "res4", "res5"}
    for name, module in norms.items():
        assert module.weight.grad.abs().sum() > 0, name
        assert module.bias.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("freeze_at", "frozen"), [(0, set()), (1, {"stem"}), (2, {"stem", "res2"})]
)
def test_frozen_stages(build, freeze_at, frozen):
    trunk = build(BACKBONE__FREEZE_AT=freeze_at).bottom_up
    found = {name.split(".")[0] for name, p in trunk.named_parameters() if not p.requires_grad}
    learning = {name.split(".")[0] for name, p in trunk.named_parameters() if p.requires_grad}
    assert found == frozen
    assert learning == {"stem", "res2", "res3", "res4", "res5"} - frozen


def test_frozen_batch_norm_has_nothing_to_learn(build):
    trunk = build(RESNETS__NORM="FrozenBN", BACKBONE__FREEZE_AT=0).bottom_up
    assert any(isinstance(module, FrozenBatchNorm2d) for module in trunk.modules())
    assert not any("norm" in name for name, _ in trunk.named_parameters())


def test_group_norm(build):
    trunk = build(
        RESNETS__NORM="GN",
        BACKBONE__FREEZE_AT=0,
        RESNETS__STEM_OUT_CHANNELS=32,
        RESNETS__RES2_OUT_CHANNELS=32,
    ).bottom_up
    kinds = {type(m) for m in trunk.modules() if "Norm" in type(m).__name__}
    assert kinds == {nn.GroupNorm}
    assert all(p.requires_grad for p in trunk.parameters())


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("norm", ["EvalBN", "FrozenBN"])
def test_trunk_equals_torchvisions_resnet(build, depth, norm):
    """Compare the outputs, and with them the place of the stride, padding and order of layers."""
    trunk = build(
        RESNETS__DEPTH=depth,
        RESNETS__NORM=norm,
        RESNETS__STEM_OUT_CHANNELS=64,
        RESNETS__RES2_OUT_CHANNELS=64 if depth < 50 else 256,
    ).bottom_up.eval()
    other = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    randomise(other)
    names = {"downsample.0": "shortcut", "downsample.1": "shortcut.norm", "bn": "conv"}
    state = {}
    for key, value in other.state_dict().items():
        if key.startswith("fc.") or "num_batches" in key:
            continue
        for i in range(1, 5):
            key = key.replace(f"layer{i}.", f"res{i + 1}.").replace(f"bn{i}.", f"conv{i}.norm.")
        for theirs, ours in names.items():
            key = key.replace(f"{theirs}.", f"{ours}.")
        state[key if key.startswith("res") else f"stem.{key}"] = value
    missing = trunk.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert not [key for key in missing.missing_keys if "num_batches" not in key]
    x = torch.randn(1, 3, 64, 96)
    y = other.maxpool(other.relu(other.bn1(other.conv1(x))))
    expected = {}
    for name, layer in (("res2", other.layer1), ("res3", other.layer2)):
        expected[name] = y = layer(y)
    expected["res4"] = other.layer3(y)
    expected["res5"] = other.layer4(expected["res4"])
    actual = trunk(x)
    for name in FEATURES:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [(18, (2, 2, 2, 2)), (34, (3, 4, 6, 3)), (50, (3, 4, 6, 3)), (101, (3, 4, 23, 3))],
)
@pytest.mark.parametrize("width", [4, 24])
def test_depths_and_widths(build, depth, blocks, width):
    backbone = build(
        RESNETS__DEPTH=depth,
        RESNETS__STEM_OUT_CHANNELS=12,
        RESNETS__RES2_OUT_CHANNELS=width,
        RESNETS__WIDTH_PER_GROUP=6,
        FPN__OUT_CHANNELS=20,
    )
    trunk = backbone.bottom_up
    assert tuple(len(getattr(trunk, f"res{i}")) for i in range(2, 6)) == blocks
    channels = {name: shape.channels for name, shape in trunk.output_shape().items()}
    assert channels == {"res3": 2 * width, "res4": 4 * width, "res5": 8 * width}
    if depth >= 50:
        assert trunk.res3[0].conv2.weight.shape == (12, 12, 3, 3)
        assert trunk.res3[0].conv2.stride == (2, 2)
    assert backbone(torch.randn(1, 3, 32, 32))["p3"].shape == (1, 20, 4, 4)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.RESNETS.NORM", "LN"),
        ("MODEL.RESNETS.DEPTH", 20),
        ("MODEL.RESNETS.OUT_FEATURES", ["res4", "res5"]),
        ("MODEL.RESNETS.RES5_DILATION", 2),
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True]),
        ("MODEL.RESNETS.DEFORM_NUM_GROUPS", 2),
        ("MODEL.SPATIALFLOW.TRUNK", "resnext"),
    ],
)
def test_wrong_keys_are_named(tiny_cfg, key, value):
    with pytest.raises(ValueError, match=key):
        build_spatialflow_fpn_backbone(tiny_cfg({key: value}), ShapeSpec(channels=3))
