"""Draw charts as SVG with matplotlib, for light and dark pages."""

from __future__ import annotations

import io
import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from colorsys import hsv_to_rgb
from typing import Any

from matplotlib import rc_context
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from spatialflow.utils.text import printable

INK = "#7a828c"
"""Colour that the SVG replaces by the page's own text colour, light or dark."""

PAGE_INK = "<style>svg{color:#1c2733}@media (prefers-color-scheme:dark){svg{color:#dfe6ee}}</style>"
COLORS = ("#b3661d", "#3b82c4", "#7a62c9", "#1b8f86", "#c0508f", "#8a7d1d")
DASHES = ("-", "--", "-.", ":")
WIDTH = 7
"""Width of a chart in inches."""

# Small multiples: number in a row, letters in a line of a title, and sizes in inches.
COLUMNS = 6
TITLE_LETTERS = 30
PANEL_WIDTH, PANEL_HEIGHT = 1.85, 0.9
MARGIN = 0.4
LINE, LETTER = 0.17, 0.07
LEGEND_HANDLE = 0.6

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "spatialflow",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "savefig.transparent": True,
}

Point = tuple[float, float]


def lines(series: Mapping[str, Sequence[Point]], *, x: str, y: str) -> str:
    """Draw lines over a common horizontal axis, with a legend beside them.

    No two lines have the same colour.

    Args:
        series: Name of a line → its points (x, y), in order.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.

    Returns:
        SVG document.
    """
    styles = _styles(list(series), dict(zip(series, COLORS, strict=False)))
    labels = {name: _legend_text(textwrap.fill(printable(name), TITLE_LETTERS)) for name in series}
    entries = sum(label.count("\n") + 1.3 for label in labels.values())
    with rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, max(3.2, LINE * entries + 0.3)), layout="constrained")
        axes = figure.subplots()
        for name, points in series.items():
            axes.plot(*_xy(points), label=labels[name], **styles[name], **_marker(points))
        axes.set(xlabel=x, ylabel=y)
        figure.legend(loc="outside right upper")
        return _svg(figure)


def intervals(rows: Mapping[str, tuple[float, float, float]], *, x: str) -> str:
    """Draw differences and their intervals as rows, with a line at zero.

    Args:
        rows: Name of a row → mean, lower end and upper end.
        x: Label of the horizontal axis.

    Returns:
        SVG document.
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, 0.9 + 0.3 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for i, (mean, low, high) in enumerate(rows.values()):
            axes.plot([low, high], [-i, -i], color=COLORS[1], linewidth=2)
            axes.plot([mean], [-i], "o", color=COLORS[0])
        axes.axvline(0, color=INK, linewidth=0.8, linestyle="--")
        axes.set_yticks([-i for i in range(len(rows))], [*map(printable, rows)])
        axes.set_ylim(-len(rows) + 0.5, 0.5)
        axes.set_xlabel(x)
        return _svg(figure)


def small_multiples(
    panels: Mapping[str, Mapping[str, Sequence[Point]]],
    *,
    title: str,
    x: str,
    colors: Mapping[str, str] | None = None,
) -> str:
    """Draw one small chart of shares per panel, all over the same axes, with one legend.

    A name has the same colour in every panel, and no two names have the same colour.

    Args:
        panels: Title of a panel → name of a line → its points (x, share from 0 to 1), in order.
        title: Title of the picture.
        x: Label of the horizontal axes.
        colors: Name of a line → its colour ``#rrggbb``, all different; other names get colours that
            are not among these.

    Returns:
        SVG document, as large as its panels and legend need.
    """
    names = list(dict.fromkeys(itertools.chain.from_iterable(panels.values())))
    styles = _styles(names, colors or {})
    titles = [textwrap.wrap(printable(name), TITLE_LETTERS) for name in panels]
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    # Sizes are known before drawing: a layout that matplotlib finds takes seconds.
    gap = LINE * max(map(len, titles)) + 0.1
    entry = LEGEND_HANDLE + LETTER * max(map(len, names))
    width = max(columns * PANEL_WIDTH, entry, LETTER * 1.5 * len(title)) + MARGIN
    legend_columns = int((width - MARGIN) / entry)
    top = LINE * (math.ceil(len(names) / legend_columns) + 2) + gap
    height = top + rows * (PANEL_HEIGHT + gap) + 0.2
    with rc_context(_STYLE | {"font.size": 8, "axes.titlesize": 8}):
        figure = Figure(figsize=(width, height))
        figure.subplots_adjust(
            left=MARGIN / width,
            right=(MARGIN + columns * PANEL_WIDTH - 0.2) / width,
            top=1 - top / height,
            bottom=(gap + 0.2) / height,
            wspace=0.12,
            hspace=gap / PANEL_HEIGHT,
        )
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for i, (axes, series) in enumerate(zip(grid.flat, panels.values(), strict=False)):
            _draw_panel(axes, "\n".join(titles[i]), series, styles)
            # The last panel of its column, where the last row has fewer panels than the others.
            axes.tick_params(labelbottom=i + columns >= len(panels))
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        left = MARGIN / width
        figure.text(left, 0.05 / height, x)
        figure.text(left, 1 - 0.05 / height, printable(title), fontsize=11, va="top")
        _add_legend(figure, styles, legend_columns, corner=(left, 1 - 1.5 * LINE / height))
        return _svg(figure)


def _draw_panel(
    axes: Any,
    title: str,
    series: Mapping[str, Sequence[Point]],
    styles: Mapping[str, Mapping[str, Any]],
) -> None:
    """Draw the lines of one panel of :func:`small_multiples`, in the style of each line."""
    for line, points in series.items():
        axes.plot(*_xy(points), linewidth=1.2, **styles[line], **_marker(points))
    axes.set_title(title, loc="left")
    axes.set(ylim=(-0.03, 1.03), yticks=(0, 0.5, 1))


def _add_legend(
    figure: Figure,
    styles: Mapping[str, Mapping[str, Any]],
    columns: int,
    *,
    corner: tuple[float, float],
) -> None:
    """Add a legend of all names, with its upper left corner at a place in shares of the figure."""
    figure.legend(
        [Line2D([], [], **style) for style in styles.values()],
        [_legend_text(printable(name)) for name in styles],
        ncols=columns,
        loc="upper left",
        bbox_to_anchor=corner,
        borderaxespad=0,
        borderpad=0.5,
    )


def _legend_text(text: str) -> str:
    """Return a text for a legend: matplotlib leaves out those that begin with an underscore."""
    return f" {text}" if text.startswith("_") else text


def _xy(points: Sequence[Point]) -> Any:
    return zip(*points, strict=True)


def _marker(points: Sequence[Point]) -> dict[str, Any]:
    """Return the marker of a line: a single point, of a short run, has no line to be seen."""
    return {"marker": "o", "markersize": 3} if len(points) == 1 else {}


def _styles(names: Sequence[str], colors: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return a line's colour and style for each name; no colour is used twice."""
    free = [name for name in names if name not in colors]
    taken = {color.lower() for color in colors.values()}
    # As many hues as names, and as many more as can be taken already.
    count = len(free) + len(taken)
    wheel = [to_hex(hsv_to_rgb(i / count, 0.65, 0.75)) for i in range(count)]
    rest = zip(free, (color for color in wheel if color not in taken), strict=False)
    chosen = {**colors, **dict(rest)}
    return {
        name: {"color": chosen[name], "linestyle": DASHES[i % len(DASHES)]}
        for i, name in enumerate(names)
    }


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    _, begin, text = file.getvalue().partition("<svg")
    head, end, rest = text.replace(INK, "currentColor").partition(">")
    return begin + head + end + PAGE_INK + rest
