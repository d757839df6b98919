"""Time of training steps and of inference, with several models in turn in one process.

Use trained models: the cost of inference depends on what is detected.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from spatialflow.analysis.costs import mean_gflops
from spatialflow.engine import Trainer

ROUNDS = 9
IMAGES = 5


class TimedModel:
    """A model with one training batch and a few test images to time it on."""

    def __init__(self, cfg: CfgNode) -> None:
        """Build the model, load ``MODEL.WEIGHTS``, and read a batch and the images.

        Args:
            cfg: Complete config, of any meta-architecture.
        """
        self.trainer = Trainer(cfg)
        self.trainer.resume_or_load(resume=False)
        self.batch = next(iter(self.trainer.step_trainer.data_loader))
        loader = Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])
        self.images = list(itertools.islice(loader, IMAGES))

    def step(self) -> None:
        """Take one training step: forward, losses, backward, optimiser."""
        self.trainer.model.train()
        optimizer = self.trainer.step_trainer.optimizer
        with EventStorage():
            loss = sum(self.trainer.model(self.batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def inference(self) -> list[int]:
        """Predict the images one by one and return the number of detections on each."""
        self.trainer.model.eval()
        with torch.no_grad():
            return [len(self.trainer.model(image)[0]["instances"]) for image in self.images]

    def gflops(self) -> float:
        """Return the multiply-adds of inference in 10^9, as the mean over the images."""
        return mean_gflops(self.trainer.model.eval(), self.images)


def time_in_turn(
    works: dict[str, Callable[[], Any]], units: int = 1, rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Time several functions, each once a round, so that all meet the same state of the machine.

    The first round only warms up. Where a GPU is used, a call ends when the GPU has finished.

    Args:
        works: Functions by name.
        units: Number of units of work, such as images, in one call. Times are for one unit.
        rounds: Number of rounds that count.

    Returns:
        The seconds of every round, by name.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            if number:
                times[name].append((time.perf_counter() - start) / units)
    return times


def compare_times(what: str, times: list[float], reference: list[float]) -> dict[str, Any]:
    """Compare the seconds of a model with those of a reference.

    Args:
        what: Name of the work, which becomes the key of the result.
        times: Seconds of the model.
        reference: Seconds of the reference.

    Returns:
        ``{what: ratio of the medians, "what seconds": [median, least, most]}``.
    """
    seconds = [round(f(times), 4) for f in (statistics.median, min, max)]
    return {
        what: round(statistics.median(times) / statistics.median(reference), 2),
        f"{what} seconds": seconds,
    }
