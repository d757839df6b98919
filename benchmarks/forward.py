#!/usr/bin/env python
"""What the flows cost: SpatialFlow over parallel branches, inference and training step.

    python benchmarks/forward.py --config-file Base-SpatialFlow.yaml --size 320 448

Both genotypes run in turn in one process on the same random image, and only ratios are meant to be
compared between machines.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from spatialflow import get_cfg

GENOTYPES = ("parallel", "spatialflow")


def main() -> None:
    """Print a table of medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", default="Base-SpatialFlow.yaml")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 448), metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.manual_seed(0)
    item = random_input(*args.size)
    models = {name: build(args.config_file, name) for name in GENOTYPES}
    print(f"{args.config_file}, {args.size[0]} x {args.size[1]}, {torch.get_num_threads()} threads")
    for title, run in (("inference", infer), ("training step", train_step)):
        seconds = time_in_turn(models, lambda model, run=run: run(model, item), args.rounds)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        ratios = [a / b for a, b in zip(seconds["spatialflow"], seconds["parallel"], strict=True)]
        listed = "  ".join(f"{name} {value * 1e3:.0f} ms" for name, value in medians.items())
        print(
            f"{title:14s} {listed}  ratio {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


def build(config_file: str, genotype: str) -> nn.Module:
    """Return a model with random weights."""
    classes = ["MODEL.RETINANET.NUM_CLASSES", 80, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 54]
    options = ["MODEL.SPATIALFLOW.GENOTYPE", genotype, "MODEL.WEIGHTS", "", *classes]
    return build_model(get_cfg(config_file, options))


def random_input(height: int, width: int, instances: int = 10) -> dict[str, Any]:
    """Return an image of noise with square instances, as ground truth needs some."""
    corners = torch.rand(instances, 2) * torch.tensor([width / 2, height / 2])
    boxes = torch.cat([corners, corners + min(height, width) / 4], dim=1)
    masks = torch.zeros(instances, height, width, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    truth = Instances(
        (height, width),
        gt_boxes=Boxes(boxes),
        gt_classes=torch.randint(80, (instances,)),
        gt_masks=BitMasks(masks),
    )
    return {
        "image": torch.randint(256, (3, height, width), dtype=torch.uint8),
        "instances": truth,
        "sem_seg": torch.randint(54, (height, width)),
    }


def infer(model: nn.Module, item: dict[str, Any]) -> None:
    """Predict one image."""
    model.eval()
    with torch.inference_mode():
        model([item])


def train_step(model: nn.Module, item: dict[str, Any]) -> None:
    """Run forward, losses and backward on two images."""
    model.train()
    model.zero_grad()
    with EventStorage():
        sum(model([item, item]).values()).backward()


def time_in_turn(
    models: dict[str, nn.Module], run: Callable[[nn.Module], None], rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of every round; the first, which warms up, is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, model in models.items():
            start = time.perf_counter()
            run(model)
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


if __name__ == "__main__":
    main()
