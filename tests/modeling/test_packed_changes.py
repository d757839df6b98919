"""Whatever changes, a packed convolution returns what PyTorch's own does, or leaves it to it."""

from __future__ import annotations

import contextlib
import copy
import io
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune, vector_to_parameters
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from spatialflow.modeling.layers import packed_conv
from spatialflow.modeling.layers.packed_conv import (
    PackedConv2d,
    pack_convolutions,
    packable_dtypes,
    unpack_convolutions,
)
from spatialflow.modeling.layers.packed_weights import COMPARED

pytestmark = pytest.mark.skipif(
    not packable_dtypes(), reason="weights are packed on x86 with oneDNN only"
)


def layer_of(kind: str, channels: int = 8) -> nn.Module:
    """Return a convolution in eval mode, with random statistics where it has a norm."""
    torch.manual_seed(0)
    norm: nn.Module | None = None
    if kind in ("frozen", "batch norm"):
        norm = {"frozen": FrozenBatchNorm2d, "batch norm": nn.BatchNorm2d}[kind](8)
        with torch.no_grad():
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(norm, name).uniform_(0.5, 2)
    if kind == "plain":
        return nn.Conv2d(channels, 8, 3, padding=1).eval()
    return Conv2d(channels, 8, 3, padding=1, norm=norm, activation=F.relu).eval()


def pair(kind: str, channels: int = 8) -> tuple[Any, Any, Tensor]:
    """Return a layer, its packed twin after a first call, and an image."""
    own, packed = layer_of(kind, channels), layer_of(kind, channels)
    pack_convolutions(packed)
    image = torch.randn(2, channels, 9, 11).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(packed(image), own(image), rtol=1e-4, atol=1e-4)
    assert packed in packed_conv._KEPT
    return own, packed, image


def assert_same(own: Callable[..., Any], packed: Callable[..., Any], *args: Any) -> None:
    """Compare two results, or two errors."""
    try:
        expected = own(*args)
    except Exception as error:
        with pytest.raises(type(error)):
            packed(*args)
        return
    torch.testing.assert_close(packed(*args), expected, rtol=1e-4, atol=1e-4, equal_nan=True)


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


class Marked(Tensor):
    """A subclass that counts the functions it goes through."""

    calls = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Marked.calls += 1
        return super().__torch_function__(func, types, args, kwargs or {})


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
    "meta": lambda m: m.to("meta"),
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
def test_new_weights_are_packed_again_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    _, packed, image = pair("frozen")
    kept = packed_conv._KEPT[packed]
    packed(image)
    packed.eval()(image)
    packed(image.contiguous())
    assert packed_conv._KEPT[packed] is kept
    packed.norm.eps = 0.1
    packed(image)
    assert packed_conv._KEPT[packed] is not kept


def no_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let packed weights raise where they are used."""
    monkeypatch.setattr(PackedConv2d, "_convolve_packed", lambda *_: pytest.fail("packed"))


class Watching(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def dual(layer: Any, image: Tensor) -> Any:
    with forward_ad.dual_level():
        y = layer(forward_ad.make_dual(image, image.cos()))
        return tuple(forward_ad.unpack_dual(y))


def dual_weight(layer: Any, image: Tensor) -> Any:
    with forward_ad.dual_level():
        weight = forward_ad.make_dual(layer.weight.detach(), layer.weight.detach().cos())
        y = torch.func.functional_call(layer, {"weight": weight}, (image,))
        return tuple(forward_ad.unpack_dual(y))


def gradient(layer: Any, image: Tensor) -> Any:
    weights = {name: p.detach() for name, p in layer.named_parameters()}
    return torch.func.grad(lambda w: torch.func.functional_call(layer, w, (image,)).square().sum())(
        weights
    )


def over_weights(layer: Any, image: Tensor) -> Any:
    weights = {name: torch.stack([p, 2 * p]) for name, p in layer.state_dict().items()}
    call = torch.func.functional_call
    return torch.func.vmap(lambda w: call(layer, w, (image,)))(weights)


def compiled(layer: Any, image: Tensor) -> Any:
    return torch.compile(layer, backend="eager", fullgraph=True)(image)


def exported(layer: Any, image: Tensor) -> Any:
    program = torch.export.export(layer, (image,))
    assert any("aten.conv2d" in str(node.target) for node in program.graph.nodes)
    return program.module()(image)


def counted(layer: Any, image: Tensor) -> Any:
    with FlopCounterMode(display=False) as counter:
        layer(image)
    return torch.tensor(counter.get_total_flops())


def under(context: Callable[[], Any]) -> Callable[[Any, Tensor], Any]:
    def run(layer: Any, image: Tensor) -> Any:
        with context():
            return layer(image)

    return run


RUNS: dict[str, Callable[[Any, Tensor], Any]] = {
    "dual": dual,
    "dual weight": dual_weight,
    "jvp": lambda m, x: torch.func.jvp(m, (x,), (x.cos(),)),
    "vmap": lambda m, x: torch.func.vmap(m)(torch.stack([x, 2 * x])),
    "vmap over weights": over_weights,
    "grad": gradient,
    "gradient by input": lambda m, x: torch.func.grad(lambda x: m(x).square().sum())(x),
    "functionalised": lambda m, x: torch.func.functionalize(m)(x),
    "traced": lambda m, x: torch.jit.trace(m, x)(x),
    "FX": lambda m, x: torch.fx.symbolic_trace(m)(x),
    "graph of operators": lambda m, x: torch.fx.experimental.proxy_tensor.make_fx(m)(x)(x),
    "compiled": compiled,
    "exported": exported,
    "counted": counted,
    "watched": under(Watching),
    "default device": under(lambda: torch.device("cpu")),
    "without oneDNN": under(lambda: torch.backends.mkldnn.flags(enabled=False)),
    "subclass": lambda m, x: m(x.as_subclass(Marked)).as_subclass(Tensor),
    "float64": lambda m, x: m(x.double()),
    "float16": lambda m, x: m(x.half()),
    "sparse": lambda m, x: m(x.to_sparse()),
    "meta": lambda m, x: m(x.to("meta")),
    "complex": lambda m, x: m(torch.view_as_complex(torch.stack([x, x], -1))),
    "imaginary part": lambda m, x: m(torch.complex(x, x).conj().imag),
    "no batch": lambda m, x: m(x[0]),
    "empty batch": lambda m, x: m(x[:0]),
    "no rows": lambda m, x: m(x[:, :, :0]),
    "other channels": lambda m, x: m(x[:, :5]),
    "five axes": lambda m, x: m(x[None]),
    "list": lambda m, x: m([x]),
    "float16 autocast": under(lambda: torch.autocast("cpu", torch.float16)),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_it_stands_aside(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own, packed, image = pair("plain")
    no_packing(monkeypatch)
    with torch.no_grad():
        assert_same(lambda: run(own, image), lambda: run(packed, image))


def test_forward_gradients_of_a_folded_norm() -> None:
    own, packed, image = pair("frozen")
    with torch.no_grad():
        assert_same(lambda: dual(own, image), lambda: dual(packed, image))


SAME: dict[str, Callable[[Any, Tensor], Any]] = {
    "keyword": lambda m, x: m(input=x),
    "inference mode": under(torch.inference_mode),
    "bfloat16": under(lambda: torch.autocast("cpu", torch.bfloat16)),
    "bfloat16 input": lambda m, x: under(lambda: torch.autocast("cpu"))(m, x.bfloat16()),
    "low precision": lambda m, x: m(x),
    "contiguous": lambda m, x: m(x.contiguous()),
    "for a view": lambda m, x: m(x.contiguous()).view(2, -1),
    "sliced": lambda m, x: m(x.repeat(1, 2, 2, 2)[:, ::2, ::2, 1::2]),
    "expanded": lambda m, x: m(x[:1, :1].expand(2, 8, 9, 11)),
    "turned": lambda m, x: m(x.transpose(2, 3)),
    "infinite": lambda m, x: m(x.masked_fill(x > 2, float("inf"))),
    "deterministic": lambda m, x: m(x),
    "a parameter": lambda m, x: m(nn.Parameter(x)),
}


@torch.no_grad()
@pytest.mark.parametrize("run", SAME.values(), ids=SAME)
def test_same_values_type_and_format(run: Any) -> None:
    own, packed, image = pair("plain")
    expected, found = run(own, image), run(packed, image)
    assert packed in packed_conv._KEPT
    rough = 0.06 if expected.dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(found, expected, rtol=rough, atol=rough, equal_nan=True)
    assert found.stride() == expected.stride()


@torch.no_grad()
def test_weights_in_channels_last_give_outputs_in_it() -> None:
    own, packed, image = (x.to(memory_format=torch.channels_last) for x in pair("plain"))
    assert packed(image.contiguous()).stride() == own(image.contiguous()).stride()


@torch.no_grad()
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (F, "conv2d"),
        (F, "batch_norm"),
        (nn.Conv2d, "forward"),
        (nn.Conv2d, "_conv_forward"),
        (Conv2d, "forward"),
        (FrozenBatchNorm2d, "forward"),
        (nn.BatchNorm2d, "forward"),
    ],
)
def test_patched_functions_are_called(
    owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [pair(kind) for kind in ("plain", "frozen", "batch norm")]
    right, calls = getattr(owner, name), []

    def patched(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return 2 * right(*args, **kwargs)

    monkeypatch.setattr(owner, name, patched)
    for own, packed, image in both:
        assert_same(own, packed, image)
    assert calls


@torch.no_grad()
@pytest.mark.parametrize(
    "register",
    [
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
    ],
)
def test_hooks_of_all_modules_see_the_norm(register: Any) -> None:
    _, packed, image = pair("batch norm")
    seen = []
    handle = register(lambda module, *_: seen.append(module))
    try:
        packed(image)
    finally:
        handle.remove()
    assert packed.norm in seen


def test_gradients_after_a_fused_optimiser() -> None:
    """Its writes are not counted, and here they leave every compared value."""
    own, packed, image = pair("plain", channels=96)
    (_, copy_of_samples), *_ = packed_conv._KEPT[packed]._compared
    assert len(copy_of_samples) < own.weight.numel() / 2
    for layer in (own, packed):
        optimiser = torch.optim.SGD(layer.parameters(), 0.5, fused=True)
        layer(image).square().mean().backward()
        view = packed_conv._KEPT.get(layer)
        assert view is None
        step = next(s for s in range(6, 99) if torch.gcd(torch.tensor(s), torch.tensor(6912)) == 1)
        layer.weight.grad.view(-1)[::step] = 0
        layer.bias.grad.zero_()
        optimiser.step()
    with torch.no_grad():
        assert_same(own, packed, image)


@torch.no_grad()
def test_copies_pickles_and_scripts_are_of_pytorchs_own_class() -> None:
    for kind, own_class in (("plain", nn.Conv2d), ("frozen", Conv2d)):
        own, packed, image = pair(kind)
        file = io.BytesIO()
        torch.save(packed, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        for other in (loaded, copy.deepcopy(packed), copy.copy(packed)):
            assert type(other) is own_class
            assert_same(own, other, image)
    _, packed, image = pair("plain")
    script = torch.jit.script(nn.Sequential(packed))
    assert type(packed) is nn.Conv2d
    assert_same(packed, script, image)


@torch.no_grad()
def test_quantisation_and_fusion() -> None:
    model = nn.Sequential(
        torch.ao.quantization.QuantStub(),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        torch.ao.quantization.DeQuantStub(),
    ).eval()
    packed = copy.deepcopy(model)
    pack_convolutions(packed)
    image = torch.randn(1, 8, 9, 9)
    packed(image)

    def quantised(model: Any, inplace: bool) -> Tensor:
        names = [["1", "2"]]
        model = torch.ao.quantization.fuse_modules(model, names, inplace=inplace)
        model.qconfig = torch.ao.quantization.get_default_qconfig("x86")
        model = torch.ao.quantization.prepare(model, inplace=inplace)
        model(image)
        return torch.ao.quantization.convert(model, inplace=inplace)(image)

    expected = quantised(model, False)
    assert torch.equal(quantised(packed, False), expected)
    unpack_convolutions(packed)
    assert torch.equal(quantised(packed, True), expected)


@torch.no_grad()
def test_two_threads() -> None:
    own, packed, image = pair("frozen")
    errors = []

    def work(scale: int) -> None:
        for n in range(30):
            x = scale * image[:, :, : 3 + n % 7]
            found, expected = packed(x), own(x)
            errors.append(float((found - expected).abs().max() / scale))

    threads = [threading.Thread(target=work, args=(scale,)) for scale in (1, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 60
    assert max(errors) < 1e-4


@torch.no_grad()
def test_nothing_is_held_after_its_module() -> None:
    _, packed, _ = pair("plain")
    weights = weakref.ref(packed_conv._KEPT[packed])
    packed.train()
    assert weights() is None
    _, packed, _ = pair("plain")
    weights = weakref.ref(packed_conv._KEPT[packed])
    del packed
    assert weights() is None


@pytest.fixture
def fresh_self_test() -> Iterator[None]:
    packable_dtypes.cache_clear()
    yield
    packable_dtypes.cache_clear()


@pytest.mark.parametrize("run", [dual, RUNS["watched"], RUNS["default device"], RUNS["vmap"]])
def test_the_self_test_in_the_callers_context(run: Any, fresh_self_test: None) -> None:
    found = []

    def layer(image: Tensor) -> Tensor:
        found.append(packable_dtypes())
        return image

    run(layer, torch.ones(2, 1, 3, 3))
    assert torch.float32 in found[0]
