"""Training and evaluation from the command line: what ``train_net.py`` runs."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence

from detectron2.engine import default_argument_parser

from spatialflow.cli.launch import Work, run
from spatialflow.engine import Checkpointer, Trainer, setup

EPILOG = """
python train_net.py --config-file generated/spatialflow.yaml
python train_net.py --config-file coco/spatialflow_r50_20e.yaml --num-gpus 8
python train_net.py --config-file FILE --resume
python train_net.py --config-file FILE --eval-only MODEL.WEIGHTS model_final.pth
"""


def prepare(args: argparse.Namespace) -> Work:
    """Build what a process needs, and return what it is to do."""
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        model.eval()  # in which every tensor has to be in the checkpoint
        Checkpointer(model, cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        return functools.partial(Trainer.test, cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train


def main(words: Sequence[str] | None = None) -> None:
    """Train or evaluate as the command line says."""
    run(prepare, default_argument_parser(EPILOG).parse_args(words))
