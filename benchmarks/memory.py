#!/usr/bin/env python
"""What a training step keeps in memory at full size, for each config of a real benchmark.

    python benchmarks/memory.py --write docs/training.md

Counted, not measured on a GPU: a forward pass with losses of one image with 20 things is run on the
CPU, and what autograd keeps for the backward pass is added up. Workspaces of convolutions, the
fragmentation of an allocator and what the backward pass makes itself come on top.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from spatialflow.analysis.tables import complete, parser_of, table
from spatialflow.config import get_cfg

THINGS = 20
# The largest image of a config's training, and the images of a GPU.
CONFIGS = {
    "coco/spatialflow_r50_20e.yaml": ((800, 1344), 2),
    "coco/spatialflow_r101_20e.yaml": ((800, 1344), 2),
    "coco/spatialflow_r101_dcn_ms.yaml": ((1408, 1600), 2),
    "cityscapes/spatialflow_r50.yaml": ((1024, 2048), 1),
    "ade20k/spatialflow_r50.yaml": ((704, 1408), 2),
}


class Kept:
    """Adds up the storages that autograd keeps while it is used."""

    def __init__(self, model: nn.Module) -> None:
        """Leave out a model's own parameters and buffers."""
        self._own = {x.untyped_storage().data_ptr() for x in model.state_dict().values()}
        self._sizes: dict[int, int] = {}

    @property
    def mib(self) -> float:
        """What was kept, in MiB."""
        return sum(self._sizes.values()) / 2**20

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count what passes inside keep; outputs must outlive the block, or addresses repeat."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor):
            yield


def peak_mib(work: Callable[[], Any]) -> float:
    """Return the MiB that some work has alive at most, tensor by tensor, beside what was before."""
    with torch.profiler.profile(profile_memory=True) as profile:
        work()
    events: list[Any] = [
        event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate((event.nbytes() for event in events), initial=0)) / 2**20


def training_image(
    size: tuple[int, int],
    *,
    thing_classes: int = 80,
    stuff_classes: int = 54,
    things: int = THINGS,
    seed: int = 0,
) -> dict[str, Any]:
    """Return a random image (3, H, W) with squares for things and stripes for stuff."""
    height, width = size
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(things, height, width, dtype=torch.bool)
    for i in range(things):
        side, top, left = 24 * (1 + i % 8), i * height // 25, (7 * i % 20) * width // 25
        masks[i, top : top + side, left : left + side] = True
    instances = Instances(size)
    instances.gt_masks = BitMasks(masks)
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    instances.gt_classes = torch.arange(things) % thing_classes
    stripes = 1 + torch.arange(height) * (stuff_classes - 1) // height
    sem_seg = stripes[:, None].repeat(1, width)
    sem_seg[masks.any(dim=0)] = 0
    image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
    return {"image": image, "instances": instances, "sem_seg": sem_seg}


def measure(name: str) -> dict[str, float]:
    """Return GiB: of an image's activations, of parameters with gradient and momentum, in all."""
    size, images = CONFIGS[name]
    opts = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]
    cfg = get_cfg(name, opts)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    counted = Kept(model)
    # Whatever the 16 bits mean, they take the same room.
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=cfg.SOLVER.AMP.ENABLED)
    with EventStorage(), counted.counting(), mixed:
        losses = model(
            [
                training_image(
                    size,
                    thing_classes=cfg.MODEL.RETINANET.NUM_CLASSES,
                    stuff_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
                )
            ]
        )
    assert all(torch.isfinite(loss) for loss in losses.values())
    parameters = (
        sum(x.numel() * (3 if x.requires_grad else 1) * 4 for x in model.parameters()) / 2**30
    )
    activations = counted.mib / 1024
    return {
        "image": activations,
        "parameters": parameters,
        "all": images * activations + parameters,
    }


def main() -> None:
    """Measure all configs and print the table."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.configs:
        size, images = CONFIGS[name]
        found = measure(name)
        gc.collect()
        rows.append(
            [
                name,
                f"{size[0]} × {size[1]}",
                str(images),
                f"{found['image']:.1f}",
                f"{found['parameters']:.1f}",
                f"{found['all']:.0f}",
            ]
        )
        print(rows[-1], flush=True)
    head = ["config", "largest image", "images a GPU", "GiB an image", "GiB parameters", "GiB"]
    text = table(head, rows)
    print(text)
    complete(args.write, {"memory": text})


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
