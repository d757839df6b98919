"""Time of a training step and of inference, with the contestants in turn in one process.

The models are those that the runs trained. The cost of inference depends on what is painted, so all
of them paint the same number of things.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.analysis import SPEED_FILE, best_rate, results_of
from benchmarks.peers.contestants import MAIN, config, given_folders, run_name
from benchmarks.speed.contestants import painted_things, set_detections
from spatialflow.analysis.costs import mean_gflops
from spatialflow.analysis.intervals import Result, load_results
from spatialflow.analysis.timing import ROUNDS, TimedModel, compare_times, time_in_turn
from spatialflow.utils.errors import ConfigError
from spatialflow.utils.files import write_json

COUNTS = (0, 30, 100)
"""Numbers of things to paint; the ratio of the tables is the one at TABLE_COUNT."""

TABLE_COUNT = 30


def timed(
    dataset: str,
    contestant: str,
    weights: Path,
    folders: Mapping[str, Path | None],
    folder: Path,
) -> TimedModel:
    """Build a contestant with the weights of a run.

    Args:
        dataset: One of :data:`benchmarks.peers.contestants.DATASETS`.
        contestant: Name of the contestant.
        weights: Checkpoint of the run.
        folders: Data set → its folder.
        folder: Folder for outputs.

    Raises:
        ConfigError: If there is no such checkpoint.
    """
    if not weights.is_file():
        raise ConfigError(f"{weights}: no such file; the model of a run expected (--weights)")
    output, opts = folder / dataset / contestant, ["MODEL.WEIGHTS", str(weights)]
    return TimedModel(
        config(dataset, contestant, rate=1e-4, seed=0, output=output, folders=folders, opts=opts)
    )


def measure_speed(args: argparse.Namespace) -> None:
    """Measure all contestants, and write their times and the ratios to the first contestant.

    Raises:
        ConfigError: If a contestant has no result or its model is not there.
    """
    results = load_results(args.results)
    folders = given_folders(args)
    torch.set_num_threads(args.threads)
    content: dict[str, Any] = {
        "threads": args.threads,
        "torch": torch.__version__,
        "rounds": ROUNDS,
    }
    for dataset in args.data:
        with tempfile.TemporaryDirectory(prefix="spatialflow_speed_") as folder:
            entrants = {
                name: timed(dataset, name, model, folders, Path(folder))
                for name, model in models(results, dataset, args.weights).items()
            }
        # Training takes the thresholds of the config, which the inference changes.
        steps = time_in_turn({name: item.step for name, item in entrants.items()})
        inference = {count: inference_at(count, entrants) for count in COUNTS}
        content[dataset] = {
            name: {
                **compare_times("step", steps[name], steps[MAIN[0]]),
                **{key: inference[TABLE_COUNT][name][key] for key in ("GFLOPs", "inference")},
                "painting": {str(count): inference[count][name] for count in COUNTS},
            }
            for name in entrants
        }
        print(dataset, json.dumps(content[dataset], indent=1), flush=True)
    args.results.mkdir(parents=True, exist_ok=True)
    write_json(args.results / SPEED_FILE, content, indent=1)


@torch.no_grad()
def inference_at(count: int, entrants: dict[str, TimedModel]) -> dict[str, dict[str, Any]]:
    """Time the inference of one image, on which every network paints the same number of things.

    Args:
        count: Number of things.
        entrants: Contestants by name, :data:`MAIN`'s first among them.

    Returns:
        By name ``things``, the number that was painted, ``GFLOPs``, the multiply-adds in 10^9, and
        the times of :func:`compare_times`.
    """
    works, gflops = {}, {}
    for name, item in entrants.items():
        model, image = item.trainer.model.eval(), item.images[0]
        set_detections(model, image[0], count)
        gflops[name] = round(mean_gflops(model, [image]), 2)
        works[name] = lambda model=model, image=image: model(image)[0]
    painted = {name: painted_things(work()) for name, work in works.items()}
    times = time_in_turn(works)
    return {
        name: {
            "things": painted[name],
            "GFLOPs": gflops[name],
            **compare_times("inference", times[name], times[MAIN[0]]),
        }
        for name in works
    }


def models(results: list[Result], dataset: str, weights: Path) -> dict[str, Path]:
    """Return the checkpoint of each contestant at its best rate and first seed, peers first."""
    chosen = {}
    found = {r["contestant"] for r in results if r["dataset"] == dataset}
    for name in dict.fromkeys([*MAIN, *sorted(found)]):
        rate = best_rate(results, dataset, name)
        seed = results_of(results, dataset, name, rate)[0]["seed"]
        chosen[name] = weights / run_name(dataset, name, rate, seed) / "model_final.pth"
    return chosen
