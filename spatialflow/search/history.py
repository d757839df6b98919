"""Draw how the probabilities of an architecture changed during a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from darts.drawing import STYLES
from darts.relaxation import Architecture
from spatialflow.utils import charts

COLORS = {name: color for name, (color, _) in STYLES.items()} | {"none": "#999999"}
"""Operation → its colour in drawings of genotypes; ``none`` is grey."""


def history_svg(
    architecture: Architecture, lines: Sequence[Mapping[str, Any]], *, title: str
) -> str:
    """Draw the probability of every candidate of every edge and choice over a search.

    Args:
        architecture: Architecture of the search.
        lines: Lines of ``search.jsonl`` by iteration. Each has ``iteration``, counted from 0, and
            ``probabilities``: edge or choice → a number for each candidate.
        title: Title of the picture.

    Returns:
        SVG document with one panel for each edge and choice.

    Raises:
        ValueError: If there is no line.
    """
    if not lines:
        raise ValueError("the search has logged no line yet: nothing to draw")
    panels = {
        what: {
            name: [(line["iteration"] + 1, line["probabilities"][what][i]) for line in lines]
            for i, name in enumerate(names)
        }
        for what, names in _candidates(architecture).items()
    }
    axes = "iteration; vertical axes: probability of a candidate"
    return charts.small_multiples(panels, title=title, x=axes, colors=COLORS)


def _candidates(architecture: Architecture) -> dict[str, tuple[str, ...]]:
    """Return the names of the candidates of every edge and choice."""
    none = () if architecture.relaxation.kind == "sigmoid" else ("none",)
    edges = {str(edge): (*edge.operations, *none) for edge in architecture.space.edges}
    return edges | dict(architecture.space.choices)
