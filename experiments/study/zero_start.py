#!/usr/bin/env python
"""Train the human flows from a start at which they carry nothing, as gates do: a control.

    python -m experiments.study.zero_start --data nuclei_train433 --threads 1

It tells what of a gate's worth is its start. Its results stand among those of what was explored,
and those that are there are not run again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

from experiments.study.keep import ROOT
from experiments.study.run import Study
from experiments.study.settings import HUMAN
from spatialflow.analysis.tables import parser_of
from spatialflow.analysis.trials import ROOT as REPOSITORY
from spatialflow.analysis.trials import trial
from spatialflow.config import get_cfg, load_genotype
from spatialflow.engine import Trainer, prepare_config
from spatialflow.modeling.flow_graph import FlowGraph
from spatialflow.search.derivation import config_hash
from spatialflow.utils.randomness import seed_generators

NAME = "human_from_zero"


def silence(graph: FlowGraph) -> None:
    """Make all flows carry zero, whatever they read.

    Raises:
        ValueError: If a flow has no layer that could be zero.
    """
    for key, operation in graph.flows.items():
        last = getattr(operation, "last", None)
        if not isinstance(last, nn.Conv2d):
            raise ValueError(f"flow {key}: {type(operation).__name__} cannot start at zero")
        for parameter in last.parameters():
            nn.init.zeros_(parameter)


def train(study: Study, seed: int, target: Path) -> None:
    """Train and evaluate with one seed, from the weights that the seed gives, but for flows."""
    folder = study.folder / "explored" / target.stem
    folder.mkdir(parents=True, exist_ok=True)
    common = [str(value) for value in (*study.keys, *study.data.training_keys)]
    cfg = get_cfg(str(REPOSITORY / study.data.training), common)
    settings = config_hash(cfg)
    cfg.SEED, cfg.OUTPUT_DIR = seed, str(folder)
    prepare_config(cfg)
    seed_generators(seed)
    model = Trainer(cfg).model
    silence(model.flow_graph)
    cfg.MODEL.WEIGHTS = str(folder / "start.pth")
    torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
    identity = {"genotype": load_genotype(HUMAN).hash, "settings": settings}
    trial(cfg, target, {"contestant": NAME, "seed": seed, **identity})


def main() -> None:
    """Train what is missing, and keep it."""
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the nuclei")
    parser.add_argument("--seeds", type=int, nargs="+", default=[50, 51])
    parser.add_argument("--kept", type=Path, default=ROOT / "nuclei" / "explored")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    options = {"output": Path("output/study"), "kept": ROOT, "threads": args.threads, "round": 1}
    try:
        study = Study(argparse.Namespace(name="nuclei", data=args.data, **options))
        for seed in args.seeds:
            target = args.kept / f"{NAME}-seed{seed}.json"
            if not target.is_file():
                train(study, seed, target)
    except ValueError as error:
        sys.exit(f"study: {error}")


if __name__ == "__main__":
    main()
