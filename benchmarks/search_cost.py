#!/usr/bin/env python
"""Compare an iteration of a search with a training step of the human design at the same batch.

    python benchmarks/search_cost.py --write docs/search.md

Times are taken in turn in one process. Memory is the most that all tensors take at once while a
trainer is built and does two iterations: weights, gradients, moments of the optimiser, activations.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import spatialflow  # noqa: F401  # isort: skip  # before PyTorch, for its threads
import torch
from detectron2.utils.events import EventStorage

from darts.operations import OPERATIONS
from spatialflow.analysis.memory import peak_mib
from spatialflow.analysis.tables import complete, program_parser, table
from spatialflow.analysis.timing import time_in_turn
from spatialflow.cli.errors import errors_in_one_line
from spatialflow.config import get_cfg
from spatialflow.config.options import SUPERNET
from spatialflow.engine import Trainer, prepare_config
from spatialflow.search.hook import ArchitectureHook
from spatialflow.search.trainer import SearchTrainer

HUMAN = "training step, human design"
SGD = {"SOLVER.OPTIMIZER": "SGD", "SOLVER.BASE_LR": 0.001}
FULL = {"SEARCH.SPACE.OPERATIONS": list(OPERATIONS)}
VARIANTS: dict[str, dict[str, Any]] = {
    HUMAN: {},
    "first order": {},
    "second order": {"SEARCH.ORDER": 2, **SGD},
    "first order, one channel of 4": {"SEARCH.PARTIAL_CHANNELS": 4},
    "first order, Gumbel": {"SEARCH.RELAXATION": "gumbel"},
    "first order, 7 of the 36 edges": {"SEARCH.SPACE.PAIRS": ["box>cls"]},
    "first order, 16 of the 36 edges": {"SEARCH.SPACE.PAIRS": ["box>cls", "box>stuff", "box>mask"]},
    "first order, 2 operations": {"SEARCH.SPACE.OPERATIONS": ["identity", "conv_3x3"]},
    "first order, all 7 operations": FULL,
    "second order, all 7 operations": {**FULL, "SEARCH.ORDER": 2, **SGD},
}
ITERATIONS = 2


def step_of(
    name: str, folder: Path, changes: Mapping[str, Any] | None = None
) -> Callable[[], None]:
    """Build a trainer, and return a function that does one iteration.

    Args:
        name: One of :data:`VARIANTS`. For a search, an iteration has an architecture step.
        folder: Folder for outputs.
        changes: More keys, and their values.
    """
    keys = {
        **VARIANTS[name],
        **(changes or {}),
        "MODEL.META_ARCHITECTURE": "SpatialFlow" if name == HUMAN else SUPERNET,
        "SEARCH.WARMUP": 0.0,
        "DATASETS.TEST": (),
        "DATASETS.SCENES.TRAIN": 40,
        "OUTPUT_DIR": str(folder / name.replace(" ", "_").replace(",", "")),
    }
    cfg = get_cfg("search/default.yaml", [item for pair in keys.items() for item in pair])
    prepare_config(cfg)
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    trainer = (Trainer if name == HUMAN else SearchTrainer)(cfg)
    hooks = [hook for hook in trainer._hooks if isinstance(hook, ArchitectureHook)]
    # An iteration in which no hook writes a log.
    trainer.iter = trainer.step_trainer.iter = cfg.SOLVER.MAX_ITER // 2 + 1

    def step() -> None:
        with EventStorage() as storage:
            trainer.storage = trainer.step_trainer.storage = storage
            for hook in hooks:
                hook.before_step()
            trainer.run_step()

    return step


def measure_memory(name: str) -> float:
    """Return the peak MiB of a variant while it is built and does two iterations."""
    gc.collect()

    def work() -> None:
        with tempfile.TemporaryDirectory(prefix="spatialflow_cost_") as folder:
            step = step_of(name, Path(folder))
            for _ in range(ITERATIONS):
                step()

    return peak_mib(work)


def measure_times(rounds: int, names: Iterable[str] = VARIANTS) -> dict[str, list[float]]:
    """Return the seconds of an iteration in every round, by variant."""
    with tempfile.TemporaryDirectory(prefix="spatialflow_cost_") as folder:
        steps = {name: step_of(name, Path(folder)) for name in names}
        return time_in_turn(dict(steps), rounds=rounds)


def main() -> None:
    """Measure all variants, and print the table."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    with errors_in_one_line():
        memory = {name: measure_memory(name) for name in VARIANTS}
        times = measure_times(args.rounds)
        median = {name: statistics.median(seconds) for name, seconds in times.items()}
        rows = [
            [
                name,
                f"{median[name] / median[HUMAN]:.2f}",
                f"{median[name]:.2f} ({min(times[name]):.2f} to {max(times[name]):.2f})",
                f"{memory[name] / memory[HUMAN]:.2f}",
                f"{memory[name]:.0f}",
            ]
            for name in VARIANTS
        ]
        text = table(["", "time ×", "s (least to most)", "memory ×", "MiB"], rows)
        print(text)
        print(
            json.dumps({"threads": args.threads, "rounds": args.rounds, "torch": torch.__version__})
        )
        complete(args.write, {"search cost": text})


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = program_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    return parser.parse_args()


if __name__ == "__main__":
    main()
