#!/usr/bin/env python
"""Measure images per second of our mapper, compared with Detectron2's for the same training input.

    python benchmarks/speed/data.py --data DATA --threads 1 --write docs/performance.md

Our mapper reads the panoptic PNG alone. Detectron2's ``DatasetMapper`` reads instances as run
lengths from the folder's ``instances_things.json``, and stuff from PNG files of labels. Those are
made here and not timed, as Detectron2 prepares them before training.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import spatialflow  # noqa: F401  # isort: skip  # before PyTorch, for its threads
import numpy as np
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.structures import BoxMode
from panopticapi.utils import rgb2id
from PIL import Image

from benchmarks.speed.report import Report, median_ratio, run_benchmark, spread
from spatialflow.analysis.timing import time_in_turn
from spatialflow.config import get_cfg
from spatialflow.data import PanopticMapper
from spatialflow.engine import prepare_config
from spatialflow.utils.errors import ConfigError

OURS, THEIRS = "spatialflow.data.PanopticMapper", "detectron2.data.DatasetMapper"
NAME = "folder_all"
IMAGES = 50
IGNORE = 255

Dicts = list[dict[str, Any]]


def works(folder: Path, prepared: Path, images: int = IMAGES) -> dict[str, Any]:
    """Return functions that map the first images of a folder by our and by Detectron2's mapper.

    Args:
        folder: Folder in COCO panoptic layout.
        prepared: Folder for the PNG files that Detectron2's mapper reads.
        images: Number of images.

    Raises:
        ConfigError: If the folder has no ``instances_things.json``.
    """
    instances = folder / "instances_things.json"
    if not instances.is_file():
        raise ConfigError(f"{instances}: no such file; a folder with instances as well expected")
    keys = ["DATASETS.FOLDER.PATH", str(folder), "DATASETS.TRAIN", (NAME,), "DATASETS.TEST", ()]
    count = ["MODEL.RETINANET.NUM_CLASSES", -1, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", -1]
    cfg = get_cfg("coco/spatialflow_r50_20e.yaml", [*keys, *count, "MODEL.WEIGHTS", ""])
    prepare_config(cfg)
    mine = DatasetCatalog.get(NAME)[:images]
    theirs = _detectron2_dicts(mine, json.loads(instances.read_text()), prepared)
    mapper = PanopticMapper(cfg, is_train=True)
    theirs_mapper = DatasetMapper(
        is_train=True,
        augmentations=utils.build_augmentation(cfg, is_train=True),
        image_format=cfg.INPUT.FORMAT,
        use_instance_mask=True,
        instance_mask_format="bitmask",
    )
    return {OURS: lambda: _map(mapper, mine), THEIRS: lambda: _map(theirs_mapper, theirs)}


def _map(mapper: Any, dicts: Dicts) -> None:
    np.random.seed(0)  # noqa: NPY002 - Detectron2's augmentations draw from it
    for entry in dicts:
        mapper(entry)


def _detectron2_dicts(dicts: Dicts, instances: dict[str, Any], folder: Path) -> Dicts:
    metadata = MetadataCatalog.get(NAME)
    things = metadata.thing_dataset_id_to_contiguous_id
    by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in instances["annotations"]:
        by_image[annotation["image_id"]].append(
            {
                "bbox": annotation["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
                "iscrowd": annotation["iscrowd"],
                "category_id": things[annotation["category_id"]],
                "segmentation": annotation["segmentation"],
            }
        )
    found = []
    for entry in dicts:
        ids = rgb2id(np.array(Image.open(entry["pan_seg_file_name"])))
        labels = np.full(ids.shape, IGNORE, np.uint8)
        for segment in entry["segments_info"]:
            labels[ids == segment["id"]] = 0 if segment["isthing"] else segment["category_id"]
        path = folder / f"{Path(entry['file_name']).stem}.png"
        Image.fromarray(labels).save(path)
        own = {key: entry[key] for key in ("file_name", "image_id", "height", "width")}
        annotations = by_image[int(entry["image_id"])]
        found.append({**own, "sem_seg_file_name": str(path), "annotations": annotations})
    return found


def measure(args: argparse.Namespace) -> list[Report]:
    """Measure, and return the report.

    Raises:
        ConfigError: If no data is given.
    """
    if args.data is None:
        raise ConfigError("--data: none given, a folder in COCO panoptic layout expected")
    with tempfile.TemporaryDirectory(prefix="spatialflow_speed_") as prepared:
        seconds = time_in_turn(works(args.data, Path(prepared)), IMAGES, args.rounds)
    over = median_ratio(seconds[OURS], seconds[THEIRS])
    report = Report("data", ["", "s an image", "images a second", "ratio of times"])
    for name, values in seconds.items():
        rate = f"{1 / sorted(values)[len(values) // 2]:.1f}"
        mine = f"{over:.2f}" if name == OURS else "1"
        report.rows.append([f"`{name}`", spread(values), rate, mine])
    report.bars = {"mapper over Detectron2's": over}
    report.data = {"seconds an image": seconds}
    return [report]


if __name__ == "__main__":
    run_benchmark(__doc__, measure)
