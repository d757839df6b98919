"""The history of a search as a picture: one small chart an edge or choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from darts.drawing import STYLES, svg_head
from darts.relaxation import Architecture

COLUMNS = 6
WIDTH, HEIGHT = 150, 64
GAP_X, GAP_Y = 22, 40
LEFT, TOP = 44, 96
NONE_STYLE = ("#999999", "1 4")
# Options of choices, which have no fixed names, in turn.
OTHER_COLORS = ("#1b7f79", "#b3471d", "#5d4bb0", "#8a6d00", "#9a2f7c", "#2f6db0")


def history_svg(
    architecture: Architecture, lines: Sequence[Mapping[str, object]], *, title: str
) -> str:
    """Draw the probability of every candidate of every edge and choice over a search.

    Args:
        architecture: Of the search.
        lines: Each with ``iteration`` and ``probabilities``, the numbers of each edge and choice
            by its name, as a search logs them; in order of iterations.
        title: Of the picture.

    Raises:
        ValueError: If there is no line.
    """
    if not lines:
        raise ValueError("the search has logged no line yet: nothing to draw")
    candidates = _candidates(architecture)
    rows = -(-len(candidates) // COLUMNS)
    width = LEFT + COLUMNS * (WIDTH + GAP_X)
    height = TOP + rows * (HEIGHT + GAP_Y)
    first, last = (int(str(lines[i]["iteration"])) + 1 for i in (0, -1))
    names = list(dict.fromkeys(name for rivals in candidates.values() for name in rivals))
    names.sort(key=lambda name: name == "none")
    parts = [
        *svg_head(width, height, title, font_size=11),
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
        f'<text x="{LEFT}" y="42">probability of each candidate, 0 to 1, from iteration {first} to '
        f"{last}</text>",
        *_legend(names),
    ]
    for number, (what, rivals) in enumerate(candidates.items()):
        x = LEFT + (number % COLUMNS) * (WIDTH + GAP_X)
        y = TOP + (number // COLUMNS) * (HEIGHT + GAP_Y)
        parts += _chart(what, rivals, lines, x, y)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _style(name: str) -> tuple[str, str]:
    if name == "none":
        return NONE_STYLE
    # By name, so that a picture does not change with the order.
    return STYLES.get(name, (OTHER_COLORS[sum(map(ord, name)) % len(OTHER_COLORS)], "7 2 2 2"))


def _legend(names: Sequence[str]) -> list[str]:
    parts = []
    for i, name in enumerate(names):
        color, dashes = _style(name)
        x = LEFT + 126 * i
        parts.append(
            f'<path d="M{x} 62h26" stroke="{color}" stroke-width="2" stroke-dasharray="{dashes}"/>'
            f'<text x="{x + 32}" y="66">{escape(name)}</text>'
        )
    return parts


def _chart(
    what: str, names: Sequence[str], lines: Sequence[Mapping[str, object]], x: int, y: int
) -> list[str]:
    histories = [_probabilities(line, what) for line in lines]
    step = WIDTH / max(1, len(lines) - 1)
    parts = [
        f'<text x="{x}" y="{y - 5}">{escape(what)}</text>',
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" fill="none" '
        'stroke="currentColor" stroke-opacity=".3"/>',
    ]
    for i, name in enumerate(names):
        color, dashes = _style(name)
        points = " ".join(
            f"{x + step * at:.1f},{y + HEIGHT * (1 - values[i]):.1f}"
            for at, values in enumerate(histories)
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.6" '
            f'stroke-dasharray="{dashes}"><title>{escape(name)}: {histories[-1][i]:.3f} at the end'
            "</title></polyline>"
        )
    return parts


def _probabilities(line: Mapping[str, object], what: str) -> list[float]:
    table = line["probabilities"]
    assert isinstance(table, Mapping)
    return [float(value) for value in table[what]]


def _candidates(architecture: Architecture) -> dict[str, tuple[str, ...]]:
    """Return the names of the candidates of every edge and choice."""
    none = () if architecture.relaxation.kind == "sigmoid" else ("none",)
    edges = {str(edge): (*edge.operations, *none) for edge in architecture.space.edges}
    return edges | dict(architecture.space.choices)
