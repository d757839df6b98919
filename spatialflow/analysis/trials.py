"""One training and its evaluation, kept as one small JSON file."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluators

from spatialflow.analysis.costs import count_parameters
from spatialflow.engine import Trainer
from spatialflow.evaluation import RESULTS_FILE, PanopticEvaluator
from spatialflow.utils.console import start_logging
from spatialflow.utils.errors import ConfigError, ProcessError
from spatialflow.utils.files import read_json, write_json
from spatialflow.utils.randomness import seed_generators
from spatialflow.utils.signals import Stopped, StopSignals, insistent

logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parents[2]


class PQTrainer(Trainer):
    """Trainer of any meta-architecture that evaluates PQ alone.

    Attributes:
        evaluation_seconds: Duration of the last evaluation in seconds.
    """

    evaluation_seconds = 0.0

    @classmethod
    def test(cls, cfg: CfgNode, model: Any, evaluators: Any = None) -> Any:
        """Evaluate, and keep the duration."""
        start = time.perf_counter()
        results = super().test(cfg, model, evaluators)
        cls.evaluation_seconds = time.perf_counter() - start
        return results

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluators:
        """Build the evaluator of PQ."""
        folder = Path(cfg.OUTPUT_DIR, "inference", dataset_name)
        return DatasetEvaluators([PanopticEvaluator(dataset_name, folder)])

    @classmethod
    def results(cls, cfg: CfgNode) -> dict[str, Any]:
        """Return the last evaluation of a config's first test set, as :func:`read_results`."""
        return read_results(Path(cfg.OUTPUT_DIR, "inference", cfg.DATASETS.TEST[0], RESULTS_FILE))


def run_trial(
    cfg: CfgNode, target: Path, identity: dict[str, Any], kind: type[PQTrainer] = PQTrainer
) -> None:
    """Train and evaluate once, and write the result when all is done.

    Args:
        cfg: Complete config with the ``SEED`` of the run.
        target: JSON file to write.
        identity: Fields that identify the run, such as contestant and seed. They become part of
            the result.
        kind: Trainer, which says how to evaluate.

    Raises:
        ConfigError: If there is no data set to evaluate on.
        Stopped: After SIGINT or SIGTERM.
    """
    if not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST is empty: a trial counts by its PQ, on the first of them")
    start_logging(cfg.OUTPUT_DIR)
    seed_generators(cfg.SEED)
    trainer = kind(cfg)
    trainer.resume_or_load(resume=False)
    start = time.perf_counter()
    try:
        trainer.train()
    except Stopped as stop:
        message = f"stopped by {stop.name}; the run of {target.stem} starts anew the next time"
        raise Stopped(stop.signum, message) from None
    seconds = time.perf_counter() - start
    content = {
        **identity,
        **_describe(cfg, trainer),
        "seconds": round(seconds, 1),
        "evaluation_seconds": round(kind.evaluation_seconds, 1),
        **kind.results(cfg),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, content, indent=None)


def read_results(path: Path) -> dict[str, Any]:
    """Read the results of an evaluation in a compact form.

    Args:
        path: A ``panoptic_results.json``.

    Returns:
        ``PQ``, ``PQ_th`` and ``PQ_st`` in percent; ``classes`` and ``images``; ``counts``, for
        every image and class the sum of IoU and the numbers of true positives, false positives and
        false negatives.
    """
    results = read_json(path, dict)
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


def run_in_subprocess(name: str, words: Sequence[object], *, threads: int | None = None) -> None:
    """Run a Python program in a process of its own, and log how long it took.

    Args:
        name: Name of the run in the log.
        words: Arguments of Python: a script or ``-m`` and a module, then those of the program.
        threads: Value of ``OMP_NUM_THREADS``; None leaves the environment as it is.

    Raises:
        ProcessError: If the program fails.
        Stopped: After SIGINT or SIGTERM, once the program has ended by it.
    """
    start = time.perf_counter()
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    command = [sys.executable, "-W", "ignore", *map(str, words)]
    status, stopped = _run_to_its_end(command, environment)
    if stopped is not None:
        raise Stopped(stopped.signum, f"stopped by {stopped.name}; the same command goes on")
    if status != 0:
        raise ProcessError(
            f"{name}: the run ended with status {status}, 0 expected; it says why above"
        )
    logger.info("%s: %.0f s", name, time.perf_counter() - start)


def _run_to_its_end(
    command: Sequence[str], environment: Mapping[str, str]
) -> tuple[int, Stopped | None]:
    """Run a program, pass signals on to it, and return its status and the first signal."""
    first, count = None, 0
    with StopSignals(), subprocess.Popen(command, env=environment) as child:
        while True:
            try:
                return child.wait(), first
            except Stopped as stop:
                first, count = first or stop, count + 1
                child.send_signal(insistent(stop.signum, count))


def _describe(cfg: CfgNode, trainer: Trainer) -> dict[str, Any]:
    return {
        "iterations": cfg.SOLVER.MAX_ITER,
        "batch": cfg.SOLVER.IMS_PER_BATCH,
        "image_side": cfg.INPUT.MIN_SIZE_TRAIN[0],
        "parameters": count_parameters(trainer.model),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "commit": commit(),
    }


def commit() -> str | None:
    """Return the commit of the repository that this package lies in, None if it is installed."""
    # Without the check, git would find a repository that only holds the virtual environment.
    if not (REPOSITORY / ".git").exists():
        return None
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
