"""Search from the command line: what ``search_net.py`` runs."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

from spatialflow.cli.launch import Work, argument_parser, run
from spatialflow.config.options import SUPERNET
from spatialflow.engine import setup
from spatialflow.search.space import random_genotypes, write_genotypes
from spatialflow.search.trainer import SearchTrainer
from spatialflow.utils.errors import ConfigError

EXAMPLES = """
examples:
  search, then write OUTPUT_DIR/genotype.json
    python search_net.py --config-file search/default.yaml OUTPUT_DIR output/search
  search on four GPUs of one machine
    python search_net.py --config-file search/coco_gates.yaml --num-gpus 4
    torchrun --standalone --nproc-per-node 4 search_net.py \\
        --config-file search/coco_gates.yaml
  go on with a search that was stopped
    python search_net.py --config-file OUTPUT_DIR/config.yaml --resume
  derive a genotype from a checkpoint
    python search_net.py --config-file FILE --derive-only OUTPUT_DIR/model_final.pth
  draw five random genotypes of the same space
    python search_net.py --config-file FILE --random 5 --seed 0
  train what was found
    python train_net.py --config-file FILE MODEL.SPATIALFLOW.GENOTYPE output/search/genotype.json

SPATIALFLOW_TRACEBACK=1 in the environment adds a stack trace to an error of one line.
"""


def prepare(args: argparse.Namespace) -> Work:
    """Build what a process needs, and return its work.

    All processes derive the genotype together, since they share the measurement of losses.
    """
    args.opts = ["MODEL.META_ARCHITECTURE", SUPERNET, *args.opts]
    if args.eval_only:
        raise ConfigError("--eval-only: a search is not evaluated; train_net.py evaluates networks")
    if args.random is not None:
        if args.random < 1 or args.seed < 0:
            raise ConfigError(
                f"--random {args.random} --seed {args.seed} given, 1 or more and 0 or more expected"
            )
        cfg = setup(args, data=(), trainer=SearchTrainer)
        genotypes = random_genotypes(cfg, args.random, args.seed)
        return functools.partial(write_genotypes, genotypes, Path(cfg.OUTPUT_DIR))
    data = ("TRAIN",) if args.derive_only else ("TRAIN", "TEST")
    trainer = SearchTrainer(setup(args, data=data, trainer=SearchTrainer))
    if args.derive_only:
        trainer.checkpointer.load(args.derive_only)
        return trainer.write_genotype
    trainer.resume_or_load(resume=args.resume)
    return functools.partial(search, trainer)


def search(trainer: SearchTrainer) -> None:
    """Search, then derive the genotype and write it."""
    trainer.train()
    trainer.write_genotype()


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argument_parser("Search the flows of a network, and write a genotype.", EXAMPLES)
    parser.add_argument("--derive-only", metavar="CKPT", help="derive from a search's checkpoint")
    parser.add_argument("--random", type=int, metavar="N", help="write N random genotypes instead")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random genotypes")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Search, derive or draw as the command line asks."""
    run(prepare, parse_arguments(words))
