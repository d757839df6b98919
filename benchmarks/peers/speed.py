"""Time of a training step and of inference, the contestants in turn in one process.

The models are those that the runs have left: what inference costs depends on what is detected, and
with random heads one detects as much as it may and the other nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.analysis import SPEED_FILE, best_rate, of
from benchmarks.peers.contestants import MAIN, config, run_name
from spatialflow.analysis.intervals import Result, load_results
from spatialflow.analysis.timing import IMAGES, ROUNDS, Timed, in_turn, spread
from spatialflow.utils.files import write_atomically


def timed(dataset: str, contestant: str, weights: Path, nuclei: Path | None, folder: Path) -> Timed:
    """Build a main contestant with the weights of a run.

    Raises:
        ValueError: If the weights are not there.
    """
    if not weights.is_file():
        raise ValueError(f"{weights}: no such file; the model of a run expected (--weights)")
    output, opts = folder / dataset / contestant, ["MODEL.WEIGHTS", str(weights)]
    return Timed(
        config(dataset, contestant, rate=1e-4, seed=0, output=output, nuclei=nuclei, opts=opts)
    )


def measure_speed(args: argparse.Namespace) -> None:
    """Measure all contestants and write medians, and ratios over the first of them.

    Raises:
        ValueError: If a contestant has no result or its model is not there.
    """
    results = load_results(args.results)
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
                name: timed(dataset, name, model, args.nuclei, Path(folder))
                for name, model in models(results, dataset, args.weights).items()
            }
        # Inference first: steps change what is detected.
        inference = in_turn({name: item.inference for name, item in entrants.items()}, IMAGES)
        counted = {
            name: {"GFLOPs": round(item.gflops(), 2), "detections": item.inference()}
            for name, item in entrants.items()
        }
        steps = in_turn({name: item.step for name, item in entrants.items()})
        content[dataset] = {
            name: {
                **counted[name],
                **spread("step", steps[name], steps[MAIN[0]]),
                **spread("inference", inference[name], inference[MAIN[0]]),
            }
            for name in entrants
        }
        print(dataset, json.dumps(content[dataset], indent=1), flush=True)
    args.results.mkdir(parents=True, exist_ok=True)
    write_atomically(
        args.results / SPEED_FILE,
        lambda file: file.write(json.dumps(content, indent=1).encode()),
    )


def models(results: list[Result], dataset: str, weights: Path) -> dict[str, Path]:
    """Return each main contestant's model at its better rate and first seed."""
    chosen = {}
    for name in MAIN:
        rate = best_rate(results, dataset, name)
        seed = of(results, dataset, name, rate)[0]["seed"]
        chosen[name] = weights / run_name(dataset, name, rate, seed) / "model_final.pth"
    return chosen
