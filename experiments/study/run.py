#!/usr/bin/env python
"""Run the study of PLAN.md on one data set.

    python -m experiments.study.run nuclei --data nuclei_train433 --output output/study --threads 1
    python -m experiments.study.run scenes --output output/study --threads 1

Runs that are done are kept, and the same command goes on after a stop. Results, genotypes and
histories are copied to experiments/study/results, weights and logs are not. A run in an empty
--output goes on from there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import spatialflow  # noqa: F401  # isort: skip  # before PyTorch, for its threads
from detectron2.config import CfgNode

from darts.genotype import Genotype
from experiments.study.images import on_images, pq
from experiments.study.keep import keep, restore
from experiments.study.settings import (
    DARTS,
    DATA,
    GATED,
    HARNESS_SEEDS,
    HUMAN,
    OURS,
    PARALLEL,
    RANDOM,
    REPOSITORY,
    RESULTS,
    ROUND,
    SHORTLIST,
    SHORTLIST_SEEDS,
    final_seeds,
    search_seeds,
)
from spatialflow.analysis.ablations import file_name, without_each_flow
from spatialflow.analysis.intervals import Result
from spatialflow.analysis.trials import run_in_subprocess
from spatialflow.config import config_hash, get_cfg, load_genotype
from spatialflow.config.options import SUPERNET
from spatialflow.engine import prepare_config
from spatialflow.search.space import random_genotypes, write_genotypes
from spatialflow.utils.console import start_logging
from spatialflow.utils.files import read_json, write_json
from spatialflow.utils.hold import hold


class Study:
    """The runs of one data set and round."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Read the arguments.

        Args:
            args: ``name`` of the data set, ``data`` folder of the nuclei, ``output`` and ``kept``
                folders, ``threads`` and number of the ``round``.

        Raises:
            ValueError: If the data set is nuclei and its folder is missing.
        """
        self.data = DATA[args.name]
        self.threads = args.threads
        self.round = args.round
        # In the second round DARTS runs last, and its genotypes cannot become the finalist.
        later = args.round > 1
        self.chosen_from, self.run_last = (OURS, DARTS) if later else ((*OURS, DARTS[0]), ())
        name = args.name if args.round == 1 else f"{args.name}{ROUND}{args.round}"
        self.kept = args.kept / name
        self.folder: Path = (args.output / name).absolute()
        self.keys: tuple[object, ...] = ("DATASETS.SCENES.TRAIN", 360, "DATASETS.SCENES.VAL", 240)
        if args.name == "nuclei":
            if args.data is None:
                raise ValueError("--data: none given, the folder of the nuclei expected")
            self.keys = (
                *("DATASETS.FOLDER.PATH", args.data.absolute()),
                *("DATASETS.FOLDER.VAL_FRACTION", 0.4),
            )

    def go(self) -> None:
        """Do all runs that have no result yet, in the order of the plan.

        The second round has other seeds, and only stages that depend on the search. It trains a
        shortlist more often before it chooses a finalist, and it trains more rivals in the final.
        """
        hold(self.folder, "--output")
        restore(self.kept, self.folder)
        if self.round == 1:
            self.train("harness", [HUMAN, PARALLEL], HARNESS_SEEDS)
            self.train("minus", self.once("minus", self.minus_one), [0])
        later = self.round > 1
        self.train_searched(self.chosen_from)
        random = self.once("random", self.random)
        self.train("random", random, [0])
        if later:
            self.train("shortlist", self.shortlist(), SHORTLIST_SEEDS)
        seeds = final_seeds(self.round)
        self.train("final", [HUMAN, self.finalist()], seeds)
        if later:
            for path, seed in zip(random, seeds, strict=False):
                self.train("final_random", [path], [seed])
            self.train("final", [PARALLEL], seeds)
            self.train_searched(self.run_last)
            self.train("final", self.once("gated", self.gated), seeds)

    def train_searched(self, methods: Sequence[str]) -> None:
        """Search by methods in this order, and train each genotype that is found."""
        runs = [(method, seed) for seed in search_seeds(self.round) for method in methods]
        self.train("searched", [self.searched(*run) for run in runs], [0])

    def train(self, stage: str, genotypes: Sequence[str], seeds: Sequence[int]) -> None:
        """Train and evaluate each genotype with each seed."""
        words = [
            *("-m", "spatialflow_cli", "trials"),
            "--config-file",
            REPOSITORY / self.data.training,
        ]
        words += ["--genotypes", *genotypes, "--seeds", *seeds, "--threads", self.threads]
        words += [
            "--output",
            self.folder / stage,
            "--no-speed",
            "--opts",
            *self.keys,
            *self.data.training_keys,
        ]
        run_in_subprocess(f"{stage} of {self.folder.name}", words)
        keep(self.folder, self.kept)

    def once(self, name: str, make: Callable[[Path], None]) -> list[str]:
        """Return the paths of the genotypes of a folder, and make them if there are none.

        Args:
            name: Name of the folder.
            make: Function that writes the genotypes to a folder.
        """
        folder = self.folder / "genotypes" / name
        if not folder.is_dir():
            partial = folder.with_name(f"{name}.partial")
            partial.mkdir(parents=True, exist_ok=True)
            make(partial)
            partial.rename(folder)
        return sorted(str(path) for path in folder.glob("*.json"))

    def minus_one(self, folder: Path) -> None:
        """Write the human genotype without each of its flows."""
        without = without_each_flow(load_genotype(HUMAN))
        write_genotypes((replace(g, name=file_name(name)) for name, g in without.items()), folder)

    def gated(self, folder: Path) -> None:
        """Write the human genotype with gates instead of flows that are added."""
        human = load_genotype(HUMAN)
        flows = tuple(replace(flow, port="gate") for flow in human.flows)
        write_genotypes([replace(human, name=GATED, flows=flows, provenance={})], folder)

    def random(self, folder: Path) -> None:
        """Write random genotypes of the default space."""
        cfg = self.data.search_config("default", self.round)
        seed = search_seeds(self.round)[0]
        write_genotypes(random_genotypes(cfg, RANDOM, seed=seed), folder)

    def searched(self, method: str, seed: int) -> str:
        """Return the path of the genotype of a search, and search if there is none.

        Raises:
            ValueError: If the genotype is of a search with other settings.
        """
        target = Path(self.genotype(f"{method}_{seed}"))
        if not target.is_file():
            found = self.search(method, seed)
            target.parent.mkdir(parents=True, exist_ok=True)
            replace(found, name=target.stem).save(target)
        given = Genotype.load(target).provenance.get("config")
        expected = config_hash(self.search_config(method, seed))
        if given != expected:
            raise ValueError(
                f"{target}: of a search with the settings {given}, {expected} expected; go on with "
                "the same data folder, or with an empty one for --output and --kept each"
            )
        return str(target)

    def search_keys(self, method: str, seed: int) -> tuple[object, ...]:
        """Return the KEY VALUE pairs of a search over its config."""
        rule = ("SEARCH.RULE", method) if method == "perturbation" else ()
        return (*self.keys, *self.data.search_opts(method, self.round), "SEED", seed, *rule)

    def search_config(self, method: str, seed: int) -> CfgNode:
        """Return the complete config of a search."""
        keys = ["MODEL.META_ARCHITECTURE", SUPERNET, *self.search_keys(method, seed)]
        cfg = get_cfg(self.data.config_of(method), [str(key) for key in keys])
        prepare_config(cfg)
        return cfg

    def search(self, method: str, seed: int) -> Genotype:
        """Run ``search_net.py`` in a process of its own, and return the genotype that it finds."""
        folder = self.folder / "searches" / f"{method}_{seed}"
        words: tuple[object, ...] = ("--resume",)
        if method == "perturbation":
            words = ("--derive-only", self.supernet(seed))
        # KEY VALUE pairs come last on the command line.
        run_in_subprocess(
            f"search {folder.name}",
            [
                *(REPOSITORY / "search_net.py", "--config-file", self.data.config_of(method)),
                *(*words, *self.search_keys(method, seed), "OUTPUT_DIR", folder),
            ],
            threads=self.threads,
        )
        return Genotype.load(folder / "genotype.json")

    def supernet(self, seed: int) -> Path:
        """Return the weights of a default search, and search again if they are missing.

        Raises:
            ValueError: If the second search finds another genotype than the kept one.
        """
        name = f"default_{seed}"
        weights = self.folder / "searches" / name / "model_final.pth"
        if not weights.is_file():
            found, kept = self.search("default", seed), Genotype.load(self.genotype(name))
            if found.hash != kept.hash:
                raise ValueError(
                    f"{weights.parent}: this search, done again for its weights, finds another "
                    f"genotype than {self.genotype(name)}; remove that and its training to go on"
                )
        return weights

    def affordable(self, *stages: str) -> dict[str, dict[str, Any]]:
        """Return the searched genotypes that cost no more than the human one, with their PQ.

        Args:
            stages: Stages whose runs count, on selection images.

        Returns:
            For each genotype the mean PQ, the number of runs, and the cost over that of the human
            flows.

        Raises:
            ValueError: If there is no such genotype.
        """
        cost_over_human = self.data.cost_over_human()
        found: dict[str, list[float]] = {}
        for result in (r for stage in stages for r in self.results(stage)):
            name = result["contestant"]
            if name.rpartition("_")[0] not in self.run_last:
                found.setdefault(name, []).append(pq(on_images(result, "selection")))
        rows = {
            name: {
                "selection PQ": sum(values) / len(values),
                "runs": len(values),
                "cost over human": cost_over_human(Genotype.load(self.genotype(name))),
            }
            for name, values in found.items()
        }
        allowed = {name: row for name, row in rows.items() if row["cost over human"] <= 1}
        if not allowed:
            raise ValueError(
                f"{self.folder}: every searched genotype costs more than the human one"
            )
        return allowed

    def shortlist(self) -> list[str]:
        """Return the paths of the best genotypes by their first training."""
        rows = self.affordable("searched")
        best = sorted(rows, key=lambda name: rows[name]["selection PQ"], reverse=True)
        return [self.genotype(name) for name in best[:SHORTLIST]]

    def finalist(self) -> str:
        """Return the path of the best genotype, in the second round the best of the shortlist."""
        target = self.folder / "finalist.json"
        if not target.is_file():
            rows = self.affordable("searched", "shortlist")
            most = max(row["runs"] for row in rows.values())
            chosen = [name for name, row in rows.items() if row["runs"] == most]
            best = max(chosen, key=lambda name: rows[name]["selection PQ"])
            write_json(target, {"finalist": best, "searched": rows}, indent=1)
        return self.genotype(read_json(target, dict)["finalist"])

    def genotype(self, name: str) -> str:
        """Return the path of a searched genotype."""
        return str(self.folder / "genotypes" / f"{name}.json")

    def results(self, stage: str) -> list[Result]:
        """Return the results of a stage."""
        paths = sorted((self.folder / stage).glob("*-seed*.json"))
        return [read_json(path, dict) for path in paths]


def main() -> None:
    """Run the study of a data set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=DATA)
    parser.add_argument("--data", type=Path, help="nuclei in COCO panoptic layout")
    parser.add_argument("--output", type=Path, default=Path("output/study"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kept", type=Path, default=RESULTS, help="folder of kept results")
    parser.add_argument(
        "--round", type=int, default=1, help="2 for the changed search with other seeds"
    )
    parser.add_argument(
        "--keep", action="store_true", help="copy the results that there are, and stop"
    )
    args = parser.parse_args()
    start_logging()
    try:
        study = Study(args)
        if args.keep:
            print(f"{keep(study.folder, study.kept)} files in {study.kept}")
        else:
            study.go()
    except ValueError as error:
        sys.exit(f"study: {error}")


if __name__ == "__main__":
    main()
