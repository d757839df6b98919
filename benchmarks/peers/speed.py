"""Time of a training step and of inference, the contestants in turn in one process.

The models are those that the runs have left: what inference costs depends on what is detected, and
with random heads one detects as much as it may and the other nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.analysis import FlopCountAnalysis
from detectron2.utils.events import EventStorage

from benchmarks.peers.analysis import SPEED_FILE, Result, best_rate, load_results, of
from benchmarks.peers.contestants import MAIN, config, run_name
from spatialflow.engine import Trainer
from spatialflow.files import write_atomically

ROUNDS = 9
IMAGES = 5


class Timed:
    """A contestant that can be asked for one step and for one image."""

    def __init__(
        self, dataset: str, contestant: str, weights: Path, nuclei: Path | None, folder: Path
    ) -> None:
        """Build it with the weights of a run.

        Args:
            dataset: ``nuclei`` or ``scenes``.
            contestant: One of the main ones.
            weights: The run's ``model_final.pth``.
            nuclei: The nuclei in COCO panoptic layout.
            folder: For files that are needed meanwhile.

        Raises:
            ValueError: If the weights are not there.
        """
        if not weights.is_file():
            raise ValueError(f"{weights}: no such file; the model of a run expected (--weights)")
        output = folder / dataset / contestant
        opts = ["MODEL.WEIGHTS", str(weights)]
        cfg = config(
            dataset, contestant, rate=1e-4, seed=0, output=output, nuclei=nuclei, opts=opts
        )
        self.trainer = Trainer(cfg)
        self.trainer.resume_or_load(resume=False)
        self.batch = next(iter(self.trainer._trainer.data_loader))
        loader = Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])
        self.images = list(itertools.islice(loader, IMAGES))

    def step(self) -> None:
        """Forward, losses, backward, optimiser."""
        self.trainer.model.train()
        optimizer = self.trainer._trainer.optimizer
        with EventStorage():
            loss = sum(self.trainer.model(self.batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def inference(self) -> list[int]:
        """Some images one by one, each with its panoptic result; how much is detected on each."""
        self.trainer.model.eval()
        with torch.no_grad():
            return [len(self.trainer.model(image)[0]["instances"]) for image in self.images]

    def gflops(self) -> float:
        """Multiply-adds of inference on one of the images, in 10^9, as fvcore counts them."""
        self.trainer.model.eval()
        totals = []
        for image in self.images:
            counter = FlopCountAnalysis(self.trainer.model, image)
            counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            totals.append(float(counter.total()) / 1e9)
        return statistics.mean(totals)


def in_turn(works: dict[str, Callable[[], Any]], share: int = 1) -> dict[str, list[float]]:
    """Time each work once a round, as so many shares; the first round only warms up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(ROUNDS + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if number:
                times[name].append((time.perf_counter() - start) / share)
    return times


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
            timed = {
                name: Timed(dataset, name, model, args.nuclei, Path(folder))
                for name, model in models(results, dataset, args.weights).items()
            }
        # Inference first: steps change what is detected.
        inference = in_turn({name: item.inference for name, item in timed.items()}, IMAGES)
        counted = {
            name: {"GFLOPs": round(item.gflops(), 2), "detections": item.inference()}
            for name, item in timed.items()
        }
        steps = in_turn({name: item.step for name, item in timed.items()})
        content[dataset] = {
            name: {
                **counted[name],
                **spread("step", steps[name], steps[MAIN[0]]),
                **spread("inference", inference[name], inference[MAIN[0]]),
            }
            for name in timed
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


def spread(what: str, mine: list[float], first: list[float]) -> dict[str, Any]:
    """Return the ratio of medians, and seconds: median, least and most."""
    seconds = [round(f(mine), 4) for f in (statistics.median, min, max)]
    return {
        what: round(statistics.median(mine) / statistics.median(first), 2),
        f"{what} seconds": seconds,
    }
