"""Train or evaluate from the command line: what ``train_net.py`` runs."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence

from spatialflow.cli.launch import Work, argument_parser, run
from spatialflow.engine import Checkpointer, Trainer, setup

EXAMPLES = """
examples:
  train on generated scenes, on a CPU
    python train_net.py --config-file generated/spatialflow.yaml
  train on eight GPUs of one machine
    python train_net.py --config-file coco/spatialflow_r50_20e.yaml --num-gpus 8
    torchrun --standalone --nproc-per-node 8 train_net.py \\
        --config-file coco/spatialflow_r50_20e.yaml
  go on with a run that was stopped
    python train_net.py --config-file OUTPUT_DIR/config.yaml --resume
  evaluate
    python train_net.py --config-file FILE --eval-only MODEL.WEIGHTS model_final.pth
  train the network that a search found
    python train_net.py --config-file FILE MODEL.SPATIALFLOW.GENOTYPE genotype.json

SPATIALFLOW_TRACEBACK=1 in the environment adds a stack trace to an error of one line.
"""


def prepare(args: argparse.Namespace) -> Work:
    """Build what a process needs, and return its work."""
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        model.eval()  # the checkpointer then expects every tensor in the file
        Checkpointer(model, cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        return functools.partial(Trainer.test, cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    return argument_parser("Train or evaluate a model from a config.", EXAMPLES).parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Train or evaluate as the command line asks."""
    run(prepare, parse_arguments(words))
