"""FlowGraph, compared with the published formulas and with its documented rule for gates."""

import pytest
import torch
from torch.nn import functional as F

from darts.genotype import Flow, Genotype
from spatialflow.config import load_genotype
from spatialflow.modeling.flow_graph import FlowGraph
from spatialflow.modeling.layers.norms import build_norm
from spatialflow.modeling.topology import spatialflow_topology

CHANNELS = 6
LEVELS = {"p3": (16, 12), "p4": (8, 6), "p5": (4, 3), "p6": (2, 2), "p7": (1, 1)}
SMALL_LEVELS = ("p3", "p4", "p5")


def pyramid(requires_grad=False):
    return {
        level: torch.randn(2, CHANNELS, *size, dtype=torch.float64, requires_grad=requires_grad)
        for level, size in LEVELS.items()
    }


def graph_of(genotype):
    """Build a graph in double precision, with weights and biases so large that all parts matter."""
    graph = FlowGraph.from_genotype(genotype, channels=CHANNELS).double()
    for parameter in graph.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return graph


def genotype_of(*flows, **choices):
    return Genotype(name="test", flows=flows, choices=choices)


def conv(state, key, x):
    return F.conv2d(x, state[f"{key}.weight"], state[f"{key}.bias"], padding=1)


def spatialflow_by_hand(state, features, *, flows=True):
    """Compute the formulas of the paper's network without a graph."""

    def node(name, x):
        return F.relu(conv(state, f"nodes.{name}", x))

    def flow(name, x):
        return conv(state, f"flows.{name}_input.conv", x) if flows else 0

    outputs = {"box": {}, "cls": {}, "stuff": {}, "mask": {}}
    for level, p in features.items():
        r1 = node("box_1", p)
        r2 = node("box_2", r1)
        r3 = node("box_3", r2)
        r4 = node("box_4", r3)
        c1 = node("cls_1", p + flow("box_1_to_cls_1", r1))
        c2 = node("cls_2", c1 + flow("box_2_to_cls_2", r2))
        c3 = node("cls_3", c2 + flow("box_3_to_cls_3", r3))
        c4 = node("cls_4", c3 + flow("box_4_to_cls_4", r4))
        outputs["box"][level], outputs["cls"][level] = r4, c4
        if level not in SMALL_LEVELS:
            continue
        s1 = node("stuff_1", p + flow("box_1_to_stuff_1", r1))
        s2 = node("stuff_2", s1 + flow("box_2_to_stuff_2", r2))
        s3 = node("stuff_3", s2 + flow("box_3_to_stuff_3", r3))
        s4 = node("stuff_4", s3 + flow("box_4_to_stuff_4", r4))
        outputs["stuff"][level] = s4
        outputs["mask"][level] = node(
            "mask_1", p + flow("stuff_4_to_mask_1", s4) + flow("box_4_to_mask_1", r4)
        )
    return outputs


@pytest.mark.parametrize(("name", "flows"), [("spatialflow", True), ("parallel", False)])
def test_graph_equals_the_formulas(name, flows):
    graph, features = graph_of(load_genotype(name)), pyramid()
    expected = spatialflow_by_hand(graph.state_dict(), features, flows=flows)
    actual = graph(features)
    assert {k: list(v) for k, v in actual.items()} == {k: list(v) for k, v in expected.items()}
    for branch, levels in expected.items():
        for level, value in levels.items():
            assert value.abs().max() > 0.1, "too small to tell anything"
            torch.testing.assert_close(actual[branch][level], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["spatialflow", "parallel"])
def test_every_parameter_and_level_gets_a_gradient(name):
    graph, features = graph_of(load_genotype(name)), pyramid(requires_grad=True)
    sum(x.square().sum() for levels in graph(features).values() for x in levels.values()).backward()
    for key, parameter in graph.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key
    assert all(x.grad.abs().sum() > 0 for x in features.values())


@pytest.mark.parametrize("branch", ["cls", "stuff", "mask"])
def test_gradients_run_back_into_box(branch):
    graph = graph_of(load_genotype("spatialflow"))
    sum(x.square().sum() for x in graph(pyramid())[branch].values()).backward()
    assert all(graph.nodes[f"box_{i}"].weight.grad.abs().sum() > 0 for i in range(1, 5))
    separate = graph_of(load_genotype("parallel"))
    sum(x.square().sum() for x in separate(pyramid())[branch].values()).backward()
    assert all(separate.nodes[f"box_{i}"].weight.grad is None for i in range(1, 5))


@pytest.mark.parametrize("size", [(1, 2), (2, 1), (5, 3)])
def test_group_norm_is_pytorchs(size):
    x = torch.randn(2, 64, *size)
    norm = build_norm("GN", 64)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    other = torch.nn.GroupNorm(32, 64)
    other.load_state_dict(norm.state_dict())
    assert torch.equal(norm(x), other(x))


def test_group_norm_of_single_values_is_the_bias():
    norm = build_norm("GN", 32)
    torch.nn.init.normal_(norm.bias)
    x = (1000 * torch.randn(2, 32, 1, 1)).requires_grad_()
    assert torch.equal(norm(x)[..., 0, 0], norm.bias.expand(2, 32))
    norm(x).square().sum().backward()
    assert not x.grad.any()
    assert not norm.weight.grad.any()
    assert norm(torch.full((1, 32, 1, 1), torch.nan)).isnan().all()
    assert norm(x[:0]).shape == (0, 32, 1, 1)


def test_weights_start_as_published():
    """Check N(0, 0.01) at the published 256 channels, and the scaled deviation at other widths."""
    graph = FlowGraph.from_genotype(load_genotype("spatialflow"), channels=64)
    assert len(graph.nodes) == 13
    assert len(graph.flows) == 10
    for key, parameter in graph.named_parameters():
        if key.endswith("weight"):
            assert parameter.shape == (64, 64, 3, 3)
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), key
        else:
            assert not parameter.any(), key


@pytest.mark.parametrize("operation", ["conv_1x1", "conv_3x3", "sep_conv_3x3", "dil_conv_3x3"])
def test_a_gate_is_the_identity_at_the_start(operation):
    gated = FlowGraph.from_genotype(
        genotype_of(Flow("box.4", "stuff.4", "gate", operation)), channels=CHANNELS
    ).double()
    plain = FlowGraph.from_genotype(genotype_of(), channels=CHANNELS).double()
    plain.nodes.load_state_dict(gated.nodes.state_dict())
    for parameter in plain.nodes.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    gated.nodes.load_state_dict(plain.nodes.state_dict())
    features = pyramid()
    for level, value in plain(features)["stuff"].items():
        assert value.abs().max() > 0.1
        torch.testing.assert_close(gated(features)["stuff"][level], value, rtol=0, atol=0)


def test_gates_multiply_and_come_before_additive_flows():
    """Check both orders in the genotype, and an edge from the previous stage."""
    gate = Flow("box.4", "stuff.4", "gate")
    second_gate = Flow("box.3", "stuff.4", "gate", "conv_1x1")
    additive = Flow("box.4", "stuff.4", "input", "identity")
    graph = graph_of(genotype_of(additive, gate, second_gate))
    features = pyramid()
    state = graph.state_dict()
    actual = graph(features)["stuff"]
    for level in SMALL_LEVELS:
        box = stuff = features[level]
        for i in (1, 2, 3):
            box = F.relu(conv(state, f"nodes.box_{i}", box))
            stuff = F.relu(conv(state, f"nodes.stuff_{i}", stuff))
        box_3, box_4 = box, F.relu(conv(state, "nodes.box_4", box))
        first = torch.tanh(conv(state, "flows.box_4_to_stuff_4_gate.conv", box_4))
        key = "flows.box_3_to_stuff_4_gate.conv"
        second = torch.tanh(F.conv2d(box_3, state[f"{key}.weight"], state[f"{key}.bias"]))
        x = stuff * (1 + first) * (1 + second) + box_4
        expected = F.relu(conv(state, "nodes.stuff_4", x))
        torch.testing.assert_close(actual[level], expected, rtol=0, atol=1e-9)


def test_a_flow_from_stuff_leaves_the_upper_levels_alone():
    graph = graph_of(genotype_of(Flow("stuff.2", "box.3"), Flow("mask.1", "cls.4")))
    plain = graph_of(genotype_of())
    plain.nodes.load_state_dict(graph.nodes.state_dict())
    features = pyramid()
    for branch in ("box", "cls"):
        for level in LEVELS:
            same = torch.allclose(graph(features)[branch][level], plain(features)[branch][level])
            assert same == (level not in SMALL_LEVELS)


def test_keys_tell_ports_apart():
    flows = [Flow("box.4", "stuff.4", port) for port in ("input", "gate")]
    assert [flow.key for flow in flows] == [
        "box_4_to_stuff_4_input",
        "box_4_to_stuff_4_gate",
    ]
    assert len(FlowGraph.from_genotype(genotype_of(*flows), channels=4).flows) == 2


def test_other_levels_and_stages():
    topology = spatialflow_topology(
        box_levels=["p4", "p5"], stuff_levels=["p3"], mask_levels=["p5"], stages=1
    )
    genotype = genotype_of(Flow("box.1", "mask.1"))
    graph = FlowGraph.from_genotype(genotype, channels=CHANNELS, topology=topology).double()
    outputs = graph(pyramid())
    levels = {"box": ["p4", "p5"], "cls": ["p4", "p5"], "stuff": ["p3"], "mask": ["p5"]}
    assert {name: list(x) for name, x in outputs.items()} == levels


@pytest.mark.parametrize(
    ("genotype", "problem"),
    [
        (genotype_of(Flow("box.1", "cls.1", "offset")), "offset"),
        (genotype_of(Flow("cls.1", "box.1")), "not causal"),
        (genotype_of(Flow("box.9", "cls.1")), "unknown node"),
        (genotype_of(Flow("box.1", "cls.1", "gate", "identity")), "identity"),
        (genotype_of(Flow("box.1", "cls.1", "gate", "channel_gate")), "channel_gate"),
        (genotype_of(**{"cls.1.conv": "wavy"}), "one of \\['plain', 'deformable'"),
        (genotype_of(**{"cls.9.conv": "plain"}), r"cls\.9\.conv"),
        (genotype_of(**{"stuff.attention.merged": "magic"}), "one of \\['none', 'channel'"),
        (genotype_of(**{"stuff.attention.upper": "channel"}), "stuff.attention.upper"),
        (genotype_of(**{"colour": "none"}), "colour"),
    ],
)
def test_what_cannot_be_built(genotype, problem):
    with pytest.raises(ValueError, match=f"'test'.*{problem}"):
        FlowGraph.from_genotype(genotype, channels=4)


def test_default_choices_can_be_written_out():
    choices = {"stuff.attention.levels": "none", "cls.1.conv": "plain", "mask.1.conv": "plain"}
    FlowGraph.from_genotype(genotype_of(**choices), channels=4)


def test_weights_of_other_flows_are_refused_in_eval_mode_only():
    human = graph_of(load_genotype("spatialflow")).state_dict()
    parallel = FlowGraph.from_genotype(load_genotype("parallel"), channels=CHANNELS)
    parallel.train().load_state_dict(human, strict=False)
    with pytest.raises(ValueError, match=r"only in the checkpoint \['box_1_to_cls_1_input'"):
        parallel.eval().load_state_dict(human, strict=False)
    target = FlowGraph.from_genotype(load_genotype("spatialflow"), channels=CHANNELS).eval()
    with pytest.raises(ValueError, match=r"only in the genotype \['box_1_to_cls_1_input'"):
        target.load_state_dict(parallel.state_dict(), strict=False)
    target.load_state_dict(human)
    target.load_state_dict({"unrelated.weight": torch.zeros(1)}, strict=False)
