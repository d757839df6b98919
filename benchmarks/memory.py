#!/usr/bin/env python
"""Estimate the memory of a training step at full size, for each config of a real benchmark.

    python benchmarks/memory.py --write docs/training.md

Memory is counted on the CPU, not measured on a GPU: one image with 20 things goes through a forward
pass with losses, and the tensors that autograd saves for the backward pass are added up. A GPU
needs more, for workspaces of convolutions, fragmentation, and gradients of activations.
"""

from __future__ import annotations

import argparse
import gc

import spatialflow  # noqa: F401  # isort: skip  # before PyTorch, for its threads
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from spatialflow.analysis.inputs import training_image
from spatialflow.analysis.memory import SavedTensors
from spatialflow.analysis.tables import complete, program_parser, table
from spatialflow.config import get_cfg

# Config → height and width of its largest training image, and images per GPU.
CONFIGS = {
    "coco/spatialflow_r50_20e.yaml": ((800, 1344), 2),
    "coco/spatialflow_r101_20e.yaml": ((800, 1344), 2),
    "coco/spatialflow_r101_dcn_ms.yaml": ((1408, 1600), 2),
    "cityscapes/spatialflow_r50.yaml": ((1024, 2048), 1),
    "ade20k/spatialflow_r50.yaml": ((704, 1408), 2),
}


def measure(name: str) -> dict[str, float]:
    """Count the memory of a training step of a config, in GiB.

    Returns:
        ``image``: activations of one image. ``parameters``: parameters with their gradients and
        momentum. ``all``: the sum for all images of a GPU.
    """
    size, images = CONFIGS[name]
    opts = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]
    cfg = get_cfg(name, opts)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    counted = SavedTensors(model)
    # bfloat16 takes as much memory as the float16 of a GPU.
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
    """Measure all configs, and print the table."""
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
    parser = program_parser(__doc__)
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
