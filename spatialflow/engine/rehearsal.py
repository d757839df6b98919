"""Try what an evaluation needs, so that a run does not meet it after hours of training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import DefaultTrainer
from detectron2.evaluation.evaluator import inference_context
from torch import nn

from spatialflow.data.dataset import PanopticDataset
from spatialflow.data.loader import EvaluationLoader
from spatialflow.data.readable import check_images
from spatialflow.engine.distributed import in_main_process
from spatialflow.utils.files import check_outputs
from spatialflow.utils.randomness import seeded

logger = logging.getLogger(__name__)

EVALUATION_FILES = (
    "coco_instances_results.json",
    "instances_predictions.pth",
    "panoptic_results.json",
)
"""Files that an evaluation writes into the folder of a data set."""


def rehearse_evaluation(
    trainer: type[DefaultTrainer], cfg: CfgNode, model: nn.Module, *, all_data: bool = True
) -> None:
    """Try an evaluation with one image of each data set.

    Every file of the data is read, the ground truth is derived, and the folders of the results are
    made. All processes of a run call this.

    Args:
        trainer: Class of the trainer, whose loaders and evaluators are tried.
        cfg: Config of the run.
        model: Model as it is evaluated; nothing of it changes.
        all_data: Whether to try the data sets of other code, too, beside panoptic ones.

    Raises:
        DataError: If a file of the data is missing, broken or contradicts another one.
        ConfigError: If data, cache or output cannot be used, or a key of ``TEST`` is wrong.
    """
    datasets = dict(DatasetCatalog)
    names = [
        name
        for name in cfg.DATASETS.TEST
        if all_data or isinstance(datasets.get(name), PanopticDataset)
    ]
    in_main_process(lambda: _check_files(cfg, names))
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = 0  # workers would read ahead
    for name in names:
        loader = trainer.build_test_loader(cfg, name)
        try:
            evaluator = trainer.build_evaluator(cfg, name)
        except NotImplementedError:  # Detectron2's evaluation leaves such a data set out, too
            continue
        evaluator.reset()
        with seeded(0), inference_context(model), torch.no_grad():  # a loader draws a seed
            batches = loader.batches() if isinstance(loader, EvaluationLoader) else iter(loader)
            batch = next(batches, None)
            if batch is not None:  # None: other processes have all images
                evaluator.process(batch, model(batch))
    if names:
        logger.info("evaluation was tried with one image of %s", ", ".join(names))


def _check_files(cfg: CfgNode, names: Sequence[str]) -> None:
    folder = Path(cfg.OUTPUT_DIR)
    check_outputs(folder, ["results.json"])
    datasets = dict(DatasetCatalog)
    for name in names:
        check_outputs(folder / "inference" / name, EVALUATION_FILES)
        if isinstance(datasets.get(name), PanopticDataset):
            check_images(name, cfg.INPUT.FORMAT, cfg.INPUT.WHITE_LEVEL)
