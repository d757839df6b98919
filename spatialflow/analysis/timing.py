"""Time of a training step and of inference, several models in turn in one process.

The models are trained: what inference costs depends on what is detected.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from detectron2.utils.analysis import FlopCountAnalysis
from detectron2.utils.events import EventStorage

from spatialflow.engine import Trainer

ROUNDS = 9
IMAGES = 5


class Timed:
    """A contestant that can be asked for one step and for one image."""

    def __init__(self, cfg: Any) -> None:
        """Build the model of a config with its ``MODEL.WEIGHTS``, and take a batch and images."""
        self.trainer = Trainer(cfg)
        self.trainer.resume_or_load(resume=False)
        self.batch = next(iter(self.trainer.step_trainer.data_loader))
        loader = Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])
        self.images = list(itertools.islice(loader, IMAGES))

    def step(self) -> None:
        """Forward, losses, backward, optimiser."""
        self.trainer.model.train()
        optimizer = self.trainer.step_trainer.optimizer
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
            counter.set_op_handle(**OPERATIONS)
            totals.append(float(counter.total()) / 1e9)
        return statistics.mean(totals)


def in_turn(
    works: dict[str, Callable[[], Any]], share: int = 1, rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Time each work once a round, as so many shares; the first round only warms up.

    Where a GPU is used, a work ends when the GPU has done it.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            if number:
                times[name].append((time.perf_counter() - start) / share)
    return times


def spread(what: str, mine: list[float], first: list[float]) -> dict[str, Any]:
    """Return the ratio of medians, and seconds: median, least and most."""
    seconds = [round(f(mine), 4) for f in (statistics.median, min, max)]
    return {
        what: round(statistics.median(mine) / statistics.median(first), 2),
        f"{what} seconds": seconds,
    }


def _deformable_multiply_adds(inputs: list[Any], outputs: list[Any]) -> int:
    """Those of the convolution, and four for each bilinear sample."""
    weight, output = inputs[1].type().sizes(), outputs[0].type().sizes()
    positions = output[0] * output[2] * output[3]
    kernel = weight[1] * weight[2] * weight[3]
    channels = inputs[0].type().sizes()[1]
    return int(positions * (weight[0] * kernel + 4 * channels * weight[2] * weight[3]))


def _attention_multiply_adds(inputs: list[Any], outputs: list[Any]) -> int:
    query, key = inputs[0].type().sizes(), inputs[1].type().sizes()
    return int(2 * query[0] * query[1] * key[1] * query[2])


OPERATIONS = {
    "torchvision::deform_conv2d": _deformable_multiply_adds,
    "aten::scaled_dot_product_attention": _attention_multiply_adds,
}
"""What fvcore does not count by itself."""
