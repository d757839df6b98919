"""``spatialflow search``."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from spatialflow.cli.launch import Work, run
from spatialflow.config.options import SUPERNET
from spatialflow.engine import setup
from spatialflow.engine.checkpoint import has_checkpoint
from spatialflow.search.space import random_genotypes, write_genotypes
from spatialflow.search.trainer import SearchTrainer
from spatialflow.utils.errors import ConfigError


def prepare(args: argparse.Namespace) -> Work:
    """Build what a process needs, and return its work.

    All processes derive the genotype together, since they share the measurement of losses.
    """
    args.opts = ["MODEL.META_ARCHITECTURE", SUPERNET, *args.opts]
    if args.random is not None:
        if args.random < 1 or args.seed < 0:
            raise ConfigError(
                f"--random {args.random} --seed {args.seed} given, 1 or more and 0 or more expected"
            )
        cfg = setup(args, data=(), trainer=SearchTrainer)
        genotypes = random_genotypes(cfg, args.random, args.seed)
        return functools.partial(write_genotypes, genotypes, Path(cfg.OUTPUT_DIR))
    data = ("TRAIN",) if args.derive_only else ("TRAIN", "TEST")
    cfg = setup(args, data=data, trainer=SearchTrainer)
    resumes = args.resume and has_checkpoint(cfg.OUTPUT_DIR)
    trainer = SearchTrainer(cfg, from_checkpoint=resumes or bool(args.derive_only))
    if args.derive_only:
        trainer.checkpointer.load(args.derive_only)
        return trainer.write_genotype
    trainer.resume_or_load(resume=args.resume)
    return functools.partial(search, trainer)


def search(trainer: SearchTrainer) -> None:
    """Search, then derive the genotype and write it."""
    trainer.train()
    trainer.write_genotype()


def main(args: argparse.Namespace) -> int:
    """Search, derive or draw genotypes, and return the exit status."""
    run(prepare, args)
    return 0
