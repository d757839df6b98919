"""One training and its evaluation, kept as one small JSON file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluators
from detectron2.utils.logger import setup_logger

from spatialflow.engine import Trainer
from spatialflow.evaluation import RESULTS_FILE, PanopticEvaluator
from spatialflow.utils.files import write_atomically
from spatialflow.utils.randomness import seed_generators

ROOT = Path(__file__).resolve().parents[1]


class PQTrainer(Trainer):
    """Evaluates PQ alone, and says how long the last evaluation took."""

    evaluation_seconds = 0.0

    @classmethod
    def test(cls, cfg: Any, model: Any, evaluators: Any = None) -> Any:
        """Evaluate, and keep the time."""
        start = time.perf_counter()
        results = super().test(cfg, model, evaluators)
        cls.evaluation_seconds = time.perf_counter() - start
        return results

    @classmethod
    def build_evaluator(cls, cfg: Any, dataset_name: str) -> DatasetEvaluators:
        """Return the evaluator of PQ, for any meta-architecture."""
        folder = Path(cfg.OUTPUT_DIR, "inference", dataset_name)
        return DatasetEvaluators([PanopticEvaluator(dataset_name, folder)])


def trial(cfg: Any, target: Path, identity: dict[str, Any]) -> None:
    """Train and evaluate once, and write the result when all is done.

    Args:
        cfg: Complete; its ``SEED`` is that of the run.
        target: The file of the result.
        identity: What tells this run from others, kept in the result.
    """
    setup_logger(cfg.OUTPUT_DIR, name="spatialflow")
    seed_generators(cfg.SEED)
    trainer = PQTrainer(cfg)
    trainer.resume_or_load(resume=False)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    path = Path(cfg.OUTPUT_DIR, "inference", cfg.DATASETS.TEST[0], RESULTS_FILE)
    content = {
        **identity,
        **describe(cfg, trainer),
        "seconds": round(seconds, 1),
        "evaluation_seconds": round(PQTrainer.evaluation_seconds, 1),
    }
    content |= compact(json.loads(path.read_text()))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, lambda file: file.write(json.dumps(content).encode()))


def run_apart(name: str, words: Sequence[object], *, threads: int | None = None) -> None:
    """Do a run in a Python process of its own, and say how long it took.

    Args:
        name: Of the run, for what is said.
        words: Of the command, after Python's own.
        threads: For programs that take no such argument; None leaves it to them.

    Raises:
        ValueError: If it fails.
    """
    start = time.perf_counter()
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    command = [sys.executable, "-W", "ignore", *map(str, words)]
    try:
        subprocess.run(command, check=True, env=environment)
    except subprocess.CalledProcessError as error:
        raise ValueError(
            f"{name}: the run ended with status {error.returncode}, 0 expected; it says why above"
        ) from error
    print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


def describe(cfg: Any, trainer: Trainer) -> dict[str, Any]:
    """Say what was trained, on what."""
    return {
        "iterations": cfg.SOLVER.MAX_ITER,
        "batch": cfg.SOLVER.IMS_PER_BATCH,
        "image_side": cfg.INPUT.MIN_SIZE_TRAIN[0],
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "commit": commit(),
    }


def commit() -> str | None:
    """Return the commit of the checkout, None where there is none."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def compact(results: dict[str, Any]) -> dict[str, Any]:
    """Keep PQ and, for each class and image, what it is made of: iou, tp, fp, fn."""
    classes = [c["id"] for c in results["per_class"]]
    nothing = {"iou": 0.0, "tp": 0, "fp": 0, "fn": 0}
    counts = [
        [
            [round(c["iou"], 4), c["tp"], c["fp"], c["fn"]]
            for c in (image["classes"].get(str(i), nothing) for i in classes)
        ]
        for image in results["per_image"]
    ]
    return {
        **{key: results["summary"][key] for key in ("PQ", "PQ_th", "PQ_st")},
        "classes": [{k: c[k] for k in ("name", "isthing", "PQ")} for c in results["per_class"]],
        "images": [image["file_name"] for image in results["per_image"]],
        "counts": counts,
    }
