"""Whatever changes, a packed convolution returns what PyTorch's own does, or leaves it to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune, vector_to_parameters

from spatialflow.modeling.layers import packed_conv
from spatialflow.modeling.layers.packed_weights import COMPARED
from tests.modeling.packed_pairs import Marked, assert_same, needs_packing, pair

pytestmark = needs_packing


def swap_data_at_a_freed_address(layer: Any) -> None:
    """Give the weight new values where the old ones were, with the version of before."""
    address, values = layer.weight.data_ptr(), 2 * layer.weight.detach()
    layer.weight.data = torch.zeros(1)
    taken = []
    for _ in range(20):
        taken.append(torch.empty_like(values))
        if taken[-1].data_ptr() == address:
            break
    layer.weight.data = taken[-1].copy_(values)


def ema(layer: Any) -> None:
    for parameter in layer.parameters():
        parameter.data.copy_(0.9 * parameter.data + 0.1)


def optimise(make: Callable[[Any], torch.optim.Optimizer]) -> Callable[[Any], None]:
    """Return a change: one step of an optimiser, in eval mode."""

    def change(layer: Any) -> None:
        optimiser = make(layer.parameters())
        image = torch.linspace(-1, 1, 8 * 25).reshape(1, 8, 5, 5)

        def closure() -> Tensor:
            optimiser.zero_grad()
            with torch.enable_grad():
                loss = layer(image).square().sum()
                loss.backward()
            return loss

        closure()
        optimiser.step(closure if isinstance(optimiser, torch.optim.LBFGS) else None)

    return change


def write_through_numpy(layer: Any) -> None:
    layer.weight.detach().numpy()[0] = 3


def write_through_dlpack(layer: Any) -> None:
    torch.from_dlpack(layer.weight.detach()).mul_(3)


def write_into_storage(layer: Any) -> None:
    layer.weight.untyped_storage().copy_((3 * layer.weight.detach()).untyped_storage())


def assign_state(layer: Any) -> None:
    layer.load_state_dict({k: 2 * v for k, v in layer.state_dict().items()}, assign=True)


def swap(layer: Any) -> None:
    torch.utils.swap_tensors(layer.weight, nn.Parameter(2 * layer.weight.detach()))


def share_and_write(layer: Any) -> None:
    layer.share_memory()
    torch.frombuffer(memoryview(layer.weight.detach().numpy()), dtype=torch.float32).mul_(2)


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def statistics_of_training(layer: Any) -> None:
    layer.norm.train()
    layer(5 + torch.ones(2, 8, 4, 4))
    layer.norm.eval()


def zero_buffers(layer: Any) -> None:
    for buffer in layer.norm.buffers():
        buffer.data.zero_()


CHANGES: dict[str, Callable[[Any], Any]] = {
    "in place": lambda m: m.weight.mul_(2),
    "view": lambda m: m.weight.view(-1)[3:9].zero_(),
    "bias": lambda m: m.bias.data.add_(1),
    "data": lambda m: m.weight.data.mul_(2),
    "one element of data": lambda m: m.weight.data[3, 2, 1, 1].fill_(9),
    "data swapped": lambda m: setattr(m.weight, "data", 2 * m.weight.data),
    "freed address": swap_data_at_a_freed_address,
    "data transposed": lambda m: setattr(m.weight, "data", m.weight.data.transpose(0, 1)),
    "data negated": lambda m: setattr(m.weight, "data", torch._neg_view(m.weight.data)),
    "detached": lambda m: m.weight.detach().mul_(2),
    "replaced": lambda m: setattr(m, "weight", nn.Parameter(2 * m.weight)),
    "replaced by other channels": lambda m: setattr(m, "weight", nn.Parameter(m.weight[:, :4])),
    "no bias": lambda m: setattr(m, "bias", None),
    "numpy": write_through_numpy,
    "dlpack": write_through_dlpack,
    "storage": write_into_storage,
    "shared memory": share_and_write,
    "swapped tensors": swap,
    "vector": lambda m: vector_to_parameters(
        torch.ones(sum(p.numel() for p in m.parameters())), m.parameters()
    ),
    "foreach": lambda m: torch._foreach_mul_(list(m.parameters()), 2),
    "moving average": ema,
    "assigned state": assign_state,
    "initialised": lambda m: nn.init.constant_(m.weight, 0.25),
    "channels last": lambda m: m.to(memory_format=torch.channels_last),
    "half and back": lambda m: m.bfloat16().float(),
    "half": lambda m: m.bfloat16(),
    "double": lambda m: m.double(),
    "mkldnn tensor": lambda m: setattr(m, "weight", nn.Parameter(m.weight.to_mkldnn())),
    "NaN": lambda m: m.weight[0, 0, 0, 0].fill_(float("nan")),
    "infinite": lambda m: m.weight[0, 0, 0, 0].fill_(float("inf")),
    "parametrisation": lambda m: parametrize.register_parametrization(m, "weight", Double()),
    "weight norm": lambda m: nn.utils.parametrizations.weight_norm(m),
    "spectral norm": lambda m: nn.utils.parametrizations.spectral_norm(m).eval(),
    "pruning": lambda m: prune.ln_structured(m, "weight", 0.5, n=2, dim=0),
    "SGD": optimise(lambda p: torch.optim.SGD(p, 0.1)),
    "SGD foreach": optimise(lambda p: torch.optim.SGD(p, 0.1, foreach=True)),
    "SGD fused": optimise(lambda p: torch.optim.SGD(p, 0.1, fused=True)),
    "AdamW fused": optimise(lambda p: torch.optim.AdamW(p, 0.1, fused=True)),
    "LBFGS": optimise(lambda p: torch.optim.LBFGS(p, 0.01, max_iter=2)),
    "stride": lambda m: setattr(m, "stride", (2, 2)),
    "stride of one number": lambda m: setattr(m, "stride", 2),
    "stride in a list": lambda m: setattr(m, "stride", [2, 2]),
    "stride of zero": lambda m: setattr(m, "stride", (0, 1)),
    "padding": lambda m: setattr(m, "padding", (0, 1)),
    "padding by name": lambda m: setattr(m, "padding", "same"),
    "negative padding": lambda m: setattr(m, "padding", (-1, 0)),
    "padding mode": lambda m: setattr(m, "padding_mode", "reflect"),
    "dilation": lambda m: setattr(m, "dilation", (2, 1)),
    "dilation too wide": lambda m: setattr(m, "dilation", (9, 9)),
    "groups": lambda m: setattr(m, "groups", 2),
    "hook": lambda m: m.register_forward_hook(lambda _, __, y: 2 * y),
    "pre-hook": lambda m: m.register_forward_pre_hook(lambda _, x: (2 * x[0],)),
    "own forward": lambda m: setattr(m, "forward", lambda x: 2 * F.conv2d(x, m.weight)),
    "training": lambda m: m.train(),
    "subclass": lambda m: setattr(m, "weight", nn.Parameter(m.weight.as_subclass(Marked))),
}
CHANGES_OF_PLAIN: dict[str, Callable[[Any], Any]] = {
    "own inner function": lambda m: setattr(m, "_conv_forward", lambda x, w, b: x + 1),
    "attributes that it ignores": lambda m: (setattr(m, "norm", Double()), setattr(m, "eps", 1)),
    "activation that it ignores": lambda m: setattr(m, "activation", F.relu),
}
CHANGES_OF_NORM: dict[str, Callable[[Any], Any]] = {
    "eps": lambda m: setattr(m.norm, "eps", 0.5),
    "eps of another type": lambda m: setattr(m.norm, "eps", torch.tensor(0.5)),
    "norm's weight": lambda m: m.norm.weight.data.mul_(2),
    "norm's bias": lambda m: m.norm.bias.data.mul_(2),
    "norm's mean": lambda m: m.norm.running_mean.data.mul_(2),
    "norm's variance": lambda m: m.norm.running_var.data.mul_(2),
    "norm's buffers": zero_buffers,
    "vanishing variance": lambda m: (m.norm.running_var.zero_(), setattr(m.norm, "eps", 0.0)),
    "huge scale": lambda m: (m.norm.weight.fill_(3e38), m.weight.mul_(1e-38), m.norm.bias.zero_()),
    "norm in double": lambda m: m.norm.double(),
    "norm replaced": lambda m: setattr(m, "norm", nn.GroupNorm(2, 8)),
    "norm removed": lambda m: setattr(m, "norm", None),
    "norm of one channel": lambda m: setattr(m, "norm", FrozenBatchNorm2d(1)),
    "norm's hook": lambda m: m.norm.register_forward_hook(lambda _, __, y: 2 * y),
    "norm's pre-hook": lambda m: m.norm.register_forward_pre_hook(lambda _, x: (2 * x[0],)),
    "norm's own forward": lambda m: setattr(m.norm, "forward", lambda x: 2 * x),
    "activation replaced": lambda m: setattr(m, "activation", nn.Tanh()),
}
CHANGES_OF_BATCH_NORM: dict[str, Callable[[Any], Any]] = {
    "statistics of training": statistics_of_training,
    "norm in training": lambda m: m.norm.train(),
    "no statistics": lambda m: (
        setattr(m.norm, "running_mean", None),
        setattr(m.norm, "running_var", None),
    ),
    "statistics not tracked": lambda m: setattr(m.norm, "track_running_stats", False),
    "norm without weight": lambda m: setattr(m.norm, "weight", None),
    "norm's subclass": lambda m: setattr(m.norm, "__class__", type("Own", (nn.BatchNorm2d,), {})),
}
CASES = [
    (kind, name, change)
    for kind, changes in {
        "plain": CHANGES | CHANGES_OF_PLAIN,
        "frozen": CHANGES | CHANGES_OF_NORM,
        "batch norm": CHANGES | CHANGES_OF_NORM | CHANGES_OF_BATCH_NORM,
    }.items()
    for name, change in changes.items()
]


@pytest.mark.parametrize(
    ("kind", "change"), [(k, c) for k, _, c in CASES], ids=[f"{k}: {n}" for k, n, _ in CASES]
)
def test_changed(kind: str, change: Callable[[Any], Any]) -> None:
    own, packed, image = pair(kind)
    with torch.no_grad():
        for layer in (own, packed):
            torch.manual_seed(1)
            change(layer)
        for x in (image, image[:, :4], image.double()):
            assert_same(own, packed, x)


@torch.no_grad()
@pytest.mark.parametrize(
    "part",
    [(slice(None),), (7,), (slice(None), 5), (slice(None), slice(None), 1, 2)],
    ids=["all", "filter", "channel", "place"],
)
def test_a_large_weight_that_nothing_counts(part: tuple[Any, ...]) -> None:
    own, packed, image = pair("plain", channels=96)
    assert own.weight.numel() > 2 * COMPARED
    for layer in (own, packed):
        layer.weight.data[part] += 1
    assert_same(own, packed, image)


@torch.no_grad()
def test_unchanged_weights_are_not_packed_again() -> None:
    _, packed, image = pair("frozen")
    kept = packed_conv._KEPT[packed]
    packed(image)
    packed.eval()(image)
    packed(image.contiguous())
    assert packed_conv._KEPT[packed] is kept
    packed.norm.eps = 0.1
    packed(image)
    assert packed_conv._KEPT[packed] is not kept


def test_gradients_after_a_fused_optimiser() -> None:
    """Its writes are not counted, and here they leave every compared value."""
    own, packed, image = pair("plain", channels=96)
    (compared, _), *_ = packed_conv._KEPT[packed]._compared
    assert 200 < len(compared) < own.weight.numel() / 2
    for layer in (own, packed):
        optimiser = torch.optim.SGD(layer.parameters(), 0.5, fused=True)
        layer(image).square().mean().backward()
        layer.weight.grad.view(-1)[:: compared.stride(0)] = 0
        layer.bias.grad.zero_()
        optimiser.step()
    with torch.no_grad():
        assert_same(own, packed, image)
