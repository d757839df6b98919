#!/usr/bin/env python
"""Measure the change of PQ that bfloat16 makes, for a trained model on real images.

    python benchmarks/speed/halves.py --data nuclei_train433 --threads 1

The model is that of ``benchmarks/peers/nuclei.yaml``. It is trained here with two seeds (seven
minutes), so long that few of its scores lie near a threshold. PQ is of held-out images.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.speed.report import Report, run_benchmark
from spatialflow.cli.errors import errors_in_one_line
from spatialflow.config import get_cfg
from spatialflow.engine import Trainer, prepare_config
from spatialflow.utils.errors import ConfigError

CONFIG = Path(__file__).parents[1] / "peers" / "nuclei.yaml"
SEEDS = (0, 1)
TRAINING = (
    *("DATASETS.FOLDER.VAL_FRACTION", 0.4, "TEST.EVAL_PERIOD", 0),
    *("SOLVER.MAX_ITER", 800, "SOLVER.WARMUP_ITERS", 50, "SOLVER.BASE_LR", 0.001),
)
NUMBERS = ("PQ", "PQ_th", "PQ_st")


def measure_quality(data: Path, seed: int) -> dict[str, dict[str, float]]:
    """Train once, and return PQ, PQ_th and PQ_st in percent for ``fp32`` and for ``bf16``."""
    with tempfile.TemporaryDirectory(prefix="spatialflow_speed_") as folder:
        keys = ["DATASETS.FOLDER.PATH", str(data), "OUTPUT_DIR", folder, "SEED", seed]
        cfg = get_cfg(CONFIG, [*keys, *TRAINING])
        with errors_in_one_line():
            prepare_config(cfg)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
        return {
            name: _evaluate(cfg, Path(folder), dtype)
            for name, dtype in (("fp32", None), ("bf16", "bfloat16"))
        }


def _evaluate(cfg: Any, folder: Path, dtype: str | None) -> dict[str, float]:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
    if dtype:
        cfg.TEST.AMP.ENABLED, cfg.TEST.AMP.DTYPE = True, dtype
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    results = Trainer.test(cfg, trainer.model)["panoptic_seg"]
    return {name: results[name] for name in NUMBERS}


def measure(args: argparse.Namespace) -> list[Report]:
    """Measure, and return the report.

    Raises:
        ConfigError: If no data is given.
    """
    if args.data is None:
        raise ConfigError("--data: none given, a folder in COCO panoptic layout expected")
    report = Report("halves", ["seed", "precision", *NUMBERS])
    changes = []
    for seed in SEEDS:
        found = measure_quality(args.data, seed)
        changes.append({n: found["bf16"][n] - found["fp32"][n] for n in NUMBERS})
        for name, numbers in found.items():
            report.rows.append([str(seed), name, *(f"{numbers[n]:.2f}" for n in NUMBERS)])
        report.data[str(seed)] = found
    for what, choose in (("mean", statistics.mean), ("least", min), ("most", max)):
        cells = [f"{choose(change[n] for change in changes):+.2f}" for n in NUMBERS]
        report.rows.append([what, "bf16 − fp32", *cells])
    return [report]


if __name__ == "__main__":
    run_benchmark(__doc__, measure)
