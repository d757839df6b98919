"""The graph that flows live in."""

import pytest

from darts.genotype import Flow, Genotype
from darts.space import Branch, SearchSpace, Topology
from spatialflow.config import load_genotype
from spatialflow.modeling.topology import spatialflow_topology

P3_P5 = ("p3", "p4", "p5")
P3_P7 = (*P3_P5, "p6", "p7")


@pytest.fixture
def topology():
    return spatialflow_topology()


def test_the_full_space_has_36_edges(topology):
    targets = [target.branch.name for _, target in topology.edges()]
    counts = {name: targets.count(name) for name in ("box", "stuff", "cls", "mask")}
    assert counts == {"box": 6, "stuff": 10, "cls": 15, "mask": 5}
    assert len(set(topology.edges())) == 36


def test_edges_written_out(topology):
    """Into the last stage, by hand from the causality rule."""
    into = {name: set() for name in ("box.4", "stuff.4", "mask.1", "cls.4", "box.1", "cls.1")}
    for source, target in topology.edges():
        if target.name in into:
            into[target.name].add(source.name)
    assert into == {
        "box.4": {"stuff.3", "cls.3"},
        "stuff.4": {"box.4", "box.3", "cls.3"},
        "mask.1": {"box.4", "stuff.4", "box.3", "stuff.3", "cls.3"},
        "cls.4": {"box.4", "stuff.4", "mask.1", "box.3", "stuff.3"},
        "box.1": set(),
        "cls.1": {"box.1", "stuff.1"},
    }


def test_the_human_design_is_in_the_space(topology):
    genotype = load_genotype("spatialflow")
    topology.check(genotype)
    edges = {(source.name, target.name) for source, target in topology.edges()}
    flows = {(flow.source, flow.target) for flow in genotype.flows}
    assert len(flows) == len(genotype.flows) == 10
    assert flows <= edges
    assert {(flow.port, flow.operation) for flow in genotype.flows} == {("input", "conv_3x3")}
    assert flows == (
        {(f"box.{i}", f"{name}.{i}") for i in range(1, 5) for name in ("cls", "stuff")}
        | {("box.4", "mask.1"), ("stuff.4", "mask.1")}
    )


def test_running_order_has_every_source_before_its_target(topology):
    position = {node.name: i for i, node in enumerate(topology.nodes)}
    assert len(position) == 13
    assert all(position[s.name] < position[t.name] for s, t in topology.edges())
    for node in topology.nodes:
        if node.index > 1:
            assert position[f"{node.branch.name}.{node.index - 1}"] < position[node.name]


def test_mask_counts_as_the_last_stage(topology):
    assert topology.node("mask.1").stage == 4
    assert spatialflow_topology(stages=2).node("mask.1").stage == 2


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("box.1", "box.2"),
        ("box.2", "box.1"),
        ("cls.1", "box.1"),
        ("cls.1", "stuff.1"),
        ("stuff.1", "box.1"),
        ("box.2", "cls.1"),
        ("box.1", "cls.3"),
        ("mask.1", "stuff.4"),
        ("cls.4", "mask.1"),
        ("box.4", "box.4"),
    ],
)
def test_flows_that_are_not_causal(topology, source, target):
    genotype = Genotype(name="wrong", flows=(Flow(source, target),))
    with pytest.raises(ValueError, match="'wrong'.*not causal") as error:
        topology.check(genotype)
    assert f"{source} -> {target}" in str(error.value)


@pytest.mark.parametrize(
    "flow", [Flow("box.5", "cls.4"), Flow("mask.2", "cls.4"), Flow("a.1", "box.1")]
)
def test_unknown_nodes(topology, flow):
    with pytest.raises(ValueError, match=r"'wrong'.*unknown node.*box\.1"):
        topology.check(Genotype(name="wrong", flows=(flow,)))


@pytest.mark.parametrize(
    ("source", "target", "levels"),
    [
        ("box.1", "cls.1", P3_P7),
        ("box.1", "stuff.1", P3_P5),
        ("stuff.1", "cls.1", P3_P5),
        ("stuff.1", "box.2", P3_P5),
        ("stuff.4", "mask.1", P3_P5),
    ],
)
def test_a_flow_runs_on_the_levels_of_both_ends(topology, source, target, levels):
    assert topology.shared_levels(Flow(source, target)) == levels


def test_a_flow_without_a_common_level():
    topology = spatialflow_topology(box_levels=["p6", "p7"], stuff_levels=["p3"])
    with pytest.raises(ValueError, match="no common level"):
        topology.check(Genotype(name="wrong", flows=(Flow("box.1", "stuff.1"),)))


def test_branches_of_one_name():
    with pytest.raises(ValueError, match="must differ"):
        Topology([Branch("box", 1, P3_P5), Branch("box", 2, P3_P5)])


def test_edges_into_levels_that_the_source_lacks_may_be_left_out():
    topology = spatialflow_topology()
    edges = SearchSpace.build(topology, operations=["conv_1x1"], complete_levels=True).edges
    assert 0 < len(edges) < 36
    for edge in edges:
        assert topology.shared_levels(edge.flow) == topology.node(edge.flow.target).branch.levels
