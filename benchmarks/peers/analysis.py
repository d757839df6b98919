"""From results to tables: PQ with intervals over seeds and images together, and paired differences.

S seeds, I images, C classes; ``counts`` (S, I, C, 4) holds iou, tp, fp and fn, as PQ is made of.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.contestants import MAIN, WITHOUT, flow_contestants

RESAMPLES = 2000
GROUPS = ("PQ", "PQ_th", "PQ_st")
SPEED_FILE = "speed.json"

Result = dict[str, Any]


def load_results(folder: Path) -> list[Result]:
    """Read all results of runs."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/*.json"))]


def of(results: list[Result], dataset: str, contestant: str, rate: float) -> list[Result]:
    """Return a contestant's results by seed."""
    mine = [
        r
        for r in results
        if (r["dataset"], r["contestant"], r["rate"]) == (dataset, contestant, rate)
    ]
    return sorted(mine, key=lambda r: r["seed"])


def best_rate(results: list[Result], dataset: str, contestant: str) -> float:
    """Return the learning rate with the higher mean PQ at the seeds that all rates have.

    Raises:
        ValueError: If there is no result, or no such seed.
    """
    mine: dict[float, dict[int, float]] = {}
    for r in results:
        if (r["dataset"], r["contestant"]) == (dataset, contestant):
            mine.setdefault(r["rate"], {})[r["seed"]] = r["PQ"]
    if not mine:
        raise ValueError(f"no result of {contestant} on {dataset} yet: `compare_peers.py run`")
    common = set.intersection(*(set(by_seed) for by_seed in mine.values()))
    if not common:
        raise ValueError(f"{contestant} on {dataset}: one seed at all of {sorted(mine)} expected")
    return max(mine, key=lambda rate: sum(mine[rate][seed] for seed in common))


def quality(counts: np.ndarray, isthing: np.ndarray) -> np.ndarray:
    """Return PQ, PQ_th and PQ_st in percent.

    Args:
        counts: (..., C, 4) summed over images.
        isthing: (C,) bool.

    Returns:
        (..., 3); a class without segments is left out of the mean, as panopticapi does.
    """
    denominator = counts[..., 1] + 0.5 * (counts[..., 2] + counts[..., 3])
    present = denominator > 0
    per_class = counts[..., 0] / np.where(present, denominator, 1)
    groups = []
    for member in (np.ones_like(isthing), isthing, ~isthing):
        number = (present & member).sum(axis=-1)
        groups.append(100 * (per_class * member).sum(axis=-1) / np.maximum(number, 1))
    return np.stack(groups, axis=-1)


class Sampled:
    """PQ of one contestant: the measured mean over seeds, and resamples of seeds and images."""

    def __init__(self, results: list[Result], *, seed: int = 0) -> None:
        """Resample.

        Args:
            results: One of each seed, on the same images.
            seed: Of the resampling; the same for contestants that are to be compared.
        """
        images = [r["images"] for r in results]
        if any(names != images[0] for names in images):
            raise ValueError("results of different images cannot be compared")
        isthing = np.array([bool(c["isthing"]) for c in results[0]["classes"]])
        counts = np.array([r["counts"] for r in results])  # (S, I, C, 4)
        # What a difference has to have in common.
        self.drawn_from = ([r["seed"] for r in results], images[0], seed)
        self.mean = quality(counts.sum(axis=1), isthing).mean(axis=0)  # (3,)
        rng = np.random.default_rng(seed)
        seeds, number = counts.shape[:2]
        draws = []
        for _ in range(RESAMPLES):
            weights = np.bincount(rng.integers(number, size=number), minlength=number)
            chosen = rng.integers(seeds, size=seeds)
            summed = np.tensordot(counts[chosen], weights, axes=([1], [0]))  # (S, C, 4)
            draws.append(quality(summed, isthing).mean(axis=0))
        self.draws = np.array(draws)  # (RESAMPLES, 3)

    def minus(self, other: Sampled) -> Sampled:
        """Return the paired difference: the same seeds and images on both sides.

        Raises:
            ValueError: If the two sides have others.
        """
        if self.drawn_from != other.drawn_from:
            sides = " and ".join(
                f"seeds {side.drawn_from[0]} on {len(side.drawn_from[1])} images"
                for side in (self, other)
            )
            raise ValueError(f"{sides}: a difference needs the same seeds and images")
        difference = object.__new__(Sampled)
        difference.drawn_from = self.drawn_from
        difference.mean = self.mean - other.mean
        difference.draws = self.draws - other.draws
        return difference

    def cell(self, group: int, *, sign: bool = False) -> str:
        """Write the mean and its 95 % interval."""
        low, high = np.percentile(self.draws[:, group], [2.5, 97.5])
        form = "{:+.1f}" if sign else "{:.1f}"
        return f"{form} ({form} to {form})".format(self.mean[group], low, high)


def minus(one: list[Result], other: list[Result]) -> tuple[Sampled, int]:
    """Return the paired difference at the seeds that both sides have, and how many they are.

    Raises:
        ValueError: If they have none in common.
    """
    common = {r["seed"] for r in one} & {r["seed"] for r in other}
    if not common:
        names = " and ".join(side[0]["contestant"] if side else "nothing" for side in (one, other))
        raise ValueError(f"{names} have no seed in common")
    sides = [Sampled([r for r in side if r["seed"] in common]) for side in (one, other)]
    return sides[0].minus(sides[1]), len(common)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Write a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def main_table(results: list[Result], dataset: str, speed: dict[str, Any]) -> str:
    """Compare the main contestants, each at the better of its learning rates."""
    rows, results_of = [], {}
    for contestant in MAIN:
        rate = best_rate(results, dataset, contestant)
        mine = of(results, dataset, contestant, rate)
        results_of[contestant] = mine
        sampled = Sampled(mine)
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
    differences = []
    for one, other in pairs:
        difference, seeds = minus(results_of[one], results_of[other])
        cells = [difference.cell(group, sign=True) for group in range(3)]
        differences.append([f"{one} − {other}", *cells, str(seeds)])
    return table(head, rows) + "\n\n" + table(["difference", *GROUPS, "seeds"], differences)


def class_table(results: list[Result], dataset: str) -> str:
    """Write the mean PQ of each class."""
    rows = []
    for contestant in MAIN:
        mine = of(results, dataset, contestant, best_rate(results, dataset, contestant))
        values = np.array([[c["PQ"] for c in r["classes"]] for r in mine], dtype=float)
        rows.append([contestant, *(f"{value:.1f}" for value in values.mean(axis=0))])
    return table(["PQ by class", *(c["name"] for c in mine[0]["classes"])], rows)


def flow_table(results: list[Result], dataset: str) -> str:
    """Write what SpatialFlow loses without each flow: the complete design minus the other.

    Raises:
        ValueError: If there is no result of the complete design.
    """
    by_contestant: dict[str, list[Result]] = {}
    for r in results:
        if r["dataset"] == dataset:
            by_contestant.setdefault(r["contestant"], []).append(r)
    if "spatialflow" not in by_contestant:
        raise ValueError(f"no result of spatialflow on {dataset} yet: `compare_peers.py flows`")
    whole = sorted(by_contestant["spatialflow"], key=lambda r: r["seed"])
    rows = []
    for contestant in flow_contestants()[1:]:
        mine = sorted(by_contestant.get(contestant, []), key=lambda r: r["seed"])
        if not mine:
            continue
        worth, seeds = minus(whole, mine)
        saved = whole[0]["parameters"] - mine[0]["parameters"]
        name = "all ten" if contestant == "parallel" else contestant.removeprefix(WITHOUT)
        cells = [worth.cell(group, sign=True) for group in range(3)]
        mean = f"{np.mean([r['PQ'] for r in mine]):.1f}"
        rows.append([name, mean, *cells, str(seeds), f"{saved / 1e3:.0f}"])
    head = ["flow", "PQ without it", *GROUPS, "seeds", "thousand parameters"]
    return table(head, rows)


def report(args: argparse.Namespace) -> None:
    """Print the tables, and put them between the marks of the pages that are named.

    Raises:
        ValueError: If a page has no mark of a table.
    """
    results = load_results(args.results)
    path = args.results / SPEED_FILE
    speed = json.loads(path.read_text()) if path.is_file() else {}
    tables = {}
    for dataset in args.data:
        tables[f"peers {dataset}"] = main_table(results, dataset, speed)
        tables[f"classes {dataset}"] = class_table(results, dataset)
    flows = load_results(args.flow_results)
    for dataset in sorted({r["dataset"] for r in flows}):
        tables[f"flows {dataset}"] = flow_table(flows, dataset)
    for name, content in tables.items():
        print(f"### {name}\n\n{content}\n")
    for page in args.write:
        page.write_text(fill(page.read_text(), tables, str(page)))


def fill(text: str, tables: dict[str, str], where: str) -> str:
    """Put tables between ``<!-- table: NAME -->`` and ``<!-- end -->``."""
    mark = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
    unknown = [found[1] for found in mark.findall(text) if found[1] not in tables]
    if unknown or not mark.search(text):
        raise ValueError(f"{where}: tables {unknown} marked, some of {list(tables)} expected")
    return mark.sub(lambda m: f"{m[1]}\n{tables[m[2]]}\n\n{m[3]}", text)
