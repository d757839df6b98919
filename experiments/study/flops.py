"""Multiply-adds of whole networks, as fvcore counts them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from detectron2.modeling import build_model

from darts.genotype import Genotype
from spatialflow.analysis.costs import count_multiply_adds
from spatialflow.config import get_cfg


def flops(config: Path, genotype: Genotype, things: int, stuff: int) -> int:
    """Count the multiply-adds of a genotype's network on a square image of the size of evaluation.

    Weights are random. As many things are detected as the config allows, so that the mask head
    costs the same for all genotypes.

    Args:
        config: Config of a training.
        genotype: Genotype of the network.
        things: Number of thing classes.
        stuff: Number of stuff classes.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "genotype.json"
        genotype.save(path)
        cfg = get_cfg(
            str(config),
            [
                *("MODEL.SPATIALFLOW.GENOTYPE", str(path), "MODEL.WEIGHTS", ""),
                *("MODEL.SPATIALFLOW.TRUNK_PRETRAINED", False),
                *("MODEL.RETINANET.NUM_CLASSES", things),
                # Things are one more label.
                *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 1 + stuff),
                # Without training no score is above the threshold of the config.
                *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0),
            ],
        )
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        side = cfg.INPUT.MIN_SIZE_TEST
        return count_multiply_adds(model, (side, side))
