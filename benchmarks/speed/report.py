"""How every benchmark here is asked, and where its answer goes: a table, JSON and a plot."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.machine import describe
from spatialflow.analysis.tables import complete, parser_of, table
from spatialflow.cli.errors import SETUP_ERRORS, errors_in_one_line

RESULTS = Path(__file__).parents[1] / "results" / "speed"
FIGURES = Path(__file__).parents[2] / "docs" / "images"


@dataclass
class Report:
    """The answer to one question.

    Attributes:
        name: Of its files, and of its mark in a page.
        head: Of the table's columns.
        rows: Of the table.
        bars: Label → ratio to plot; or
        lines: panel → line → pairs of x and y to plot.
        data: Everything that was measured.
    """

    name: str
    head: list[str]
    rows: list[list[str]] = field(default_factory=list)
    bars: dict[str, float] = field(default_factory=dict)
    lines: dict[str, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def save(self, pages: list[Path]) -> None:
        """Print the table; with pages, complete them and write JSON and plot."""
        text = table(self.head, self.rows)
        print(text)
        if not pages:
            return
        RESULTS.mkdir(parents=True, exist_ok=True)
        content = {"machine": describe(), "table": [self.head, *self.rows], **self.data}
        (RESULTS / f"{self.name}.json").write_text(json.dumps(content, indent=1) + "\n")
        if self.bars or self.lines:
            self._plot(FIGURES / f"speed_{self.name}.svg")
        complete(pages, {f"speed {self.name}": text})

    def _plot(self, path: Path) -> None:
        import matplotlib

        matplotlib.use("svg")
        matplotlib.rcParams.update({"svg.hashsalt": self.name, "font.size": 9})
        from matplotlib import pyplot

        if self.bars:
            figure, axes = pyplot.subplots(figsize=(7, 0.6 + 0.3 * len(self.bars)))
            labels = list(self.bars)[::-1]
            axes.barh(labels, [self.bars[label] for label in labels], color="#4c78a8")
            axes.axvline(1, color="#444444", linewidth=0.8)
            axes.set_xlabel("ratio")
        else:
            figure, grid = pyplot.subplots(
                1, len(self.lines), figsize=(3.4 * len(self.lines), 3), squeeze=False
            )
            for axes, (title, lines) in zip(grid[0], self.lines.items(), strict=True):
                for label, points in lines.items():
                    axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
                axes.set(xlabel=title.partition(": ")[2], ylabel=title.partition(": ")[0])
                axes.set_ylim(bottom=0)
                axes.legend(frameon=False)
        for axes in figure.axes:
            axes.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def spread(seconds: list[float]) -> str:
    """Return seconds as their median, least and most."""
    return f"{statistics.median(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f})"


def ratios(of: list[float], over: list[float]) -> list[float]:
    """Divide round by round."""
    return [a / b for a, b in zip(of, over, strict=True)]


def ratio(of: list[float], over: list[float]) -> float:
    """Return the median of the ratios, round by round."""
    return statistics.median(ratios(of, over))


def program(doc: str | None, measure: Callable[[argparse.Namespace], list[Report]]) -> None:
    """Read the command line, measure, and save."""
    parser = parser_of(doc)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, help="a folder in COCO panoptic layout, if it is used")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with errors_in_one_line(SETUP_ERRORS):
        reports = measure(args)
    for report in reports:
        report.save(args.write)
