"""The output folder of a run: held against other runs, and tried before hours of work."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import nn

from spatialflow.engine.distributed import in_main_process
from spatialflow.utils.errors import ConfigError
from spatialflow.utils.files import check_outputs
from spatialflow.utils.hold import ADVICE, held, hold

RUN_FILES = (
    "last_checkpoint",
    "last_evaluation.json",
    "metrics.json",
    "results.json",
)
"""Files that a training writes into its folder, beside checkpoints."""

CHECKPOINTS = ("model_best.pth", "model_final.pth")
"""Files of its checkpoints that have no number."""


def hold_output(cfg: CfgNode, *, evaluation: bool = False) -> str:
    """Hold ``OUTPUT_DIR`` until this process ends; all processes of a run call this.

    Args:
        cfg: Config of the run.
        evaluation: Whether the run is an evaluation, for the advice in a message.

    Returns:
        A line for the log where the lock does not protect; "" where it does.

    Raises:
        ConfigError: If another run works in the folder, or it cannot be written.
        ProcessError: The same, in other processes than the main one.
    """
    folder, remarks = cfg.OUTPUT_DIR, [""]
    advice = ADVICE
    if evaluation:
        advice = (
            "for an evaluation meanwhile, give another OUTPUT_DIR and MODEL.WEIGHTS "
            f"{Path(folder, _last_checkpoint(folder))}"
        )
    in_main_process(lambda: remarks.append(hold(folder, "OUTPUT_DIR", advice=advice)))
    return remarks[-1]


@contextlib.contextmanager
def output_held(cfg: CfgNode) -> Iterator[bool]:
    """Hold ``OUTPUT_DIR`` for the work inside; all processes of a run call this.

    Yields:
        Whether this is the main process and its lock keeps other processes out.

    Raises:
        ConfigError: If another run works in the folder, or it cannot be written.
        ProcessError: The same, in other processes than the main one.
    """
    locked = [False]
    with contextlib.ExitStack() as stack:
        in_main_process(
            lambda: locked.append(stack.enter_context(held(cfg.OUTPUT_DIR, "OUTPUT_DIR")))
        )
        yield locked[-1]


def check_run_outputs(
    cfg: CfgNode, files: Iterable[str], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Check that a training can write its files into ``OUTPUT_DIR``, and that a checkpoint fits.

    Args:
        cfg: Config of the run.
        files: Names of the files.
        model: Model of the run.
        optimizer: Its optimiser.

    Raises:
        ConfigError: If a file cannot be written, or there is less space than a checkpoint takes.
    """
    check_outputs(cfg.OUTPUT_DIR, files)
    checkpoints = [path.name for path in Path(cfg.OUTPUT_DIR).glob("*.pth")]
    check_outputs(cfg.OUTPUT_DIR, [*CHECKPOINTS, *checkpoints], replaced=True)
    check_free_space(cfg.OUTPUT_DIR, model, optimizer, averaged=cfg.SOLVER.EMA.ENABLED)


def check_free_space(
    folder: str, model: nn.Module, optimizer: torch.optim.Optimizer, *, averaged: bool = False
) -> None:
    """Check that a checkpoint fits on the disk.

    Args:
        folder: ``OUTPUT_DIR``.
        model: Model of the run.
        optimizer: Its optimiser, whose state may be empty yet: one copy of the learning parameters
            for SGD with momentum, two for Adam.
        averaged: Whether the learning weights are saved beside their average.

    Raises:
        ConfigError: If there is less space than a checkpoint takes.
    """
    copies = 2 if "betas" in optimizer.defaults else int(optimizer.defaults.get("momentum", 0) > 0)
    copies += averaged
    learning = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    needed = _bytes(model.state_dict().values()) + copies * _bytes(learning)
    usage = shutil.disk_usage(folder)
    if usage.total > 0 and usage.free < needed:
        raise ConfigError(
            f"OUTPUT_DIR: {folder!r} given, where {usage.free / 2**20:.0f} MiB are free and a "
            f"checkpoint takes {needed / 2**20:.0f} MiB; a disk with more space expected"
        )


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _last_checkpoint(folder: str) -> str:
    """Return the name of the last checkpoint in a folder, or what such a name looks like."""
    try:
        return Path(folder, "last_checkpoint").read_text().strip() or "model_final.pth"
    except (OSError, UnicodeDecodeError):
        return "model_final.pth"
