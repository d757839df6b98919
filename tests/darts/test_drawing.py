"""Drawings: well-formed, complete, and safe for any name."""

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darts.derive import random_genotype
from darts.drawing import STYLES, _printable, to_dot, to_svg
from darts.genotype import Flow, Genotype
from darts.operations import OPERATIONS
from darts.space import SearchSpace
from spatialflow.config import load_genotype
from spatialflow.modeling.topology import spatialflow_topology

TOPOLOGY = spatialflow_topology()
SVG = "{http://www.w3.org/2000/svg}"


def test_every_operation_has_a_style():
    assert set(STYLES) == set(OPERATIONS)
    assert len(set(STYLES.values())) == len(STYLES)


@pytest.mark.parametrize("name", ["spatialflow", "parallel"])
def test_nodes_and_flows_are_there(name):
    genotype = load_genotype(name)
    root = ElementTree.fromstring(to_svg(genotype, TOPOLOGY))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {node.name for node in TOPOLOGY.nodes} <= set(texts)
    titles = [path.findtext(f"{SVG}title") for path in root.iter(f"{SVG}path")]
    assert [title for title in titles if title] == [str(flow) for flow in genotype.flows]
    dot = to_dot(genotype, TOPOLOGY)
    assert dot.count("[label=") == len(genotype.flows)
    assert dot.count("[style=dotted]") == 9


@given(name=st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1))
def test_any_name_is_written_safely(name):
    genotype = Genotype(name, (Flow("box.4", "mask.1", "gate", "conv_1x1"),))
    root = ElementTree.fromstring(to_svg(genotype, TOPOLOGY))
    assert _printable(name) in root.findtext(f"{SVG}title")
    first = to_dot(genotype, TOPOLOGY).split("\n")[0]
    assert first.replace("\\\\", "").replace('\\"', "").count('"') == 2


@given(seed=st.integers(0, 300))
def test_every_curve_starts_and_ends_inside_of_the_picture(seed):
    space = SearchSpace.build(TOPOLOGY, operations=OPERATIONS)
    genotype = random_genotype(space, seed=seed, name="r", budget=None)
    root = ElementTree.fromstring(to_svg(genotype, TOPOLOGY))
    width, height = float(root.get("width")), float(root.get("height"))
    for path in root.iter(f"{SVG}path"):
        if path.find(f"{SVG}title") is not None:
            numbers = path.get("d").replace("M", " ").replace("C", " ").split()
            assert all(0 <= float(x) <= width for x in numbers[::2])
            assert all(0 <= float(y) <= height for y in numbers[1::2])
