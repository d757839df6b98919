"""Time of a training step and of inference, with the contestants in turn in one process.

The models are those that the runs trained. The cost of inference depends on what is detected, and
untrained models detect nothing or as much as they may.
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
from spatialflow.analysis.intervals import Result, load_results
from spatialflow.analysis.timing import IMAGES, ROUNDS, TimedModel, compare_times, time_in_turn
from spatialflow.utils.errors import ConfigError
from spatialflow.utils.files import write_json


def timed(
    dataset: str,
    contestant: str,
    weights: Path,
    folders: Mapping[str, Path | None],
    folder: Path,
) -> TimedModel:
    """Build a main contestant with the weights of a run.

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
        "images": IMAGES,
    }
    for dataset in args.data:
        with tempfile.TemporaryDirectory(prefix="spatialflow_speed_") as folder:
            entrants = {
                name: timed(dataset, name, model, folders, Path(folder))
                for name, model in models(results, dataset, args.weights).items()
            }
        # Inference comes first, as training steps change what is detected.
        inference = time_in_turn({name: item.inference for name, item in entrants.items()}, IMAGES)
        counted = {
            name: {"GFLOPs": round(item.gflops(), 2), "detections": item.inference()}
            for name, item in entrants.items()
        }
        steps = time_in_turn({name: item.step for name, item in entrants.items()})
        content[dataset] = {
            name: {
                **counted[name],
                **compare_times("step", steps[name], steps[MAIN[0]]),
                **compare_times("inference", inference[name], inference[MAIN[0]]),
            }
            for name in entrants
        }
        print(dataset, json.dumps(content[dataset], indent=1), flush=True)
    args.results.mkdir(parents=True, exist_ok=True)
    write_json(args.results / SPEED_FILE, content, indent=1)


def models(results: list[Result], dataset: str, weights: Path) -> dict[str, Path]:
    """Return the checkpoint of each main contestant at its best rate and first seed."""
    chosen = {}
    for name in MAIN:
        rate = best_rate(results, dataset, name)
        seed = results_of(results, dataset, name, rate)[0]["seed"]
        chosen[name] = weights / run_name(dataset, name, rate, seed) / "model_final.pth"
    return chosen
