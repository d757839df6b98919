"""Relaxed edges: weights, draws, partial channels, and discreteness at the end."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from darts.derive import RULES
from darts.genotype import Flow, Genotype
from darts.inheritance import warm_start
from darts.mixed import MixedChoice, MixedEdge
from darts.operations import OPERATIONS, build_operation
from darts.relaxation import (
    EDGE_WEIGHTS,
    KINDS,
    Architecture,
    Relaxation,
    architecture_parameters,
    choice_key,
)
from darts.space import Branch, SearchSpace, Topology

CHOICES = {"stuff.attention": ("none", "channel", "spatial")}


@pytest.fixture
def space():
    """Two branches of two nodes; b.2 has two inputs."""
    topology = Topology([Branch("a", 2, ("p3",)), Branch("b", 2, ("p3",))])
    return SearchSpace.build(topology, operations=OPERATIONS, choices=CHOICES)


def edge_named(space, text):
    return next(edge for edge in space.edges if str(edge) == text)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_named_by_edges_and_choices(space, kind):
    architecture = Architecture(space, Relaxation(kind))
    extra = 0 if kind == "sigmoid" else 1
    named = architecture_parameters(torch.nn.ModuleDict({"inside": architecture}))
    edges = {f"inside.edges.{edge.key}" for edge in space.edges}
    assert set(named) == edges | {"inside.choices.stuff_attention"}
    for edge in space.edges:
        assert architecture.edges[edge.key].shape == (len(OPERATIONS) + extra,)
    assert architecture.choices["stuff_attention"].shape == (3,)


def test_weights_by_hand(space):
    edge = space.edges[0]
    logits = torch.arange(len(OPERATIONS) + 1.0)
    architecture = Architecture(space)
    architecture.edges[edge.key].data.copy_(logits)
    assert torch.allclose(architecture.edge_weights(edge), logits.softmax(0)[:-1])
    assert torch.allclose(architecture.probabilities(edge.key), logits.softmax(0))
    architecture.temperature = 0.5
    assert torch.allclose(architecture.edge_weights(edge), (2 * logits).softmax(0)[:-1])

    gates = Architecture(space, Relaxation("sigmoid"))
    gates.edges[edge.key].data.copy_(logits[:-1])
    assert torch.allclose(gates.edge_weights(edge), logits[:-1].sigmoid())


def test_gumbel_draws_one_and_keeps_it(space):
    architecture = Architecture(space, Relaxation("gumbel"))
    edge = space.edges[0]
    with pytest.raises(RuntimeError, match=r"draw\(\) has to be called"):
        architecture.edge_weights(edge)
    drawn = []
    for _ in range(400):
        architecture.draw()
        weights = architecture.edge_weights(edge)
        assert torch.equal(weights, architecture.edge_weights(edge))
        assert set(weights.tolist()) <= {0.0, 1.0}
        drawn.append(weights.detach())
        assert architecture.choice_weights("stuff.attention").sum() == 1
    # Each candidate, and none of them, with an equal chance of 1 / 8.
    shares = torch.stack(drawn).mean(dim=0)
    assert (shares - 1 / 8).abs().max() < 0.06
    architecture.edge_weights(edge).sum().backward()
    assert architecture.edges[edge.key].grad.abs().sum() > 0


def test_gumbel_computes_what_was_drawn_only(space):
    architecture = Architecture(space, Relaxation("gumbel"))
    edge = space.edges[0]
    mixed = MixedEdge(edge, 8, architecture)
    called = []
    for name, operation in mixed.operations.items():
        operation.register_forward_hook(lambda *_, name=name: called.append(name))
    for _ in range(5):
        architecture.draw()
        called.clear()
        mixed(torch.randn(1, 8, 4, 4))
        weights = architecture.edge_weights(edge)
        assert called == [n for n, w in zip(edge.operations, weights, strict=True) if w]


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    "names",
    [OPERATIONS, ("identity",), ("identity", "conv_1x1"), ("conv_1x1", "dil_conv_3x3", "conv_3x3")],
)
def test_a_mixture_is_the_sum_of_its_operations(space, kind, names):
    """Linear candidates are computed as one convolution: the same outputs and gradients."""
    torch.manual_seed(0)
    small = SearchSpace.build(space.topology, operations=names)
    architecture = Architecture(small, Relaxation(kind, initial_std=1.0)).double()
    mixed = MixedEdge(small.edges[0], 8, architecture).double()
    mixed.auxiliary_skip = 0.3
    for parameter in mixed.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64, requires_grad=True)
    given = mixed(x)
    weights = architecture.edge_weights(small.edges[0])
    expected = 0.3 * x
    for weight, (name, operation) in zip(weights, mixed.operations.items(), strict=True):
        expected = expected + weight * mixed.scales[name] * operation(x)
    torch.testing.assert_close(given, expected)
    inputs = [x, architecture.edges[small.edges[0].key], *mixed.parameters()]
    goal = torch.randn_like(given)
    both = [torch.autograd.grad(y, inputs, goal) for y in (given, expected)]
    for mine, other in zip(*both, strict=True):
        torch.testing.assert_close(mine, other)


def test_edge_weights(space):
    edge = edge_named(space, "a.2 -> b.2 [input]")
    rival = edge_named(space, "a.1 -> b.2 [input]")
    plain = Architecture(space, Relaxation(initial_std=0)).edge_weights(edge)
    independent = Architecture(space, Relaxation(edge_weights="independent", initial_std=0))
    assert torch.allclose(independent.edge_weights(edge), plain)
    independent.edge_gates[edge.key].data.fill_(-100)
    assert independent.edge_weights(edge).max() < 1e-6
    assert torch.allclose(independent.edge_weights(rival), plain)
    shared = Architecture(space, Relaxation(edge_weights="softmax", initial_std=0))
    assert torch.allclose(shared.edge_weights(edge), plain)
    shared.edge_gates[rival.key].data.fill_(100)
    assert shared.edge_weights(edge).max() < 1e-6
    assert torch.allclose(shared.edge_weights(rival), 2 * plain)


@pytest.mark.parametrize("edge_weights", EDGE_WEIGHTS)
def test_a_genotype_has_edges_that_weigh_one(space, edge_weights):
    architecture = Architecture(space, Relaxation(edge_weights=edge_weights))
    for gate in architecture.edge_gates.values():
        gate.data.normal_()
    flows = ("a.2 -> b.2 [input]", "a.1 -> b.2 [input]")
    edges = [edge_named(space, name) for name in flows]
    architecture.set_genotype(Genotype("two", tuple(e.with_operation("conv_1x1") for e in edges)))
    for edge in edges:
        assert architecture.edge_weights(edge).sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("edge_weights", EDGE_WEIGHTS[1:])
def test_an_edge_without_weight_is_not_derived(space, edge_weights):
    architecture = Architecture(space, Relaxation(edge_weights=edge_weights, initial_std=0))
    edge = edge_named(space, "a.2 -> b.2 [input]")
    with torch.no_grad():
        architecture.edges[edge.key][1] = 9.0
    flow = edge.with_operation(edge.operations[1])
    assert all(rule(architecture)[flow] > 0.5 for rule in RULES.values())
    with torch.no_grad():
        architecture.edge_gates[edge.key].fill_(-20.0)
    found = {name: rule(architecture).get(flow) for name, rule in RULES.items()}
    # DARTS's rule takes two inputs, however weak.
    assert found.pop("top_inputs") < 1e-6
    assert set(found.values()) == {None}


def test_partial_channels_contribute_nothing_elsewhere(space):
    architecture = Architecture(space, Relaxation(partial_channels=4))
    mixed = MixedEdge(space.edges[0], 16, architecture)
    out = mixed(torch.randn(2, 16, 5, 5))
    assert out.shape == (2, 16, 5, 5)
    assert out[:, :4].abs().sum() > 0
    assert out[:, 4:].abs().sum() == 0
    with pytest.raises(ValueError, match="16 channels in 3 parts"):
        MixedEdge(space.edges[0], 16, Architecture(space, Relaxation(partial_channels=3)))


def test_auxiliary_skip(space):
    architecture = Architecture(space)
    mixed = MixedEdge(space.edges[0], 8, architecture)
    x = torch.randn(1, 8, 4, 4)
    before = mixed(x)
    mixed.auxiliary_skip = 0.5
    assert torch.allclose(mixed(x), before + 0.5 * x, atol=1e-6)


@pytest.mark.parametrize("channels", [16, 64, 256])
def test_candidates_leave_at_comparable_scale(space, channels):
    torch.manual_seed(0)
    mixed = MixedEdge(space.edges[0], channels, Architecture(space))
    x = torch.randn(4, channels, 32, 32)
    for name, scale in mixed.scales.items():
        rms = (scale * mixed.operations[name](x)).pow(2).mean().sqrt().item()
        assert 0.25 < rms < 1.3, name


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_genotype_makes_the_relaxation_discrete(kind, data):
    topology = Topology([Branch("a", 2, ("p3",)), Branch("b", 2, ("p3",))])
    space = SearchSpace.build(topology, operations=OPERATIONS, choices=CHOICES)
    chosen = data.draw(st.lists(st.sampled_from(space.edges), unique_by=lambda edge: edge.key))
    flows = [e.with_operation(data.draw(st.sampled_from(e.operations))) for e in chosen]
    option = data.draw(st.sampled_from(CHOICES["stuff.attention"]))
    genotype = Genotype("drawn", tuple(flows), {"stuff.attention": option})
    architecture = Architecture(space, Relaxation(kind))
    architecture.set_genotype(genotype)
    architecture.draw()
    for edge in space.edges:
        expected = [float(edge.with_operation(o) in flows) for o in edge.operations]
        assert architecture.edge_weights(edge).tolist() == pytest.approx(expected, abs=1e-6)
    expected = [float(o == option) for o in CHOICES["stuff.attention"]]
    assert architecture.choice_weights("stuff.attention").tolist() == pytest.approx(expected)
    assert architecture.probabilities(choice_key("stuff.attention")).argmax() == expected.index(1)


def test_a_genotype_outside_of_the_space_is_refused(space):
    with pytest.raises(ValueError, match=r"b.1 -> a.2 \[gate: conv_1x1\].*no edge"):
        Architecture(space).set_genotype(Genotype("x", (Flow("b.1", "a.2", "gate", "conv_1x1"),)))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"kind": "tanh"}, "relaxation: 'tanh' given"),
        ({"edge_weights": "all"}, "edge weights: 'all' given"),
        ({"partial_channels": 0}, "partial channels: 0 given"),
    ],
)
def test_wrong_options_are_named(options, problem):
    with pytest.raises(ValueError, match=problem):
        Relaxation(**options)


def test_a_model_without_architecture():
    with pytest.raises(ValueError, match="no architecture parameters"):
        architecture_parameters(torch.nn.Linear(1, 1))


def test_options_exclude_each_other_beside_gates(space):
    gates = Architecture(space, Relaxation("sigmoid", initial_std=0))
    assert gates.shares("stuff_attention").tolist() == pytest.approx([1 / 3] * 3)


def test_a_drawn_operation_is_the_one_that_was_trained(space):
    edge, architecture = space.edges[0], Architecture(space, Relaxation("gumbel"))
    mixed, trained = MixedEdge(edge, 8, architecture), build_operation("conv_1x1", 8)
    warm_start(mixed, "conv_1x1", trained.state_dict())
    architecture.set_genotype(Genotype("one", (edge.with_operation("conv_1x1"),)))
    architecture.draw()
    x = torch.randn(1, 8, 4, 4)
    torch.testing.assert_close(mixed(x), trained(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["edge", "choice"])
def test_architecture_parameters_are_no_weights_of_what_they_weigh(space, kind):
    architecture = Architecture(space)
    if kind == "edge":
        mixed = MixedEdge(space.edges[0], 8, architecture)
    else:
        options = {name: nn.Conv2d(8, 8, 1) for name in CHOICES["stuff.attention"]}
        mixed = MixedChoice("stuff.attention", options, architecture)
    own = {id(parameter) for parameter in architecture.parameters()}
    assert not any(id(parameter) in own for parameter in mixed.parameters())
    assert not any("architecture" in name for name in mixed.state_dict())
    both = copy.deepcopy(nn.ModuleDict({"alpha": architecture, "mixed": mixed}))
    assert both["mixed"].architecture is both["alpha"] is not architecture
