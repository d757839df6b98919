"""Command line and output of all benchmarks of speed: a table, JSON and a plot."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.speed.machine import describe
from spatialflow.analysis.tables import complete, program_parser, table
from spatialflow.cli.errors import errors_in_one_line
from spatialflow.utils.files import write_json

RESULTS = Path(__file__).parents[1] / "results" / "speed"
FIGURES = Path(__file__).parents[2] / "docs" / "images"


@dataclass
class Report:
    """Results of one benchmark.

    Attributes:
        name: Name of the files, and of the table's mark in a page, without ``speed``.
        head: Column names of the table.
        rows: Rows of the table.
        bars: Ratios of a bar chart, by label. Give this or ``lines``, or neither.
        lines: Points (x, y) of line charts: panel → line → points. A panel's name is "y: x".
        data: Everything that was measured, for the JSON file.
    """

    name: str
    head: list[str]
    rows: list[list[str]] = field(default_factory=list)
    bars: dict[str, float] = field(default_factory=dict)
    lines: dict[str, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def save(self, pages: list[Path]) -> None:
        """Print the table. With pages, complete them, and write the JSON and the plot."""
        text = table(self.head, self.rows)
        print(text)
        if not pages:
            return
        RESULTS.mkdir(parents=True, exist_ok=True)
        content = {"machine": describe(), "table": [self.head, *self.rows], **self.data}
        write_json(RESULTS / f"{self.name}.json", content, indent=1)
        if self.bars or self.lines:
            self._plot(FIGURES / f"speed_{self.name}.svg")
        complete(pages, {f"speed {self.name}": text})

    def _plot(self, path: Path) -> None:
        with rc_context({"svg.hashsalt": self.name, "font.size": 9}):
            figure = self._bar_chart() if self.bars else self._line_charts()
            for axes in figure.axes:
                axes.spines[["top", "right"]].set_visible(False)
            path.parent.mkdir(exist_ok=True)
            figure.savefig(path, metadata={"Date": None, "Creator": None})

    def _bar_chart(self) -> Figure:
        figure = Figure(figsize=(7, 0.6 + 0.3 * len(self.bars)), layout="constrained")
        axes = figure.subplots()
        labels = list(self.bars)[::-1]
        axes.barh(labels, [self.bars[label] for label in labels], color="#4c78a8")
        axes.axvline(1, color="#444444", linewidth=0.8)
        axes.set_xlabel("ratio")
        return figure

    def _line_charts(self) -> Figure:
        figure = Figure(figsize=(3.4 * len(self.lines), 3), layout="constrained")
        grid = figure.subplots(1, len(self.lines), squeeze=False)
        for axes, (title, lines) in zip(grid[0], self.lines.items(), strict=True):
            for label, points in lines.items():
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
            y, _, x = title.partition(": ")
            axes.set(xlabel=x, ylabel=y)
            axes.set_ylim(bottom=0)
            axes.legend(frameon=False)
        return figure


def spread(seconds: list[float]) -> str:
    """Return median, least and most of seconds as text."""
    return f"{statistics.median(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f})"


def ratios(seconds: list[float], reference: list[float]) -> list[float]:
    """Return the ratio of two timings in every round."""
    return [a / b for a, b in zip(seconds, reference, strict=True)]


def median_ratio(seconds: list[float], reference: list[float]) -> float:
    """Return the median over rounds of the ratio of two timings."""
    return statistics.median(ratios(seconds, reference))


def run_benchmark(doc: str | None, measure: Callable[[argparse.Namespace], list[Report]]) -> None:
    """Run a benchmark as a program.

    Args:
        doc: Docstring of the program, shown by ``--help``.
        measure: Function from the arguments to the reports.
    """
    parser = program_parser(doc)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, help="folder in COCO panoptic layout")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with errors_in_one_line():
        for report in measure(args):
            report.save(args.write)
