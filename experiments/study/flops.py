"""Multiply-adds of whole networks at the size of evaluation, as fvcore counts them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from detectron2.modeling import build_model

from darts.genotype import Genotype
from spatialflow.config import get_cfg
from tools.analyze import analyze


def flops(config: Path, genotype: Genotype, things: int, stuff: int) -> int:
    """Count the multiply-adds of a genotype's network, with weights at random.

    One square image with as many detections as the config allows, so that what the mask head costs
    is the same for all genotypes.

    Args:
        config: Of trainings.
        genotype: It.
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
                # Of stuff, things are one more class.
                *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 1 + stuff),
                # Without training no score is above the threshold of the config.
                *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0),
            ],
        )
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        side = cfg.INPUT.MIN_SIZE_TEST
        found = analyze(model, genotype, (side, side))
    return int(found["parts"]["everything"]["multiply_adds"])
