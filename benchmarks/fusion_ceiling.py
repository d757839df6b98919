#!/usr/bin/env python
"""Measure the PQ that ground truth itself gets when it passes through a config's fusion.

    python benchmarks/fusion_ceiling.py --config-file coco/spatialflow_lite0_27.yaml KEY VALUE ...

No network can do better in the same setting. Boxes and classes are those of the ground truth, and
all scores are 1. Images are resized as at test time, masks are reduced to the 28 × 28 of the mask
head, stuff labels are at the network's scale, and the thresholds of the fusion apply.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import spatialflow  # noqa: F401  # isort: skip  # before PyTorch, for its threads
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.data.detection_utils import build_augmentation
from detectron2.evaluation import inference_on_dataset
from torch import nn
from torch.nn import functional as F

from spatialflow import SpatialFlow
from spatialflow.cli.errors import errors_in_one_line
from spatialflow.data import PanopticMapper
from spatialflow.engine import setup
from spatialflow.evaluation import PanopticEvaluator

MASK_SIDE = 28


class GroundTruth(nn.Module):
    """A model whose heads predict the ground truth of their inputs."""

    def __init__(self, model: SpatialFlow, num_stuff: int) -> None:
        """Keep the parts.

        Args:
            model: Model whose post-processing is used. Its weights do not matter.
            num_stuff: S, number of stuff classes and one.
        """
        super().__init__()
        self.model = model
        self.num_stuff = num_stuff

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the post-processed ground truth of each image."""
        return [self._pass(item) for item in batched_inputs]

    def _pass(self, item: dict[str, Any]) -> dict[str, Any]:
        truth = item["instances"]
        masks = truth.gt_masks.crop_and_resize(truth.gt_boxes.tensor, MASK_SIDE)
        truth.pred_boxes, truth.pred_classes = truth.gt_boxes, truth.gt_classes
        truth.pred_masks = masks[:, None].float()
        truth.scores = torch.ones(len(truth))
        for field in ("gt_boxes", "gt_classes", "gt_masks"):
            truth.remove(field)
        # PQ ignores unlabelled pixels. Label 0, "things", keeps the fusion from filling them.
        labels = item["sem_seg"].where(item["sem_seg"] < self.num_stuff, 0)
        logits = F.one_hot(labels, self.num_stuff).permute(2, 0, 1).float()
        return self.model.postprocess(truth, logits, item["image"].shape[-2:], item)


def fusion_ceiling(cfg: CfgNode, dataset_name: str) -> dict[str, float]:
    """Return PQ, SQ, RQ, … in percent of a data set's ground truth after fusion."""
    mapper = PanopticMapper(cfg, is_train=True, augmentations=build_augmentation(cfg, False))
    loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
    model = GroundTruth(SpatialFlow(cfg), cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    results = inference_on_dataset(model, loader, PanopticEvaluator(dataset_name))
    return dict(results["panoptic_seg"])


def main() -> None:
    """Print the ceiling of every test set of a config as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="", help="name or path")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    with errors_in_one_line():
        cfg = setup(parser.parse_args())
        ceilings = {name: fusion_ceiling(cfg, name) for name in cfg.DATASETS.TEST}
    print(json.dumps(ceilings, indent=2))


if __name__ == "__main__":
    main()
