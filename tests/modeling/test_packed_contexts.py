"""Around whatever a packed convolution is called, it returns what PyTorch's own does."""

from __future__ import annotations

import contextlib
import copy
import io
import threading
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from spatialflow.modeling.layers import packed_conv
from spatialflow.modeling.layers.packed_conv import pack_convolutions, unpack_convolutions
from tests.modeling.packed_pairs import Marked, assert_same, needs_packing, pair

pytestmark = needs_packing


def no_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let packed weights raise where they are used."""
    operator = SimpleNamespace(default=lambda *_: pytest.fail("packed"))
    monkeypatch.setattr(torch.ops.mkldnn, "_convolution_pointwise", operator)


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
    "traced": lambda m, x: torch.jit.trace(m, x, check_trace=False)(x),
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


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


SAME: dict[str, Callable[[Any, Tensor], Any]] = {
    "inference mode": under(torch.inference_mode),
    "bfloat16": under(lambda: torch.autocast("cpu", torch.bfloat16)),
    "bfloat16 input": lambda m, x: under(lambda: torch.autocast("cpu"))(m, x.bfloat16()),
    "contiguous": lambda m, x: m(x.contiguous()),
    "for a view": lambda m, x: m(x.contiguous()).view(2, -1),
    "sliced": lambda m, x: m(x.repeat(1, 2, 2, 2)[:, ::2, ::2, 1::2]),
    "expanded": lambda m, x: m(x[:1, :1].expand(2, 8, 9, 11)),
    "turned": lambda m, x: m(x.transpose(2, 3)),
    "infinite": lambda m, x: m(x.masked_fill(x > 2, float("inf"))),
    "deterministic": under(deterministic),
    "a parameter": lambda m, x: m(nn.Parameter(x)),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["plain", "frozen", "batch norm"])
@pytest.mark.parametrize("run", SAME.values(), ids=SAME)
def test_same_values_type_and_format(kind: str, run: Any) -> None:
    own, packed, image = pair(kind)
    expected, found = run(own, image), run(packed, image)
    assert packed in packed_conv._KEPT
    rough = 0.06 if expected.dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(found, expected, rtol=rough, atol=rough, equal_nan=True)
    assert found.stride() == expected.stride()


@torch.no_grad()
def test_arguments_keep_their_names() -> None:
    for kind, name in (("plain", "input"), ("frozen", "x")):
        own, packed, image = pair(kind)
        torch.testing.assert_close(packed(**{name: image}), own(**{name: image}))


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


def test_two_threads() -> None:
    own, packed, image = pair("frozen")
    errors = []

    def work(scale: int) -> None:
        for n in range(30):
            x = scale * image[:, :, : 3 + n % 7]
            with torch.no_grad():  # each thread has its own mode
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


def test_a_model_elsewhere_is_asked_for_its_device_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("plain", "frozen"):
        _, packed, image = pair(kind)
        packed.to("meta")
        monkeypatch.setattr(type(packed), "_convolve", lambda *_: pytest.fail("asked for more"))
        assert packed(image.to("meta")).shape == image.shape
