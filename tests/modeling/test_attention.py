"""Attention blocks of the stuff head: outputs, initial weights, costs, and a genotype's choices."""

import pytest
import torch
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis

from darts.genotype import Genotype
from spatialflow.config import genotype_of, load_genotype
from spatialflow.config.options import ATTENTION_OPTIONS, ATTENTION_SITES
from spatialflow.modeling.heads.attention import (
    CrissCrossAttention,
    NonLocalAttention,
    attention_multiply_adds,
    build_attention,
)

BLOCKS = [option for option in ATTENTION_OPTIONS if option != "none"]


def started(option, channels=32, seed=0):
    torch.manual_seed(seed)
    block = build_attention(option, channels)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return block


@pytest.mark.parametrize("option", ATTENTION_OPTIONS)
@pytest.mark.parametrize("size", [(9, 14), (1, 1), (40, 23)])
def test_blocks_keep_shapes_and_every_parameter_learns(option, size):
    block = started(option)
    x = torch.randn(2, 32, *size, requires_grad=True)
    given = block(x)
    assert given.shape == x.shape
    given.square().sum().backward()
    assert x.grad.abs().sum() > 0
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name


@pytest.mark.parametrize("option", ["none", "criss_cross", "non_local"])
def test_the_identity_at_the_start(option):
    x = torch.randn(2, 32, 7, 9)
    assert torch.equal(build_attention(option, 32)(x), x)


@pytest.mark.parametrize("option", BLOCKS)
def test_parameters_are_as_the_docstrings_say(option):
    channels, hidden = 64, 4
    expected = {
        "channel": 2 * channels * hidden + hidden + channels,
        "spatial": 99,
        "cbam": 2 * channels * hidden + hidden + channels + 99,
        "criss_cross": 1.25 * channels**2 + 1.25 * channels + 1,
        "non_local": 2 * channels**2 + 2.5 * channels,
    }
    assert (
        sum(p.numel() for p in build_attention(option, channels).parameters()) == expected[option]
    )


@pytest.mark.parametrize("option", BLOCKS)
def test_costs_are_what_is_counted(option):
    """Add what fvcore does not count: products of single numbers and fused attention."""
    channels, side = 64, 48
    positions = side * side
    counter = FlopCountAnalysis(build_attention(option, channels), torch.zeros(1, 64, side, side))
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    counted = counter.total()
    counted += {"channel": 1, "spatial": 1, "cbam": 2}.get(option, 0) * positions * channels
    if option == "non_local":
        counted += 256 * positions * channels
    assert attention_multiply_adds(option, channels, positions) == pytest.approx(counted, rel=0.05)


def test_criss_cross_by_a_loop():
    block = started("criss_cross", 16).double()
    x = torch.randn(1, 16, 3, 4, dtype=torch.float64)
    query, key, value = (layer(x)[0] for layer in (block.query, block.key, block.value))
    expected = torch.empty_like(x)
    for i in range(3):
        for j in range(4):
            seen = [(i, w) for w in range(4)] + [(h, j) for h in range(3) if h != i]
            scores = torch.stack([query[:, i, j] @ key[:, h, w] for h, w in seen]).softmax(dim=0)
            mean = sum(s * value[:, h, w] for s, (h, w) in zip(scores, seen, strict=True))
            expected[0, :, i, j] = x[0, :, i, j] + block.factor * mean
    torch.testing.assert_close(block(x), expected)


def test_non_local_on_a_small_map_is_full_attention():
    block = started("non_local", 16).double()
    x = torch.randn(2, 16, 5, 6, dtype=torch.float64)
    query, key, value = (
        layer(x).flatten(2).transpose(1, 2) for layer in (block.query, block.key, block.value)
    )
    weights = (query @ key.transpose(1, 2) / 8**0.5).softmax(dim=2)
    seen = (weights @ value).transpose(1, 2).unflatten(2, (5, 6))
    torch.testing.assert_close(block(x), x + block.output(seen))


@pytest.mark.parametrize("option", BLOCKS)
def test_memory_at_full_size(option):
    """Check that a block keeps only a few maps for the backward pass, on P3 of 800 × 1344."""
    block = build_attention(option, 256)
    x = torch.randn(1, 256, 100, 168, requires_grad=True)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        block(x)
    assert sum(kept.values()) < 8 * x.numel() * 4


def test_unknown_blocks_are_named():
    with pytest.raises(ValueError, match="attention 'magic' given, one of"):
        build_attention("magic", 8)


def with_choices(tmp_path, **choices):
    names = {f"stuff.attention.{site}": option for site, option in choices.items()}
    path = tmp_path / "genotype.json"
    Genotype("mine", load_genotype("parallel").flows, names).save(path)
    return str(path)


@pytest.mark.parametrize("site", ["levels", "merged"])
def test_the_genotype_decides(tiny_cfg, make_input, tmp_path, site):
    path = with_choices(tmp_path, **{site: "criss_cross"})
    model = build_model(tiny_cfg({"MODEL.SPATIALFLOW.GENOTYPE": path})).eval()
    blocks = model.stuff_head.attention
    assert isinstance(blocks[site], CrissCrossAttention)
    assert not list(blocks["merged" if site == "levels" else "levels"].parameters())
    torch.manual_seed(0)
    with torch.no_grad():
        before = model([make_input(64, 64)])[0]["sem_seg"]
        blocks[site].factor.fill_(5.0)
        after = model([make_input(64, 64)])[0]["sem_seg"]
    assert not torch.allclose(before, after)


def test_a_config_replaces_the_choice_and_says_so(tiny_cfg, tmp_path):
    path = with_choices(tmp_path, levels="spatial", merged="cbam")
    keys = {"MODEL.SPATIALFLOW.GENOTYPE": path}
    own = genotype_of(tiny_cfg(keys))
    assert own.choices["stuff.attention.merged"] == "cbam"
    cfg = tiny_cfg({**keys, "MODEL.SPATIALFLOW.STUFF_ATTENTION": "merged=non_local"})
    replaced = genotype_of(cfg)
    assert dict(replaced.choices) == {ATTENTION_SITES[0]: "none", ATTENTION_SITES[1]: "non_local"}
    assert replaced.provenance["choices_replaced_by_config"][ATTENTION_SITES[1]] == "non_local"
    assert isinstance(build_model(cfg).stuff_head.attention["merged"], NonLocalAttention)


@pytest.mark.parametrize("value", ["channel", "merged=magic", "upper=channel", ""])
def test_a_replacement_that_is_not_understood(tiny_cfg, value):
    with pytest.raises(ValueError, match="MODEL.SPATIALFLOW.STUFF_ATTENTION: "):
        genotype_of(tiny_cfg({"MODEL.SPATIALFLOW.STUFF_ATTENTION": value}))


def test_weights_of_other_attention_are_refused(tiny_cfg, tmp_path):
    plain = build_model(tiny_cfg())
    path = with_choices(tmp_path, merged="channel")
    keys = {"MODEL.SPATIALFLOW.GENOTYPE": path}
    attended = build_model(tiny_cfg(keys)).eval().stuff_head
    with pytest.raises(ValueError, match=r"other attention for stuff .*merged\.excite"):
        attended.load_state_dict(plain.stuff_head.state_dict(), strict=False)
    # Training may start from other weights.
    attended.train().load_state_dict(plain.stuff_head.state_dict(), strict=False)


def test_the_gate_of_things_starts_open(tiny_cfg, make_input):
    guided = build_model(tiny_cfg({"MODEL.SPATIALFLOW.GENOTYPE": "thing_guided"})).eval()
    human = build_model(tiny_cfg()).eval()
    human.load_state_dict(
        {
            k: v
            for k, v in guided.state_dict().items()
            if not k.endswith("gate.conv.weight") and not k.endswith("gate.conv.bias")
        }
    )
    with torch.no_grad():
        given, expected = (m([make_input(64, 64)])[0]["sem_seg"] for m in (guided, human))
    torch.testing.assert_close(given, expected)
    assert given.abs().max() > 0
