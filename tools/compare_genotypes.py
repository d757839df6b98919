#!/usr/bin/env python
r"""Train genotypes under one harness: PQ with intervals, parameters, FLOPs and time of each.

    python tools/compare_genotypes.py --config-file nuclei/spatialflow.yaml \
        --genotypes spatialflow parallel output/search/genotype.json --seeds 0 1 2 \
        --opts DATASETS.FOLDER.PATH nuclei_train433 SOLVER.MAX_ITER 600

Every genotype is trained with every seed on the same batches and evaluated on DATASETS.TEST.
Differences are to the first genotype, paired by seed and image. What is done is kept in
--output, and the same command goes on after a stop.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode

from darts.genotype import Genotype
from spatialflow.analysis.intervals import GROUPS, Result, Sampled, minus
from spatialflow.analysis.tables import complete, fill, parser_of, table
from spatialflow.analysis.timing import IMAGES, Timed, in_turn, spread
from spatialflow.analysis.trials import run_apart, trial
from spatialflow.cli.errors import SETUP_ERRORS, errors_in_one_line
from spatialflow.config import find_config, get_cfg, load_genotype
from spatialflow.engine import prepare_config
from spatialflow.search.derivation import config_hash
from spatialflow.utils.files import write_atomically

SPEED_FILE = "speed.json"
TABLE_FILE = "comparison.md"
COST_HEAD = ("GFLOPs", "ms an image", "time ×")


def genotypes(given: list[str]) -> dict[str, Genotype]:
    """Read genotypes by the names that the table gives them.

    Raises:
        ValueError: If one cannot be read, or two have the same name.
    """
    found: dict[str, Genotype] = {}
    for origin in given:
        genotype = load_genotype(origin)
        if genotype.name in found:
            raise ValueError(f"--genotypes: {origin}: a second one named {genotype.name!r}")
        found[genotype.name] = genotype
    return found


def config(args: argparse.Namespace, name: str, seed: int) -> CfgNode:
    """Return the complete config of a run; its folder holds its genotype."""
    folder = args.output / f"{name}-seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / "genotype.json").absolute()
    genotypes(args.genotypes)[name].save(path)
    cfg = get_cfg(str(find_config(args.config_file)), args.opts)
    cfg.SEED, cfg.OUTPUT_DIR = seed, str(folder)
    cfg.MODEL.SPATIALFLOW.GENOTYPE = str(path)
    prepare_config(cfg)
    cfg.freeze()
    return cfg


def identity(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Return what a result has to agree with, to be of this run."""
    common = get_cfg(str(find_config(args.config_file)), args.opts)
    return {
        "contestant": name,
        "seed": seed,
        "genotype": genotypes(args.genotypes)[name].hash,
        "settings": config_hash(common),
    }


def result(args: argparse.Namespace, name: str, seed: int) -> Result | None:
    """Read a run's result, None where there is none.

    Raises:
        ValueError: If it is one of another genotype or of other settings.
    """
    path = args.output / f"{name}-seed{seed}.json"
    if not path.is_file():
        return None
    content: Result = json.loads(path.read_text())
    for key, value in identity(args, name, seed).items():
        if content.get(key) != value:
            raise ValueError(
                f"{path}: result with {key} {content.get(key)!r}, {value!r} expected; give another "
                "--output, or remove it"
            )
    return content


def train_all(args: argparse.Namespace) -> dict[str, list[Result]]:
    """Do every run that has no result yet, each in a process of its own.

    Returns:
        The results of each genotype, by seed.

    Raises:
        ValueError: If a run fails.
    """
    # What is wrong is said before the first training.
    names = list(genotypes(args.genotypes))
    runs = [(name, seed) for seed in args.seeds for name in names]
    todo = [run for run in runs if result(args, *run) is None]
    for name, seed in todo:
        run_apart(f"{name}, seed {seed}", [__file__, "--one", name, seed, *sys.argv[1:]])
    found = {name: [result(args, name, seed) for seed in args.seeds] for name in names}
    return {name: [r for r in results if r is not None] for name, results in found.items()}


def speed(args: argparse.Namespace, names: list[str]) -> dict[str, dict[str, float]]:
    """Measure FLOPs and inference of each genotype's first network, in turn in one process."""
    path = args.output / SPEED_FILE
    if path.is_file():
        content: dict[str, dict[str, float]] = json.loads(path.read_text())
        if list(content) == names:
            return content
    entrants = {}
    for name in names:
        cfg = config(args, name, args.seeds[0]).clone()
        cfg.defrost()
        cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR, "model_final.pth"))
        entrants[name] = Timed(cfg)
    times = in_turn({name: item.inference for name, item in entrants.items()}, IMAGES)
    content = {
        name: {"GFLOPs": round(item.gflops(), 2), **spread("time", times[name], times[names[0]])}
        for name, item in entrants.items()
    }
    write_atomically(path, lambda file: file.write(json.dumps(content, indent=1).encode()))
    return content


def comparison(results: dict[str, list[Result]], costs: dict[str, dict[str, Any]]) -> str:
    """Write the tables: each genotype, and its difference to the first; costs where measured."""
    names = list(results)
    rows, differences = [], []
    for name, mine in results.items():
        sampled = Sampled(mine)
        rows.append(
            [
                name,
                *(sampled.cell(group) for group in range(3)),
                ", ".join(f"{r['PQ']:.1f}" for r in mine),
                f"{mine[0]['parameters'] / 1e6:.2f}",
                *(_cost_cells(costs[name]) if costs else ()),
                f"{np.mean([r['seconds'] for r in mine]):.0f}",
            ]
        )
        if name != names[0]:
            difference, seeds = minus(mine, results[names[0]])
            cells = [difference.cell(group, sign=True) for group in range(3)]
            differences.append([f"{name} − {names[0]}", *cells, str(seeds)])
    head = ["", *GROUPS, "PQ by seed", "M parameters", *(COST_HEAD if costs else ()), "s"]
    text = table(head, rows)
    if differences:
        text += "\n\n" + table(["difference", *GROUPS, "seeds"], differences)
    return text


def _cost_cells(cost: dict[str, Any]) -> list[str]:
    seconds, over = cost["time seconds"][0], cost["time"]
    return [f"{cost['GFLOPs']:.2f}", f"{1000 * seconds:.0f}", f"{over:.2f}"]


def main() -> None:
    """Train what is missing, then print and write the tables."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    with errors_in_one_line(SETUP_ERRORS):
        if args.one:
            name, seed = args.one[0], int(args.one[1])
            target = args.output / f"{name}-seed{seed}.json"
            trial(config(args, name, seed), target, identity(args, name, seed))
            return
        for page in args.write:
            # Before the hours of training: that it has the mark.
            fill(page.read_text(), {args.mark: ""}, str(page))
        results = train_all(args)
        text = comparison(results, {} if args.no_speed else speed(args, list(results)))
        print(text)
        (args.output / TABLE_FILE).write_text(text + "\n")
        complete(args.write, {args.mark: text})


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--config-file", required=True, help="of a training; name or path")
    parser.add_argument("--genotypes", nargs="+", required=True, help="names or paths")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("output/comparison"))
    parser.add_argument("--no-speed", action="store_true", help="measure no FLOPs and no times")
    parser.add_argument("--mark", default="comparison", help="of the tables in those pages")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
