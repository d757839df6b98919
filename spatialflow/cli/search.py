"""Search from the command line: what ``search_net.py`` runs."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

from detectron2.engine import default_argument_parser

from spatialflow.cli.launch import Work, run
from spatialflow.config.options import SUPERNET
from spatialflow.engine import setup
from spatialflow.search.space import random_genotypes, write_genotypes
from spatialflow.search.trainer import SearchTrainer

EPILOG = """
python search_net.py --config-file search/default.yaml
python search_net.py --config-file FILE --resume
python search_net.py --config-file FILE --derive-only OUTPUT_DIR/model_final.pth
python search_net.py --config-file FILE --random 5 --seed 0
"""


def prepare(args: argparse.Namespace) -> Work:
    """Build the search, and return what a process is to do."""
    args.opts = ["MODEL.META_ARCHITECTURE", SUPERNET, *args.opts]
    if args.eval_only:
        raise ValueError("--eval-only: a search is not evaluated; train_net.py evaluates networks")
    if args.random is not None:
        data: tuple[str, ...] = ()
    else:
        data = ("TRAIN",) if args.derive_only else ("TRAIN", "TEST")
    cfg = setup(args, data=data, trainer=SearchTrainer)
    if args.random is not None:
        genotypes = random_genotypes(cfg, args.random, args.seed)
        return functools.partial(write_genotypes, genotypes, Path(cfg.OUTPUT_DIR))
    trainer = SearchTrainer(cfg)
    if args.derive_only:
        trainer.checkpointer.load(args.derive_only)
        return functools.partial(finish, trainer)
    trainer.resume_or_load(resume=args.resume)
    return functools.partial(search, trainer)


def search(trainer: SearchTrainer) -> None:
    """Search, then derive."""
    trainer.train()
    finish(trainer)


def finish(trainer: SearchTrainer) -> None:
    """Derive the genotype and write it; all processes take part, as losses are measured."""
    trainer.write_genotype()


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = default_argument_parser(EPILOG)
    parser.add_argument("--derive-only", metavar="CKPT", help="derive from a search's checkpoint")
    parser.add_argument("--random", type=int, metavar="N", help="write N random genotypes instead")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random genotypes")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Search, derive or draw as the command line says."""
    run(prepare, parse_arguments(words))
