"""Evaluation of panoptic results: quality, intervals, Detectron2's evaluators, and samples."""

from spatialflow.evaluation.average_precision import InstanceEvaluator
from spatialflow.evaluation.evaluator import (
    RESULTS_FILE,
    PanopticEvaluator,
    build_evaluator,
    results_table,
)
from spatialflow.evaluation.intervals import bootstrap_pq
from spatialflow.evaluation.panoptic_quality import count_matches, summarize

__all__ = [
    "RESULTS_FILE",
    "InstanceEvaluator",
    "PanopticEvaluator",
    "bootstrap_pq",
    "build_evaluator",
    "count_matches",
    "results_table",
    "summarize",
]
