"""The chart of a search's history: every candidate of every edge and choice, in its place."""

import xml.etree.ElementTree as ElementTree

import pytest

from darts.relaxation import Architecture, Relaxation
from darts.space import Branch, SearchSpace, Topology
from spatialflow.search.history import COLORS, history_svg

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def space():
    topology = Topology([Branch("a", 2, ("p3",)), Branch("b", 2, ("p3",))])
    choices = {"a.1.conv": ("plain", "deformable")}
    return SearchSpace.build(topology, operations=("conv_1x1", "conv_3x3"), choices=choices)


def logged(architecture, first, last):
    """Lines of a search's log whose first candidates go from one share to another."""
    keys = [*map(str, architecture.space.edges), *architecture.space.choices]
    return [
        {"iteration": i, "probabilities": {key: [share, 0.5, 0.5] for key in keys}}
        for i, share in enumerate((first, last))
    ]


@pytest.mark.parametrize(("kind", "of_edge"), [("softmax", 3), ("sigmoid", 2)])
def test_every_candidate_has_a_line(space, kind, of_edge):
    architecture = Architecture(space, Relaxation(kind))
    svg = history_svg(architecture, logged(architecture, 0.0, 1.0), title="a & b")
    root = ElementTree.fromstring(svg)
    lines = [path for path in root.iter(f"{SVG}path") if path.get("clip-path")]
    assert len(lines) == of_edge * len(space.edges) + 2
    texts = {element.text for element in root.iter(f"{SVG}text")}
    assert {"a & b", "a.1.conv", "plain", "deformable", "conv_1x1", *map(str, space.edges)} <= texts
    assert ("none" in texts) == (kind == "softmax")
    assert f"stroke: {COLORS['conv_1x1']}" in lines[0].get("style")
    # In SVG less is higher: the first candidate rises from the bottom of its panel to the top.
    heights = [float(point.split()[1]) for point in lines[0].get("d").strip("M ").split("L")]
    assert heights[0] > heights[-1]


def test_nothing_to_draw_is_said(space):
    with pytest.raises(ValueError, match="no line yet"):
        history_svg(Architecture(space), [], title="none")
