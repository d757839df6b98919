#!/usr/bin/env python
"""Train a few steps, writing every step's gradients: what one process does and what two do.

    python tests/engine/gradients.py FOLDER --num-gpus 2 KEY VALUE ...

``FOLDER/gradients.pth`` has one dict a step, parameter name → gradient, of the main process.
"""

from __future__ import annotations

import argparse
import functools

import torch
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from spatialflow.cli.launch import Work, run
from spatialflow.engine import StepTrainer, Trainer, setup


def prepare(args: argparse.Namespace) -> Work:
    """Build a trainer that keeps its gradients."""
    torch.set_num_threads(1)
    cfg = setup(args)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    steps: list[dict[str, torch.Tensor]] = []

    def after_backward(self: StepTrainer) -> None:
        model = getattr(self.model, "module", self.model)
        learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert all(p.grad is not None for p in learning.values())
        steps.append({name: p.grad.clone() for name, p in learning.items()})

    StepTrainer.after_backward = after_backward  # type: ignore[method-assign]
    return functools.partial(work, trainer, steps, cfg.OUTPUT_DIR)


def work(trainer: Trainer, steps: list[dict[str, torch.Tensor]], folder: str) -> None:
    """Train, check that the processes agree, and write the gradients."""
    trainer.train()
    for name, value in trainer.step_trainer.model.state_dict().items():
        others = comm.all_gather(value)
        assert all(torch.equal(value, other) for other in others), name
    if comm.is_main_process():
        torch.save(steps, f"{folder}/gradients.pth")


if __name__ == "__main__":
    run(prepare, default_argument_parser(__doc__).parse_args())
