"""What a person wants to know of a run, in a few lines of its log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from spatialflow.config import genotype_of
from spatialflow.config.options import SUPERNET
from spatialflow.engine.preparation import has_pretrained_trunk
from spatialflow.utils.precision import amp_dtype

ARCHITECTURE = "SpatialFlow"
FILES = {
    "model_final.pth": "the weights",
    "model_best.pth": "those with the best PQ",
    "results.json": "the results",
    "metrics.json": "losses by iteration",
    "log.txt": "everything that happened",
}
"""File of a run → what it has."""


def describe_model(cfg: CfgNode, model: nn.Module) -> str:
    """Return a line about a model: its kind, size, device and precision."""
    own, name = cfg.MODEL.SPATIALFLOW, cfg.MODEL.META_ARCHITECTURE
    parts = [name]
    if name == ARCHITECTURE:
        genotype = genotype_of(cfg)
        parts.append(f"genotype {genotype.name} ({len(genotype.flows)} flows)")
    if name in (ARCHITECTURE, SUPERNET):
        resnet = f"ResNet-{cfg.MODEL.RESNETS.DEPTH}"
        parts.append(f"trunk {resnet if own.TRUNK == 'resnet' else own.TRUNK}")
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    learning = sum(size for size, learns in sizes if learns)
    total = sum(size for size, _ in sizes)
    parts.append(f"{total / 1e6:.2f} M parameters ({learning / 1e6:.2f} M learn)")
    device = next(model.parameters()).device
    threads = torch.get_num_threads()
    on_cpu = f"{threads} thread{'' if threads == 1 else 's'}"
    parts.append(on_cpu if device.type == "cpu" else str(device))
    parts.append(str(amp_dtype(cfg.SOLVER.AMP) or torch.float32).removeprefix("torch."))
    return ", ".join(parts)


def describe_start(cfg: CfgNode, weights: str) -> str:
    """Return what the weights of a new training are.

    Args:
        cfg: Config of the run.
        weights: File that it starts from; "" for none.
    """
    rest = f"random with seed {cfg.SEED}" if cfg.SEED >= 0 else "random"
    if weights:
        return f"those of {weights}, the rest {rest}"
    if has_pretrained_trunk(cfg) and cfg.MODEL.META_ARCHITECTURE in (ARCHITECTURE, SUPERNET):
        return f"a pretrained trunk, the rest {rest}"
    return rest


def describe_ap(results: Mapping[str, Any]) -> str:
    """Return box and mask AP as a line; "" where there is none.

    Args:
        results: Results by task, or by data set and task.
    """
    if not results.keys() & {"bbox", "segm"}:
        inner = {k: v for k, v in results.items() if isinstance(v, Mapping)}
        found = {name: describe_ap(value) for name, value in inner.items()}
        return "; ".join(f"{name}: {text}" for name, text in found.items() if text)
    names = {"bbox": "boxes", "segm": "masks"}
    text = "; ".join(
        f"AP of {names[task]} {values['AP']:.2f} (at 0.5: {values['AP50']:.2f})"
        for task, values in results.items()
        if task in names and {"AP", "AP50"} <= values.keys()
    )
    return text.replace("nan", "n/a")


def describe_files(folder: str | Path) -> str:
    """Return what a run has left in its folder, a line for each file."""
    found = [f"  {name:<16}{what}" for name, what in FILES.items() if Path(folder, name).is_file()]
    return "\n".join([f"written to {folder}:", *found])
