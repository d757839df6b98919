"""``spatialflow train`` and ``spatialflow evaluate``."""

from __future__ import annotations

import argparse
import functools

from spatialflow.cli.launch import Work, run
from spatialflow.engine import Checkpointer, Trainer, setup
from spatialflow.engine.checkpoint import has_checkpoint
from spatialflow.engine.preparation import for_checkpoint


def prepare(args: argparse.Namespace) -> Work:
    """Build what a process needs, and return its work."""
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(for_checkpoint(cfg))
        model.eval()  # the checkpointer then expects every tensor in the file
        check = cfg.MODEL.SPATIALFLOW.CHECK_WEIGHTS
        checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, check_weights=check)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        Trainer.rehearse(cfg, model)
        return functools.partial(Trainer.test, cfg, model)
    resumes = args.resume and has_checkpoint(cfg.OUTPUT_DIR)
    trainer = Trainer(cfg, from_checkpoint=resumes)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train


def main(args: argparse.Namespace) -> int:
    """Train or evaluate, and return the exit status."""
    run(prepare, args)
    return 0
