#!/usr/bin/env python
"""Train the human flows from a start at which they carry nothing, as a control.

    python -m experiments.study.zero_start --data nuclei_train433 --threads 1

Gates start that way, so this shows how much of their worth is the start. Results go to the stage
``explored``. Runs that have a result are not repeated.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import spatialflow  # noqa: F401  # isort: skip  # before PyTorch, for its threads
import torch
from torch import nn

from experiments.study.run import Study
from experiments.study.settings import HUMAN, REPOSITORY, RESULTS
from spatialflow.analysis.tables import program_parser
from spatialflow.analysis.trials import run_trial
from spatialflow.config import config_hash, get_cfg, load_genotype
from spatialflow.engine import Trainer, prepare_config
from spatialflow.modeling.flow_graph import FlowGraph
from spatialflow.utils.randomness import seed_generators

NAME = "human_from_zero"


def silence(graph: FlowGraph) -> None:
    """Set the last layer of every flow to zero.

    Raises:
        ValueError: If the operation of a flow has no last convolution.
    """
    for key, operation in graph.flows.items():
        last = getattr(operation, "last", None)
        if not isinstance(last, nn.Conv2d):
            raise ValueError(f"flow {key}: {type(operation).__name__} cannot start at zero")
        for parameter in last.parameters():
            nn.init.zeros_(parameter)


def train(study: Study, seed: int, target: Path) -> None:
    """Train and evaluate with one seed. Initial weights are those of the seed, except for flows."""
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
    run_trial(cfg, target, {"contestant": NAME, "seed": seed, **identity})


def main() -> None:
    """Train what is missing, and keep it."""
    parser = program_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="nuclei in COCO panoptic layout")
    parser.add_argument("--seeds", type=int, nargs="+", default=[50, 51])
    parser.add_argument("--kept", type=Path, default=RESULTS / "nuclei" / "explored")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    options = {"output": Path("output/study"), "kept": RESULTS, "threads": args.threads, "round": 1}
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
