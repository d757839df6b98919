"""Charts: repeatable, complete, inside of the picture, and safe for any name."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from matplotlib import rcParams
from matplotlib.textpath import TextPath

from spatialflow.utils import charts

SVG = "{http://www.w3.org/2000/svg}"
COURSE = [(0, 0.1), (10, 0.9)]


def drawn(panels, **options):
    return ElementTree.fromstring(
        charts.small_multiples(panels, **{"title": "title", "x": "iteration", **options})
    )


def texts(root):
    return [element.text for element in root.iter(f"{SVG}text")]


def curves(root):
    """The style of each line that is clipped by a panel, as all of its data are."""
    return [path.get("style") for path in root.iter(f"{SVG}path") if path.get("clip-path")]


def color(style):
    return re.search(r"stroke: (#\w+)", style)[1]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: charts.lines({"a": [(0, 1), (1, 2)]}, x="x", y="y"),
        lambda: charts.intervals({"a": (1, 0, 2)}, x="x"),
        lambda: charts.small_multiples({"p": {"a": COURSE}}, title="t", x="x"),
    ],
)
def test_charts_do_not_change_and_change_nothing(draw):
    before = dict(rcParams)
    assert draw() == draw()
    assert dict(rcParams) == before


@pytest.mark.parametrize("count", [1, 7, 30])
def test_no_two_names_have_one_colour(count):
    names = [f"option_{i}" for i in range(count)]
    given_colors = {"conv": "#BF4343", "none": "#999999"}
    panels = {"edge": dict.fromkeys((*given_colors, *names), COURSE)}
    root = drawn(panels, colors=given_colors)
    found = [color(style) for style in curves(root)]
    assert found[:2] == ["#bf4343", "#999999"]
    assert len(set(found)) == len(found) == count + 2
    assert {"conv", "none", *names} <= set(texts(root))


def test_a_name_has_one_colour_in_all_panels():
    root = drawn({"one": {"a": COURSE, "b": COURSE}, "two": {"b": COURSE, "c": COURSE}})
    first, second, third, fourth = curves(root)
    assert second == third
    assert len({first, second, fourth}) == 3
    assert texts(root).count("b") == 1


@pytest.mark.parametrize(("panels", "letters"), [(1, 200), (4, 3), (8, 25), (13, 60)])
def test_everything_is_inside_of_the_picture(panels, letters):
    names = [f"{i}".rjust(letters, "x") for i in range(9)]
    root = drawn({f"{i} {'panel ' * 12}": dict.fromkeys(names, COURSE) for i in range(panels)})
    assert len(texts(root)) > panels + len(names)
    assert_all_is_inside(root)


@pytest.mark.parametrize(("count", "words"), [(1, 1), (9, 1), (13, 9), (40, 2)])
def test_lines_have_their_own_colours_and_a_legend_inside_of_the_picture(count, words):
    series = {" ".join(["a long name"] * words) + f" {i}": COURSE for i in range(count)}
    root = ElementTree.fromstring(charts.lines(series, x="iteration", y="loss"))
    assert len({color(style) for style in curves(root)}) == count
    assert_all_is_inside(root)


def assert_all_is_inside(root):
    width, height = map(float, root.get("viewBox").split()[2:])
    for element in (element for element in root.iter(f"{SVG}text") if element.text):
        x, y = position(element)
        style = element.get("style")
        size = float(re.search(r"font(?:-size)?: (\S+)px", style)[1])
        length = TextPath((0, 0), element.text, size=size).get_extents().width
        left = x - length * ("middle" in style) / 2 - length * ("end" in style)
        assert left >= 0, element.text
        assert left + length <= width, element.text
        assert 0 <= y - 0.7 * size < y <= height, element.text


def position(element):
    if element.get("x"):
        return float(element.get("x")), float(element.get("y"))
    return map(float, re.search(r"translate\((\S+) (\S+)\)", element.get("transform")).groups())


@given(name=st.text(st.characters(codec="latin-1", exclude_categories=["C", "Z"]), min_size=1))
@hypothesis_settings(max_examples=5)
def test_any_name_is_written_as_it_is(name):
    name = f"<b> & $x_1$ {name.strip()}"
    root = drawn({"panel": {name: COURSE}}, title=name)
    assert texts(root).count(name) == 2


@pytest.mark.parametrize(
    "draw",
    [
        lambda points: charts.lines({"loss": points}, x="iteration", y="loss"),
        lambda points: charts.small_multiples({"a": {"b": points}}, title="", x="iteration"),
    ],
)
def test_a_single_point_is_seen(draw):
    """A run of fewer iterations than its log's period leaves one."""
    assert draw([(20, 0.5)]).count("<use ") > draw([(20, 0.5), (40, 0.6)]).count("<use ")
