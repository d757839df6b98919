"""Genotypes that are trained with the same seeds under one harness, and compared.

Every genotype sees the same batches and is evaluated on ``DATASETS.TEST``. Results are kept, so
that a comparison that was stopped can go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from darts.genotype import Genotype
from spatialflow.analysis.intervals import GROUPS, ResampledPQ, Result, paired_difference
from spatialflow.analysis.tables import table
from spatialflow.analysis.timing import IMAGES, TimedModel, compare_times, time_in_turn
from spatialflow.analysis.trials import run_trial
from spatialflow.config import config_hash, get_cfg, load_genotype
from spatialflow.engine import prepare_config
from spatialflow.utils.errors import ConfigError
from spatialflow.utils.files import read_json, write_json
from spatialflow.utils.hold import held

SPEED_FILE = "speed.json"
WEIGHTS_FILE = "model_final.pth"
COST_HEAD = ("GFLOPs", "ms an image", "time ×")


def load_genotypes(origins: Iterable[str]) -> dict[str, Genotype]:
    """Read genotypes from built-in names or paths.

    Returns:
        The genotypes, by their own names.

    Raises:
        ConfigError: If one cannot be read, or two have the same name.
    """
    found: dict[str, Genotype] = {}
    for origin in origins:
        genotype = load_genotype(origin)
        if genotype.name in found:
            raise ConfigError(f"--genotypes: {origin}: a second one named {genotype.name!r}")
        found[genotype.name] = genotype
    return found


@dataclass(frozen=True)
class Comparison:
    """Runs of several genotypes with several seeds, and the folder of their results.

    Attributes:
        config_file: Name or path of the config of a training.
        opts: KEY VALUE pairs over the config.
        genotypes: Genotypes by name. The others are compared with the first.
        seeds: Seeds that every genotype is trained with.
        output: Folder of the results and of the trained models.
    """

    config_file: str
    opts: Sequence[object]
    genotypes: Mapping[str, Genotype]
    seeds: Sequence[int]
    output: Path

    def missing(self) -> list[tuple[str, int]]:
        """Return the runs, name and seed, that have no result yet.

        Raises:
            ValueError: If a result is of another genotype or of other settings.
        """
        runs = [(name, seed) for seed in self.seeds for name in self.genotypes]
        return [run for run in runs if self.result(*run) is None]

    def results(self) -> dict[str, list[Result]]:
        """Return the results that there are, by genotype and in the order of seeds.

        Raises:
            ValueError: If a result is of another genotype or of other settings.
        """
        found = {name: [self.result(name, s) for s in self.seeds] for name in self.genotypes}
        return {name: [r for r in results if r is not None] for name, results in found.items()}

    def result(self, name: str, seed: int) -> Result | None:
        """Read the result of a run, None where there is none.

        Raises:
            ConfigError: If it is of another genotype or of other settings.
        """
        path = self._result_file(name, seed)
        if not path.is_file():
            return None
        content: Result = read_json(path, dict)
        for key, value in self.identity(name, seed).items():
            if key == "settings" and content.get(key) == self._settings(absolute=True):
                continue
            if content.get(key) != value:
                raise ConfigError(
                    f"{path}: result with {key} {content.get(key)!r}, {value!r} expected; give "
                    "another --output, or remove it"
                )
        return content

    def identity(self, name: str, seed: int) -> dict[str, Any]:
        """Return the part of a result by which it belongs to a run."""
        return {
            "contestant": name,
            "seed": seed,
            "genotype": self.genotypes[name].hash,
            "settings": self._settings(absolute=False),
            # Results of version 0.1 started from values in the order of building: no pairs of ours.
            "initial_values": "by name",
        }

    def _settings(self, *, absolute: bool) -> str:
        """Return the hash of the config, with its paths as given or absolute.

        Results keep the first, which holds after a move of the data. Some have the second.
        """
        return config_hash(get_cfg(self.config_file, self.opts, absolute=absolute))

    def train(self, name: str, seed: int) -> None:
        """Train and evaluate a genotype with a seed, and write the result.

        Raises:
            ConfigError: If another process trains the same, or the config is not valid.
        """
        with held(self._folder(name, seed), "--output"):
            cfg = self._config(name, seed)
            cfg.freeze()
            run_trial(cfg, self._result_file(name, seed), self.identity(name, seed))

    def check_costs(self) -> None:
        """Check that :meth:`costs` will find its networks, those still to be trained aside.

        Raises:
            ConfigError: If weights are missing of a run whose result is kept.
        """
        if self._kept_costs() is not None:
            return
        for name in self.genotypes:
            weights = self._folder(name, self.seeds[0]) / WEIGHTS_FILE
            if self.result(name, self.seeds[0]) is not None and not weights.is_file():
                raise ConfigError(
                    f"{weights}: not there, though {self._result_file(name, self.seeds[0])} is; "
                    "give --no-speed to measure no times, or remove that result to train again"
                )

    def _kept_costs(self) -> dict[str, dict[str, Any]] | None:
        path = self.output / SPEED_FILE
        if not path.is_file():
            return None
        content: dict[str, dict[str, Any]] = read_json(path, dict)
        return content if list(content) == list(self.genotypes) else None

    def costs(self) -> dict[str, dict[str, Any]]:
        """Measure GFLOPs and inference time of the networks that the first seed gave.

        All networks are timed in turn in one process. The numbers are kept in ``speed.json``.

        Returns:
            For every genotype ``GFLOPs``, ``time`` over that of the first genotype, and
            ``time seconds``: median, least and most.
        """
        kept = self._kept_costs()
        if kept is not None:
            return kept
        path, names, models = self.output / SPEED_FILE, list(self.genotypes), {}
        for name in names:
            cfg = self._config(name, self.seeds[0])
            cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR, WEIGHTS_FILE))
            models[name] = TimedModel(cfg)
        times = time_in_turn({name: model.inference for name, model in models.items()}, IMAGES)
        content = {
            name: {
                "GFLOPs": round(model.gflops(), 2),
                **compare_times("time", times[name], times[names[0]]),
            }
            for name, model in models.items()
        }
        write_json(path, content, indent=1)
        return content

    def _result_file(self, name: str, seed: int) -> Path:
        return self.output / f"{name}-seed{seed}.json"

    def _folder(self, name: str, seed: int) -> Path:
        return self.output / f"{name}-seed{seed}"

    def _config(self, name: str, seed: int) -> CfgNode:
        """Return the complete config of a run, with its genotype in its output folder."""
        folder = self._folder(name, seed)
        folder.mkdir(parents=True, exist_ok=True)
        path = (folder / "genotype.json").absolute()
        self.genotypes[name].save(path)
        cfg = get_cfg(self.config_file, self.opts)
        cfg.SEED, cfg.OUTPUT_DIR = seed, str(folder)
        cfg.MODEL.SPATIALFLOW.GENOTYPE = str(path)
        prepare_config(cfg)
        return cfg


def comparison_table(
    results: Mapping[str, list[Result]], costs: Mapping[str, dict[str, Any]] | None = None
) -> str:
    """Return Markdown tables: PQ of each genotype, and its difference to the first.

    Args:
        results: Results of each genotype, one a seed.
        costs: Costs from :meth:`Comparison.costs`; None leaves their columns out.
    """
    names = list(results)
    rows, differences = [], []
    for name, mine in results.items():
        sampled = ResampledPQ(mine)
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
            differences.append(difference_row(name, mine, names[0], results[names[0]]))
    head = ["", *GROUPS, "PQ by seed", "M parameters", *(COST_HEAD if costs else ()), "s"]
    text = table(head, rows)
    return f"{text}\n\n{difference_table(differences)}" if differences else text


def difference_table(rows: Sequence[Sequence[str]]) -> str:
    """Return the Markdown table of rows that :func:`difference_row` made."""
    return table(["difference", *GROUPS, "seeds"], rows)


def difference_row(
    name: str, results: list[Result], other: str, other_results: list[Result]
) -> list[str]:
    """Return a row for :func:`difference_table`.

    Args:
        name: Name of a contestant.
        results: Its results.
        other: Name of the contestant that is subtracted.
        other_results: Its results.

    Raises:
        ValueError: If the two have no seed in common.
    """
    difference, seeds = paired_difference(results, other_results)
    cells = [difference.cell(group, sign=True) for group in range(3)]
    return [f"{name} − {other}", *cells, str(seeds)]


def _cost_cells(cost: dict[str, Any]) -> list[str]:
    seconds, over = cost["time seconds"][0], cost["time"]
    return [f"{cost['GFLOPs']:.2f}", f"{1000 * seconds:.0f}", f"{over:.2f}"]
