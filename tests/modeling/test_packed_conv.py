"""Packed convolutions return what PyTorch's return, and are used only where somebody asks."""

from __future__ import annotations

import copy
import io
import logging
import platform
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from spatialflow import SpatialFlow
from spatialflow.modeling.layers import packed_conv, packed_weights
from spatialflow.modeling.layers.packed_conv import (
    PackedConv2d,
    PackedDetectron2Conv2d,
    pack_convolutions,
    packable_dtypes,
)
from spatialflow.modeling.layers.packed_weights import SHAPES

PACKED = (PackedConv2d, PackedDetectron2Conv2d)
KEY = "MODEL.SPATIALFLOW.PACK_CONVOLUTIONS"

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64")
    or not torch.backends.mkldnn.is_available(),
    reason="weights are packed on x86 with oneDNN only",
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.dtype, torch.Size]]:
    """Record type and input shape of each packing."""
    made: list[tuple[torch.dtype, torch.Size]] = []
    pack = packed_weights._pack

    def counted(*args: Any) -> object:
        made.append((args[2], args[3]))
        return pack(*args)

    monkeypatch.setattr(packed_weights, "_pack", counted)
    return made


@pytest.fixture
def fresh_self_test() -> Iterator[None]:
    """Forget the self-test's answer before and after a test."""
    packable_dtypes.cache_clear()
    yield
    packable_dtypes.cache_clear()


def packed(model: nn.Module) -> list[nn.Module]:
    """Return a model's packed convolutions."""
    return [module for module in model.modules() if isinstance(module, PACKED)]


def norm(kind: type[nn.Module], channels: int) -> nn.Module:
    """Return a norm with random statistics and parameters."""
    layer = kind(channels)
    for tensor in (layer.weight, layer.bias, layer.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(layer.running_var, 0.5, 2)
    return layer


def layers() -> dict[str, nn.Module]:
    """Return convolutions of all kinds, from 8 channels."""
    return {
        "plain": nn.Conv2d(8, 6, 3, padding=1),
        "strided": nn.Conv2d(8, 6, 3, stride=2, padding=1, bias=False),
        "1x1 strided": nn.Conv2d(8, 16, 1, stride=2),
        "grouped": nn.Conv2d(8, 8, 5, padding=2, groups=8),
        "dilated": nn.Conv2d(8, 6, 3, padding=2, dilation=2),
        "same": nn.Conv2d(8, 6, 3, padding="same"),
        "circular": nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular"),
        "frozen": Conv2d(8, 6, 3, bias=False, norm=norm(FrozenBatchNorm2d, 6)),
        "batch norm": Conv2d(8, 6, 3, norm=norm(nn.BatchNorm2d, 6), activation=torch.relu),
        "bare norm": Conv2d(8, 6, 3, norm=nn.BatchNorm2d(6, affine=False)),
        "no statistics": Conv2d(8, 6, 3, norm=nn.BatchNorm2d(6, track_running_stats=False)),
        "group norm": Conv2d(8, 6, 3, norm=nn.GroupNorm(2, 6), activation=torch.relu),
    }


@torch.no_grad()
@pytest.mark.parametrize("name", layers())
@pytest.mark.parametrize("channels_last", [False, True])
def test_same_as_pytorch(name: str, channels_last: bool) -> None:
    layer = layers()[name].eval()
    form = torch.channels_last if channels_last else torch.contiguous_format
    images = [torch.randn(n, 8, h, 13).contiguous(memory_format=form) for n, h in ((1, 9), (2, 5))]
    expected = [layer(image) for image in images]
    halves = [layer(image.bfloat16().float()) for image in images]
    pack_convolutions(layer)
    assert isinstance(layer, PACKED)
    for _ in range(2):
        for image, right, half in zip(images, expected, halves, strict=True):
            torch.testing.assert_close(layer(image), right, rtol=1e-5, atol=1e-5)
            with torch.autocast("cpu", torch.bfloat16):
                short = layer(image)
            torch.testing.assert_close(short.float(), half, rtol=0.03, atol=0.06)


@torch.no_grad()
def test_a_change_of_weights_is_noticed(calls: list[object]) -> None:
    layer = Conv2d(4, 4, 1, bias=False, norm=norm(FrozenBatchNorm2d, 4)).eval()
    pack_convolutions(layer)
    image = torch.randn(1, 4, 6, 6)

    def check(packings: int) -> None:
        result = layer(image)
        right = layer.norm(nn.functional.conv2d(image, layer.weight))
        torch.testing.assert_close(result, right, rtol=1e-5, atol=1e-5)
        assert len(calls) == packings

    check(1)
    check(1)
    layer.weight.mul_(2)
    check(2)
    layer.norm.running_var.add_(1)
    check(3)
    layer.weight = nn.Parameter(torch.randn(4, 4, 1, 1))
    check(4)
    layer.load_state_dict({name: x + 1 for name, x in layer.state_dict().items()})
    check(5)
    layer.weight.data.mul_(3)
    check(6)
    layer.half().float()
    check(7)
    layer.eval()
    check(7)
    layer.train().eval()
    check(8)


@torch.no_grad()
def test_statistics_that_a_norm_takes_are_noticed() -> None:
    layer = Conv2d(4, 4, 1, norm=norm(nn.BatchNorm2d, 4)).eval()
    pack_convolutions(layer)
    image = torch.randn(2, 4, 6, 6)
    layer(image)
    layer.norm.train()
    layer(5 + image)
    layer.norm.eval()
    right = layer.norm(nn.functional.conv2d(image, layer.weight, layer.bias))
    torch.testing.assert_close(layer(image), right, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_how_many_shapes_are_kept(calls: list[object]) -> None:
    layer = nn.Conv2d(2, 2, 1).eval()
    pack_convolutions(layer)
    for size in range(1, SHAPES + 1):
        layer(torch.ones(1, 2, size, size))
    layer(torch.ones(1, 2, 1, 1))
    assert len(calls) == SHAPES
    layer(torch.ones(1, 2, SHAPES + 1, 1))  # replaces size 2, whose last use is the oldest
    layer(torch.ones(1, 2, 1, 1))
    assert len(calls) == SHAPES + 1
    layer(torch.ones(1, 2, 2, 2))
    assert len(calls) == SHAPES + 2


def test_gradients_go_pytorchs_way(calls: list[object]) -> None:
    layer = nn.Conv2d(2, 2, 3, padding=1)
    pack_convolutions(layer)
    image = torch.randn(1, 2, 4, 4, requires_grad=True)
    for training in (True, False):
        layer.train(training)(image).sum().backward()
    assert image.grad is not None
    assert layer.weight.grad is not None
    with torch.no_grad():
        layer.train()(image)
    layer.eval().requires_grad_(False)
    assert layer(image).requires_grad
    layer.bias.requires_grad_(True)
    assert layer(image.detach()).requires_grad
    layer.bias.requires_grad_(False)
    assert not calls
    layer(image.detach())
    assert len(calls) == 1


def test_inference_mode_and_fx() -> None:
    image = torch.randn(1, 2, 4, 4)
    with torch.inference_mode():
        layer = nn.Conv2d(2, 3, 1).eval()
        expected = layer(image)
        pack_convolutions(layer)
        torch.testing.assert_close(layer(image), expected)
    traced = torch.fx.symbolic_trace(layer)
    with torch.inference_mode():
        torch.testing.assert_close(traced(image), expected)


@torch.no_grad()
@pytest.mark.parametrize(
    "image", [torch.ones(0, 2, 4, 4), torch.ones(2, 4, 4)], ids=["empty batch", "no batch"]
)
def test_unusual_inputs_go_pytorchs_way(image: Tensor, calls: list[object]) -> None:
    layer = nn.Conv2d(2, 3, 1).eval()
    expected = layer(image)
    pack_convolutions(layer)
    torch.testing.assert_close(layer(image), expected)
    with pytest.raises(RuntimeError, match="channels"):
        layer(torch.ones(1, 5, 4, 4))
    double = copy.deepcopy(layer).double()
    assert double(torch.ones(1, 2, 4, 4).double()).dtype == torch.float64


@torch.no_grad()
def test_copies_files_and_counts_know_nothing_of_it() -> None:
    layer = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU()).eval()
    names = list(layer.state_dict())
    pack_convolutions(layer)
    image = torch.randn(1, 2, 4, 4)
    expected = layer(image)
    assert list(layer.state_dict()) == names
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        torch.testing.assert_close(other(image), expected)
        other[0].weight.zero_()
        assert (other(image) == other[0].bias.relu()[:, None, None]).all()
    torch.testing.assert_close(layer(image), expected)
    assert FlopCountAnalysis(layer, image).total() == 2 * 3 * 16


def test_off_by_default_and_on_by_key(tiny_cfg, monkeypatch):
    assert not packed(build_model(tiny_cfg()))
    model = build_model(tiny_cfg({KEY: True}))
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.Conv2d)}
    assert kinds == set(PACKED)


def test_the_key_changes_neither_weights_nor_results(tiny_cfg, make_input):
    models = []
    for on in (False, True):
        torch.manual_seed(3)
        models.append(build_model(tiny_cfg({KEY: on})).eval())
    plain, fast = models
    for (name, theirs), ours in zip(
        plain.state_dict().items(), fast.state_dict().values(), strict=True
    ):
        assert torch.equal(theirs, ours), name
    images = plain.preprocess_image([make_input()])
    with torch.no_grad():
        expected, found = (model.predict_maps(images) for model in models)
    torch.testing.assert_close(found[1:], expected[1:], rtol=1e-4, atol=1e-4)
    assert any(module in packed_conv._KEPT for module in packed(fast))


def test_parts_that_a_caller_built_keep_their_class(tiny_cfg):
    plain = build_model(tiny_cfg())
    own = plain.box_head
    model = SpatialFlow(tiny_cfg({KEY: True}), box_head=own)
    assert model.box_head is own
    assert not packed(own)
    assert packed(model.flow_graph)


def raises(*args: object) -> Tensor:
    raise RuntimeError("unknown operator")


@pytest.mark.parametrize("name", ["_convolution_pointwise", "_reorder_convolution_weight"])
@pytest.mark.parametrize("change", [raises, "differs", "absent"])
def test_failing_operators_leave_pytorchs_way(
    name: str,
    change: object,
    tiny_cfg,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fresh_self_test: None,
) -> None:
    operators = torch.ops.mkldnn
    right = getattr(operators, name).default
    if change == "absent":
        monkeypatch.setattr(operators, name, None)
    elif change == "differs":
        other = SimpleNamespace(default=lambda *args: 1.001 * right(*args).to_dense())
        monkeypatch.setattr(operators, name, other)
    else:
        monkeypatch.setattr(operators, name, SimpleNamespace(default=change))
    caplog.set_level(logging.WARNING, packed_conv.__name__)
    for _ in range(2):
        assert not packed(build_model(tiny_cfg({KEY: True})))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{KEY} has no effect" in caplog.text


@pytest.mark.parametrize(
    "mode",
    [
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.device("meta"),
        FakeTensorMode,
        forward_ad.dual_level,
    ],
)
def test_the_self_test_does_not_depend_on_the_callers_mode(
    mode: Callable[[], Any], fresh_self_test: None
) -> None:
    expected = packable_dtypes()
    packable_dtypes.cache_clear()
    torch.manual_seed(0)
    drawn = torch.rand(())
    torch.manual_seed(0)
    with mode():
        assert packable_dtypes() == expected
    assert torch.rand(()) == drawn


def test_the_self_test_does_not_depend_on_the_default_type(fresh_self_test: None) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.float32 in packable_dtypes()
    finally:
        torch.set_default_dtype(torch.float32)
