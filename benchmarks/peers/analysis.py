"""Tables of the comparison with Panoptic FPN, from kept results."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.contestants import MAIN, flow_contestants
from spatialflow.analysis.ablations import WITHOUT
from spatialflow.analysis.comparison import difference_row, difference_table
from spatialflow.analysis.intervals import (
    GROUPS,
    ResampledPQ,
    Result,
    load_results,
    paired_difference,
    pq_from_counts,
)
from spatialflow.analysis.tables import complete, table
from spatialflow.data.selection import in_validation_split
from spatialflow.utils import charts
from spatialflow.utils.errors import ConfigError
from spatialflow.utils.files import read_json, write_text

SPEED_FILE = "speed.json"


def results_of(results: list[Result], dataset: str, contestant: str, rate: float) -> list[Result]:
    """Return a contestant's results on a data set at a learning rate, in the order of seeds."""
    mine = [
        r
        for r in results
        if (r["dataset"], r["contestant"], r["rate"]) == (dataset, contestant, rate)
    ]
    return sorted(mine, key=lambda r: r["seed"])


def is_known(dataset: str, name: str) -> bool:
    """Return whether earlier versions were evaluated on an image: by ``run``, ``flows`` or by hand.

    Args:
        dataset: Name of the data set.
        name: File name of the image.
    """
    if dataset == "scenes":  # scenes are numbered, and the first 40 were evaluated
        return int(Path(name).stem) < 40
    return in_validation_split(name, fraction=0.2, seed=0)


def part_of(result: Result, part: str) -> Result:
    """Return a result on a part of its images: choices are made on one, figures are of the other.

    Args:
        result: Result of a run.
        part: ``choose`` for the images on which earlier versions were evaluated, ``report`` for
            the others.
    """
    known = [is_known(result["dataset"], name) for name in result["images"]]
    kept = [i for i, is_one in enumerate(known) if is_one == (part == "choose")]
    counts = [result["counts"][i] for i in kept]
    isthing = np.array([bool(c["isthing"]) for c in result["classes"]])
    quality = pq_from_counts(np.sum(counts, axis=0), isthing)
    return {
        **result,
        "images": [result["images"][i] for i in kept],
        "counts": counts,
        **dict(zip(GROUPS, quality.tolist(), strict=True)),
    }


def learning_table(results: list[Result], dataset: str) -> str:
    """Return a Markdown table of how well the networks learn, each beside Panoptic FPN.

    A learning rate is the better one on the images to choose on, by the seeds that both have;
    all figures are of the other images. Seconds are of training alone, of one core.
    """
    mine = [r for r in results if r["dataset"] == dataset]
    chosen_on, reported = ([part_of(r, part) for r in mine] for part in ("choose", "report"))
    rows, runs = [], {}
    for name in dict.fromkeys(r["contestant"] for r in mine):
        rate = best_rate(chosen_on, dataset, name)
        runs[name] = results_of(reported, dataset, name, rate)
        sampled = ResampledPQ(runs[name])
        seconds = f"{np.mean([r['curve'][-1][1] for r in runs[name]]):.0f}"
        cells = [sampled.cell(group) for group in range(3)]
        rows.append([name, f"{rate:g}", *cells, str(len(runs[name])), seconds])
    first = MAIN[0]
    for row in rows:
        if row[0] == first or first not in runs:
            row.append("")
            continue
        worth, seeds = paired_difference(runs[row[0]], runs[first])
        row.append(f"{worth.cell(0, sign=True)}, {seeds} seeds")
    return table(["", "rate", *GROUPS, "seeds", "s", f"PQ over {first}"], rows)


def learning_curves(results: list[Result], dataset: str) -> dict[str, str]:
    """Draw the mean PQ of contestants over steps and over seconds of the CPU, as SVG by axis.

    Args:
        results: Results with a ``curve``, on the images to report on.
        dataset: Name of the data set.
    """
    mine = [r for r in results if r["dataset"] == dataset]
    chosen_on = [part_of(r, "choose") for r in mine]
    steps: dict[str, list[charts.Point]] = {}
    seconds: dict[str, list[charts.Point]] = {}
    for name in dict.fromkeys(r["contestant"] for r in mine):
        runs = results_of(mine, dataset, name, best_rate(chosen_on, dataset, name))
        steps_of = {tuple(step for step, *_ in r["curve"]) for r in runs}
        if len(steps_of) > 1:
            raise ConfigError(f"{name} on {dataset}: curves at the same steps expected: {steps_of}")
        points = np.mean([r["curve"] for r in runs], axis=0)  # (evaluations, 3)
        steps[name] = [(step, quality) for step, _, quality in points.tolist()]
        seconds[name] = [(second, quality) for _, second, quality in points.tolist()]
    return {
        "steps": charts.lines(steps, x="iterations", y="PQ"),
        "seconds": charts.lines(seconds, x="seconds of one core", y="PQ"),
    }


def best_rate(results: list[Result], dataset: str, contestant: str) -> float:
    """Return the learning rate of a contestant with the highest mean PQ.

    The mean is over the seeds that all of its rates have.

    Raises:
        ConfigError: If there is no result, or no seed that all rates have.
    """
    mine: dict[float, dict[int, float]] = {}
    for r in results:
        if (r["dataset"], r["contestant"]) == (dataset, contestant):
            mine.setdefault(r["rate"], {})[r["seed"]] = r["PQ"]
    if not mine:
        raise ConfigError(f"no result of {contestant} on {dataset} yet: `compare_peers.py run`")
    common = set.intersection(*(set(by_seed) for by_seed in mine.values()))
    if not common:
        raise ConfigError(f"{contestant} on {dataset}: one seed at all of {sorted(mine)} expected")
    return max(mine, key=lambda rate: sum(mine[rate][seed] for seed in common))


def main_table(results: list[Result], dataset: str, speed: dict[str, Any]) -> str:
    """Return Markdown tables of the main contestants, each at its best learning rate.

    Args:
        results: Results of all runs.
        dataset: Name of the data set.
        speed: Content of ``speed.json``; {} leaves the columns of cost empty.
    """
    rows, by_name = [], {}
    for contestant in MAIN:
        rate = best_rate(results, dataset, contestant)
        mine = results_of(results, dataset, contestant, rate)
        by_name[contestant] = mine
        sampled = ResampledPQ(mine)
        cost = speed.get(dataset, {}).get(contestant, {})
        rows.append(
            [
                contestant,
                f"{rate:g}",
                *(sampled.cell(group) for group in range(3)),
                ", ".join(f"{r['PQ']:.1f}" for r in mine),
                f"{mine[0]['parameters'] / 1e6:.2f}",
                *(str(cost.get(key, "")) for key in ("GFLOPs", "step", "inference")),
                f"{np.mean([r['seconds'] for r in mine]):.0f}",
            ]
        )
    head = [
        "",
        "rate",
        *GROUPS,
        "PQ by seed",
        "M parameters",
        "GFLOPs",
        "step ×",
        "inference ×",
        "s",
    ]
    pairs = [("spatialflow", "panoptic_fpn"), ("spatialflow", "parallel")]
    differences = [difference_row(a, by_name[a], b, by_name[b]) for a, b in pairs]
    return table(head, rows) + "\n\n" + difference_table(differences)


def class_table(results: list[Result], dataset: str) -> str:
    """Return a Markdown table of the mean PQ of each class."""
    rows = []
    for contestant in MAIN:
        rate = best_rate(results, dataset, contestant)
        mine = results_of(results, dataset, contestant, rate)
        values = np.array([[c["PQ"] for c in r["classes"]] for r in mine], dtype=float)
        rows.append([contestant, *(f"{value:.1f}" for value in values.mean(axis=0))])
    return table(["PQ by class", *(c["name"] for c in mine[0]["classes"])], rows)


def flow_table(results: list[Result], dataset: str) -> str:
    """Return a Markdown table of what SpatialFlow loses without each flow.

    Raises:
        ConfigError: If there is no result of the complete design.
    """
    by_contestant: dict[str, list[Result]] = {}
    for r in results:
        if r["dataset"] == dataset:
            by_contestant.setdefault(r["contestant"], []).append(r)
    if "spatialflow" not in by_contestant:
        raise ConfigError(f"no result of spatialflow on {dataset} yet: `compare_peers.py flows`")
    whole = sorted(by_contestant["spatialflow"], key=lambda r: r["seed"])
    rows = []
    for contestant in flow_contestants()[1:]:
        mine = sorted(by_contestant.get(contestant, []), key=lambda r: r["seed"])
        if not mine:
            continue
        worth, seeds = paired_difference(whole, mine)
        saved = whole[0]["parameters"] - mine[0]["parameters"]
        name = "all ten" if contestant == "parallel" else contestant.removeprefix(WITHOUT)
        cells = [worth.cell(group, sign=True) for group in range(3)]
        mean = f"{np.mean([r['PQ'] for r in mine]):.1f}"
        rows.append([name, mean, *cells, str(seeds), f"{saved / 1e3:.0f}"])
    head = ["flow", "PQ without it", *GROUPS, "seeds", "thousand parameters"]
    return table(head, rows)


def report(args: argparse.Namespace) -> None:
    """Print the tables, and complete pages with them.

    Raises:
        ConfigError: If a page has no mark of any of the tables.
    """
    results = load_results(args.results)
    path = args.results / SPEED_FILE
    speed = read_json(path, dict) if path.is_file() else {}
    tables = {}
    for dataset in args.data:
        tables[f"peers {dataset}"] = main_table(results, dataset, speed)
        tables[f"classes {dataset}"] = class_table(results, dataset)
    flows = load_results(args.flow_results)
    for dataset in sorted({r["dataset"] for r in flows}):
        tables[f"flows {dataset}"] = flow_table(flows, dataset)
    learned = load_results(args.learning_results)
    for dataset in sorted({r["dataset"] for r in learned}):
        tables[f"learning {dataset}"] = learning_table(learned, dataset)
    if args.curves:
        long = load_results(args.curve_results)
        for dataset in sorted({r["dataset"] for r in long}):
            for axis, svg in learning_curves(long, dataset).items():
                write_text(args.curves / f"learning_{dataset}_{axis}.svg", svg)
    for name, content in tables.items():
        print(f"### {name}\n\n{content}\n")
    complete(args.write, tables)
