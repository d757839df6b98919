#!/usr/bin/env python
"""Measure panoptic fusion and evaluation, compared with Detectron2's.

    python benchmarks/speed/panoptic.py --data DATA --threads 1 --write docs/performance.md

Fusion is of 100 random instances. Evaluation is of the ground truth of a folder's images as if it
were predicted; Detectron2's evaluator calls panopticapi. The results of both sides are compared,
too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import Boxes, Instances
from torch import Tensor

from benchmarks.speed.report import Report, median_ratio, run_benchmark, spread
from spatialflow.analysis.timing import time_in_turn
from spatialflow.config import get_cfg
from spatialflow.data import panoptic_ground_truth
from spatialflow.engine import prepare_config
from spatialflow.evaluation import PanopticEvaluator
from spatialflow.modeling.fusion import PanopticFusion
from spatialflow.utils.errors import ConfigError

SIZE = (480, 640)
INSTANCES = 100
THINGS, STUFF = 80, 54
IMAGES = 100
OVERLAP, SCORE, AREA = 0.5, 0.3, 4096
OURS, THEIRS = "here", "Detectron2"

Result = tuple[Tensor, list[dict[str, Any]]]


def crowd(count: int = INSTANCES, size: tuple[int, int] = SIZE) -> tuple[Instances, Tensor]:
    """Return ellipses of 12 to 212 pixels as instances, and stuff labels (H, W) in patches."""
    height, width = size
    generator = torch.Generator().manual_seed(0)
    centers = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    sides = torch.rand(count, 2, generator=generator) ** 2 * 200 + 12
    rows = torch.arange(height)[:, None] + 0.5
    columns = torch.arange(width)[None] + 0.5
    masks = [
        ((columns - x) / (w / 2)) ** 2 + ((rows - y) / (h / 2)) ** 2 < 1
        for (x, y), (w, h) in zip(centers.tolist(), sides.tolist(), strict=True)
    ]
    boxes = Boxes(torch.cat([centers - sides / 2, centers + sides / 2], dim=1))
    boxes.clip(size)
    instances = Instances(
        size,
        pred_boxes=boxes,
        scores=torch.rand(count, generator=generator) * (1 - SCORE) + SCORE,
        pred_classes=torch.randint(0, THINGS, (count,), generator=generator),
        pred_masks=torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool),
    )
    patches = torch.randint(0, STUFF, (1, 1, 8, 10), generator=generator).float()
    return instances, torch.nn.functional.interpolate(patches, size)[0, 0].long()


def fusions(
    count: int = INSTANCES, size: tuple[int, int] = SIZE
) -> dict[str, Callable[[], Result]]:
    """Return functions that fuse the same input by our and by Detectron2's code."""
    instances, labels = crowd(count, size)
    fusion = PanopticFusion(SCORE, OVERLAP, AREA, box_fill=False, box_fill_threshold=0.0)
    return {
        OURS: lambda: fusion(instances, labels),
        THEIRS: lambda: combine_semantic_and_instance_outputs(
            instances, labels, OVERLAP, AREA, SCORE
        ),
    }


def identical(works: dict[str, Callable[[], Result]]) -> bool:
    """Return whether both give the same ids and the same segments."""
    (ids, segments), (their_ids, their_segments) = (work() for work in works.values())
    return torch.equal(ids, their_ids) and segments == their_segments


def evaluations(folder: Path, output: Path) -> dict[str, Callable[[], Any]]:
    """Return functions that evaluate the ground truth of images by our and by Detectron2's code.

    Args:
        folder: Folder in COCO panoptic layout.
        output: Folder for the files that Detectron2's evaluator writes.
    """
    name = "folder_all"
    keys = ["DATASETS.FOLDER.PATH", str(folder), "DATASETS.TRAIN", ("folder_train",)]
    count = ["MODEL.RETINANET.NUM_CLASSES", -1, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", -1]
    prepare_config(get_cfg(None, [*keys, "DATASETS.TEST", (name,), *count, "MODEL.WEIGHTS", ""]))
    images, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
    found = [panoptic_ground_truth(image, metadata) for image in images]

    def run(evaluator: Any) -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator.reset()
            for image, (ids, segments) in zip(images, found, strict=True):
                copies = [dict(segment) for segment in segments]
                evaluator.process([image], [{"panoptic_seg": (torch.as_tensor(ids), copies)}])
            return float(evaluator.evaluate()["panoptic_seg"]["PQ"])

    return {
        OURS: lambda: run(PanopticEvaluator(name)),
        THEIRS: lambda: run(COCOPanopticEvaluator(name, str(output))),
    }


def measure(args: argparse.Namespace) -> list[Report]:
    """Measure, and return the report.

    Raises:
        ConfigError: If no data is given.
    """
    if args.data is None:
        raise ConfigError("--data: none given, a folder in COCO panoptic layout expected")
    fusing = fusions()
    with tempfile.TemporaryDirectory(prefix="spatialflow_speed_") as output:
        evaluating = evaluations(args.data, Path(output))
        same = {
            f"fusion of {INSTANCES} instances, {SIZE[1]} × {SIZE[0]}": (
                fusing,
                identical(fusing),
            ),
            f"evaluation of {IMAGES} images": (
                evaluating,
                len({round(work(), 6) for work in evaluating.values()}) == 1,
            ),
        }
        report = Report("panoptic", ["", "s here", "s Detectron2", "ratio", "same result"])
        for what, (works, equal) in same.items():
            seconds = time_in_turn(dict(works), rounds=args.rounds)
            over = median_ratio(seconds[OURS], seconds[THEIRS])
            report.rows.append(
                [
                    what,
                    spread(seconds[OURS]),
                    spread(seconds[THEIRS]),
                    f"{over:.2f}",
                    "yes" if equal else "no",
                ]
            )
            report.bars[what] = over
            report.data[what] = {"seconds": seconds, "same": equal}
    return [report]


if __name__ == "__main__":
    run_benchmark(__doc__, measure)
