"""Time of a training step and of inference, the contestants in turn in one process."""

from __future__ import annotations

import argparse
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

from benchmarks.peers.analysis import SPEED_FILE
from benchmarks.peers.contestants import MAIN, config
from spatialflow.engine import Trainer
from spatialflow.files import write_atomically

ROUNDS = 9


class Timed:
    """A contestant that can be asked for one step and for one image."""

    def __init__(self, dataset: str, contestant: str, nuclei: Path | None, folder: Path) -> None:
        """Build it, with random branches and heads."""
        output = folder / dataset / contestant
        cfg = config(dataset, contestant, rate=1e-4, seed=0, output=output, nuclei=nuclei)
        self.trainer = Trainer(cfg)
        self.trainer.resume_or_load(resume=False)
        self.batch = next(iter(self.trainer._trainer.data_loader))
        self.image = [next(iter(Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])))[0]]

    def step(self) -> None:
        """Forward, losses, backward, optimiser."""
        self.trainer.model.train()
        optimizer = self.trainer._trainer.optimizer
        with EventStorage():
            loss = sum(self.trainer.model(self.batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def inference(self) -> None:
        """One image, with its panoptic result."""
        self.trainer.model.eval()
        with torch.no_grad():
            self.trainer.model(self.image)

    def gflops(self) -> float:
        """Multiply-adds of inference on that image, in 10^9, as fvcore counts them."""
        self.trainer.model.eval()
        counter = FlopCountAnalysis(self.trainer.model, self.image)
        return (
            float(counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total())
            / 1e9
        )


def in_turn(works: dict[str, Callable[[], None]]) -> dict[str, list[float]]:
    """Time each work once a round; the first round only warms up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(ROUNDS + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def measure_speed(args: argparse.Namespace) -> None:
    """Measure all contestants and write medians, and ratios over the first of them."""
    torch.set_num_threads(args.threads)
    content: dict[str, Any] = {
        "threads": args.threads,
        "torch": torch.__version__,
        "rounds": ROUNDS,
    }
    for dataset in args.data:
        with tempfile.TemporaryDirectory(prefix="spatialflow_speed_") as folder:
            timed = {name: Timed(dataset, name, args.nuclei, Path(folder)) for name in MAIN}
        # Inference first: steps change the number of detections.
        inference = in_turn({name: item.inference for name, item in timed.items()})
        steps = in_turn({name: item.step for name, item in timed.items()})
        content[dataset] = {
            name: {
                "GFLOPs": round(item.gflops(), 2),
                **spread("step", steps[name], steps[MAIN[0]]),
                **spread("inference", inference[name], inference[MAIN[0]]),
            }
            for name, item in timed.items()
        }
        print(dataset, json.dumps(content[dataset], indent=1), flush=True)
    args.results.mkdir(parents=True, exist_ok=True)
    write_atomically(
        args.results / SPEED_FILE,
        lambda file: file.write(json.dumps(content, indent=1).encode()),
    )


def spread(what: str, mine: list[float], first: list[float]) -> dict[str, Any]:
    """Return the ratio of medians, and seconds: median, least and most."""
    seconds = [round(f(mine), 4) for f in (statistics.median, min, max)]
    return {
        what: round(statistics.median(mine) / statistics.median(first), 2),
        f"{what} seconds": seconds,
    }
