"""Deriving genotypes: every rule by hand, and by properties that hold for all."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from darts.derive import (
    RULES,
    by_argmax,
    by_perturbation,
    by_presence,
    by_threshold,
    by_top_inputs,
    derive,
    random_genotype,
    within_budget,
)
from darts.genotype import Flow
from darts.regularizers import beta_decay, entropy, expected_cost, expected_flows, over_budget
from darts.relaxation import KINDS, Architecture, Relaxation
from darts.space import Branch, SearchSpace, Topology

OPERATIONS = ("identity", "conv_1x1", "conv_3x3")
CHOICES = {"head": ("plain", "wide")}


def space_of(**options):
    topology = Topology(
        [Branch("a", 3, ("p3",)), Branch("b", 3, ("p3",)), Branch("c", 1, ("p3",), first_stage=3)]
    )
    return SearchSpace.build(topology, operations=OPERATIONS, choices=CHOICES, **options)


def architecture_with(values, kind="softmax", **options):
    """An architecture whose logits are 0 but for those of {edge: {position: value}}."""
    architecture = Architecture(space_of(**options), Relaxation(kind, initial_std=0))
    for key, entries in values.items():
        for position, value in entries.items():
            architecture.edges[key].data[position] = value
    return architecture


STRONG = {"a_1_to_b_1_input": {2: 3.0}, "b_2_to_a_3_input": {0: 1.0}, "a_3_to_c_1_input": {3: 5.0}}


def test_argmax_allows_none():
    architecture = architecture_with(STRONG)
    for key in architecture.edges:
        if key not in STRONG:
            architecture.edges[key].data[3] = 0.1
    assert list(by_argmax(architecture)) == [
        Flow("a.1", "b.1", "input", "conv_3x3"),
        Flow("b.2", "a.3", "input", "identity"),
    ]


def test_presence_is_of_all_operations_together():
    # Two operations share what none of them has alone; a third edge is likelier to be absent.
    architecture = architecture_with(
        {
            "a_1_to_b_1_input": {0: 1.0, 1: 1.1, 2: -9.0, 3: 1.2},
            "b_2_to_a_3_input": {0: 1.0, 1: -9.0, 2: -9.0, 3: 1.2},
        }
    )
    for key, logits in architecture.edges.items():
        if key not in ("a_1_to_b_1_input", "b_2_to_a_3_input"):
            logits.data[3] = 5.0
    found = by_presence(architecture)
    assert list(found) == [Flow("a.1", "b.1", "input", "conv_1x1")]
    assert found[Flow("a.1", "b.1", "input", "conv_1x1")] == pytest.approx(0.6328, abs=1e-3)
    assert list(by_argmax(architecture)) == []


def test_threshold():
    gates = architecture_with(
        {"a_1_to_b_1_input": {2: 3.0}, "b_2_to_a_3_input": {0: 1.0}}, "sigmoid"
    )
    assert list(by_threshold(gates, 0.6)) == [
        Flow("a.1", "b.1", "input", "conv_3x3"),
        Flow("b.2", "a.3", "input", "identity"),
    ]
    assert [flow.target for flow in by_threshold(gates, 0.85)] == ["b.1"]
    # A gate is open where it is wider than a half; the other edges' are at a half exactly.
    assert list(by_presence(gates)) == list(by_threshold(gates, 0.6))


def test_the_original_rule_never_leaves_a_node_alone():
    flows = by_top_inputs(architecture_with(STRONG), 2)
    arriving = [flow.target for flow in flows]
    space = space_of()
    for target in {edge.flow.target for edge in space.edges}:
        possible = sum(edge.flow.target == target for edge in space.edges)
        assert arriving.count(target) == min(2, possible)
    # `none` is out of account: the edge that it wins is kept where it is among the two.
    assert Flow("a.1", "b.1", "input", "conv_3x3") in flows


def test_perturbation_keeps_what_hurts_most():
    architecture = architecture_with({})
    wanted = {
        "a_1_to_b_1_input": 1,
        "a_2_to_b_2_input": 2,
        "b_1_to_a_2_input": 3,
    }
    before = {key: value.clone() for key, value in architecture.edges.items()}
    calls = []

    def evaluate():
        calls.append(1)
        loss = 0.0
        for key in architecture.edges:
            # Everywhere else nothing is needed: the loss falls when `none` gets more.
            loss -= float(architecture.edges[key].softmax(0)[wanted.get(key, 3)])
        return loss

    flows = by_perturbation(architecture, evaluate, seed=1)
    assert list(flows) == [
        Flow("a.1", "b.1", "input", "conv_1x1"),
        Flow("a.2", "b.2", "input", "conv_3x3"),
    ]
    assert len(calls) == 4 * len(architecture.edges)
    for key, value in architecture.edges.items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_perturbation_leaves_the_other_operations_their_shares(kind):
    architecture = architecture_with({"a_1_to_b_1_input": {0: 2.0, 1: -1.0}}, kind=kind)
    edge = next(e for e in architecture.space.edges if e.key == "a_1_to_b_1_input")
    whole = architecture.edge_weights(edge).detach()
    seen = []

    def evaluate():
        seen.append(architecture.edge_weights(edge).detach())
        return -float(seen[-1].sum())

    flows = by_perturbation(architecture, evaluate)
    # Of what was asked while this edge was visited: one operation removed, and none.
    for position in range(3):
        expected = whole.clone()
        expected[position] = 0
        assert any(torch.allclose(weights, expected) for weights in seen)
    # What is worth most is kept, for as much as it was worth.
    kept = next(flow for flow in flows if flow.edge == edge.flow.edge)
    assert kept.operation == "identity"
    assert flows[kept] == pytest.approx(float(whole[0]), abs=1e-6)


def costs_of(space):
    prices = {"identity": 0.0, "conv_1x1": 1.0, "conv_3x3": 9.0}
    return {(edge.key, name): prices[name] for edge in space.edges for name in edge.operations}


def test_the_weakest_flows_go_first():
    flows = {
        Flow("a.1", "b.1"): 0.9,
        Flow("a.2", "b.2"): 0.5,
        Flow("a.3", "b.3", operation="conv_1x1"): 0.7,
    }
    costs = costs_of(space_of())
    assert list(within_budget(flows, costs, 19)) == list(flows)
    assert [f.source for f in within_budget(flows, costs, 18.5)] == ["a.1", "a.3"]
    assert [f.source for f in within_budget(flows, costs, 9)] == ["a.1"]
    assert within_budget(flows, costs, 0) == {}


@given(
    kind=st.sampled_from(KINDS),
    rule=st.sampled_from(list(RULES)),
    seed=st.integers(0, 1000),
    budget=st.one_of(st.none(), st.floats(0, 60)),
    inputs=st.one_of(st.none(), st.integers(1, 3)),
)
def test_a_derived_genotype_is_always_valid(kind, rule, seed, budget, inputs):
    torch.manual_seed(seed)
    space = space_of(max_inputs=inputs)
    architecture = Architecture(space, Relaxation(kind, initial_std=2.0))
    found = RULES[rule](architecture)
    genotype = derive(architecture, found, name="derived", costs=costs_of(space), budget=budget)
    space.check(genotype)
    cost = sum(costs_of(space)[flow.key, flow.operation] for flow in genotype.flows)
    assert budget is None or cost <= budget
    assert genotype == derive(
        architecture,
        dict(reversed(found.items())),
        name="derived",
        costs=costs_of(space),
        budget=budget,
    )


@given(seed=st.integers(0, 200), inputs=st.one_of(st.none(), st.integers(1, 2)))
def test_random_genotypes_are_valid_and_within_the_budget(seed, inputs):
    space = space_of(max_inputs=inputs)
    costs = costs_of(space)
    genotype = random_genotype(space, seed=seed, name="random", costs=costs, budget=20)
    assert sum(costs[flow.key, flow.operation] for flow in genotype.flows) <= 20
    again = random_genotype(space, seed=seed, name="random", costs=costs, budget=20)
    assert again == genotype


def test_random_genotypes_differ():
    hashes = {random_genotype(space_of(), seed=i, name="r", budget=None).hash for i in range(30)}
    assert len(hashes) > 25


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_and_beta_decay_have_the_right_slopes(kind):
    torch.manual_seed(0)
    architecture = Architecture(space_of(), Relaxation(kind, initial_std=1.0))
    for term in (entropy, beta_decay):
        value = term(architecture)
        gradients = torch.autograd.grad(value, list(architecture.edges.values()))
        with torch.no_grad():
            for parameter, gradient in zip(architecture.edges.values(), gradients, strict=True):
                parameter -= 0.1 * gradient
        assert term(architecture) < value


def test_expected_flows_by_hand():
    flat = Architecture(space_of(), Relaxation(initial_std=0))
    assert expected_flows(flat).item() == pytest.approx(3 / 4)
    genotype = random_genotype(space_of(), seed=3, name="r", budget=None)
    for kind in KINDS:
        architecture = Architecture(space_of(), Relaxation(kind))
        architecture.set_genotype(genotype)
        share = len(genotype.flows) / len(space_of().edges)
        assert expected_flows(architecture).item() == pytest.approx(share, abs=1e-6)


def test_entropy_by_hand():
    flat = Architecture(space_of(), Relaxation(initial_std=0))
    assert entropy(flat).item() == pytest.approx(torch.log(torch.tensor(4.0)).item())
    gates = Architecture(space_of(), Relaxation("sigmoid", initial_std=0))
    assert entropy(gates).item() == pytest.approx(torch.log(torch.tensor(2.0)).item())
    for architecture in (flat, gates):
        for logits in architecture.edges.values():
            logits.data[0], logits.data[1:] = 200.0, -200.0
        assert entropy(architecture).item() == pytest.approx(0, abs=1e-6)


def test_expected_cost_is_that_of_the_genotype_where_it_is_certain():
    space = space_of()
    costs = costs_of(space)
    flat = Architecture(space, Relaxation(initial_std=0))
    assert expected_cost(flat, costs).item() == pytest.approx(len(space.edges) * 10 / 4)
    genotype = random_genotype(space, seed=3, name="r", budget=None)
    for kind in KINDS:
        architecture = Architecture(space, Relaxation(kind))
        architecture.set_genotype(genotype)
        expected = sum(costs[flow.key, flow.operation] for flow in genotype.flows)
        assert expected_cost(architecture, costs).item() == pytest.approx(expected, rel=1e-5)
    assert over_budget(torch.tensor(12.0), 10.0).item() == pytest.approx(0.2)
    assert over_budget(torch.tensor(8.0), 10.0).item() == 0


def test_choices_and_flows_share_the_budget():
    choices = dict.fromkeys(("head", "neck"), ("plain", "wide"))
    space = SearchSpace.build(space_of().topology, operations=OPERATIONS, choices=choices)
    costs = {**costs_of(space), ("head", "wide"): 6.0, ("neck", "wide"): 6.0}
    architecture = Architecture(space, Relaxation(initial_std=0))
    with torch.no_grad():
        for logits in (*architecture.edges.values(), *architecture.choices.values()):
            logits[1] = 9.0
    found = derive(architecture, by_argmax(architecture), name="found", costs=costs, budget=10)
    assert found.choices == {"head": "wide", "neck": "plain"}
    assert len(found.flows) == 4
    for seed in range(30):
        drawn = random_genotype(space, seed=seed, name="drawn", costs=costs, budget=10)
        spent = sum(costs[flow.key, flow.operation] for flow in drawn.flows)
        assert spent + 6 * list(drawn.choices.values()).count("wide") <= 10
