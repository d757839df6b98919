#!/usr/bin/env python
"""Train a few steps and write every step's gradients, to compare one process with two.

    python tests/engine/gradients.py FOLDER --num-gpus 2 KEY VALUE ...

``FOLDER/gradients.pth`` has one dict a step, parameter name → gradient, of the main process.
"""

from __future__ import annotations

import argparse
import functools

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from spatialflow.cli.launch import Work, run
from spatialflow.engine import Trainer, setup
from spatialflow_cli.commands import add_run_arguments

Gradients = dict[str, torch.Tensor]


class GradientRecorder(HookBase):
    """Keeps the gradients of every step."""

    def __init__(self) -> None:
        self.steps: list[Gradients] = []

    def after_backward(self) -> None:
        """Copy the gradients; every parameter that learns has one."""
        model = getattr(self.trainer.model, "module", self.trainer.model)
        learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert all(p.grad is not None for p in learning.values())
        self.steps.append({name: p.grad.clone() for name, p in learning.items()})


def prepare(args: argparse.Namespace) -> Work:
    """Build a trainer that records its gradients."""
    torch.set_num_threads(1)
    cfg = setup(args)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    recorder = GradientRecorder()
    trainer.register_hooks([recorder])
    return functools.partial(work, trainer, recorder.steps, cfg.OUTPUT_DIR)


def work(trainer: Trainer, steps: list[Gradients], folder: str) -> None:
    """Train, check that the processes agree, and write the gradients."""
    trainer.train()
    for name, value in trainer.step_trainer.model.state_dict().items():
        others = comm.all_gather(value)
        assert all(torch.equal(value, other) for other in others), name
    if comm.is_main_process():
        torch.save(steps, f"{folder}/gradients.pth")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    run(prepare, parser.parse_args())
