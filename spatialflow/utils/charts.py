"""Charts as SVG, by matplotlib, in colours for light and dark pages."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Becomes the page's own, light or dark.
INK = "#7a828c"
PAGE_INK = "<style>svg{color:#1c2733}@media (prefers-color-scheme:dark){svg{color:#dfe6ee}}</style>"
COLORS = ("#b3661d", "#3b82c4", "#7a62c9", "#1b8f86", "#c0508f", "#8a7d1d")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "spatialflow",
    "font.family": "sans-serif",
    "font.size": 10,
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
    """Draw lines, each with a name, over a common x.

    Args:
        series: Name → points (x, y) in order.
        x: Of the horizontal axis.
        y: Of the vertical axis.
    """
    with _styled() as pyplot:
        figure, axes = pyplot.subplots(figsize=(7, 3.2))
        marks = ("-", "--", "-.", ":")
        for i, (name, points) in enumerate(series.items()):
            color, mark = COLORS[i % len(COLORS)], marks[i % len(marks)]
            axes.plot(*zip(*points, strict=True), mark, color=color, label=name)
        axes.set(xlabel=x, ylabel=y)
        axes.legend()
        return _svg(figure)


def intervals(rows: Mapping[str, tuple[float, float, float]], *, x: str) -> str:
    """Draw differences with their intervals, one below the other, and a line at zero.

    Args:
        rows: Name → mean, lower and upper end.
        x: Of the axis.
    """
    with _styled() as pyplot:
        figure, axes = pyplot.subplots(figsize=(7, 0.9 + 0.3 * len(rows)))
        for i, (mean, low, high) in enumerate(rows.values()):
            axes.plot([low, high], [-i, -i], color=COLORS[1], linewidth=2)
            axes.plot([mean], [-i], "o", color=COLORS[0])
        axes.axvline(0, color=INK, linewidth=0.8, linestyle="--")
        axes.set_yticks([-i for i in range(len(rows))], list(rows))
        axes.set_ylim(-len(rows) + 0.5, 0.5)
        axes.set_xlabel(x)
        return _svg(figure)


@contextlib.contextmanager
def _styled() -> Iterator[Any]:
    """Give ``pyplot`` that draws in this style; all settings are as they were afterwards."""
    from matplotlib import pyplot, rc_context

    with rc_context(_STYLE):
        yield pyplot


def _svg(figure: Any) -> str:
    from matplotlib import pyplot

    figure.tight_layout()
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    _, begin, text = file.getvalue().partition("<svg")
    head, end, rest = text.replace(INK, "currentColor").partition(">")
    return begin + head + end + PAGE_INK + rest
