"""Evaluate panoptic quality on a registered data set, and write tables and JSON with intervals.

Segments are matched image by image, on the rank that predicted them, without a pool of processes.
Only the counts of matches are gathered. As they are known for each image, intervals come from
resampling images.

H, W: Height and width of an image in pixels.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Container
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm
from tabulate import tabulate

from spatialflow.data.evaluation_json import instances_json, panoptic_json
from spatialflow.data.panoptic_png import MAX_SEGMENT_ID
from spatialflow.data.registration import category_ids, ensure_metadata, view_of
from spatialflow.data.validation.decoding import ListedImage
from spatialflow.data.validation.file_rules import read_panoptic_png
from spatialflow.evaluation.average_precision import InstanceEvaluator
from spatialflow.evaluation.intervals import bootstrap_pq
from spatialflow.evaluation.panoptic_quality import GROUPS, Segmentation, count_matches, summarize
from spatialflow.utils.errors import ConfigError
from spatialflow.utils.files import write_text
from spatialflow.utils.text import cell

logger = logging.getLogger(__name__)

RESULTS_FILE = "panoptic_results.json"
"""Name of the JSON file with all results, in the evaluator's output folder."""


class PanopticEvaluator(DatasetEvaluator):
    """Evaluator of PQ, SQ and RQ for all classes, things and stuff, in Detectron2's format.

    It accepts the outputs that Detectron2's ``COCOPanopticEvaluator`` accepts. A group without
    classes, or whose classes are in no image, is NaN in the returned dict, "n/a" in the table and
    null in the JSON.
    """

    def __init__(self, dataset_name: str, output_dir: str | Path | None = None) -> None:
        """Read the ground truth of a registered data set, and derive it on first use.

        Args:
            dataset_name: Name of a data set that ``register_panoptic`` or this package registered.
            output_dir: Folder for ``panoptic_results.json``; None writes no file.
        """
        self._metadata = ensure_metadata(dataset_name)
        self._output_dir = None if output_dir is None else Path(output_dir)
        if self._output_dir is not None:
            self._output_dir.mkdir(parents=True, exist_ok=True)
        self._category_ids = category_ids(self._metadata)
        truth = json.loads(panoptic_json(dataset_name).read_text())
        self._dataset_name = dataset_name
        self._categories = {c["id"]: c for c in truth["categories"]}
        self._truth = {a["image_id"]: a for a in truth["annotations"]}
        self._images = {i["id"]: i for i in truth["images"]}
        self._records: dict[int | str, dict[str, Any]] = {}

    def reset(self) -> None:
        """Forget all images."""
        self._records = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Match the segments of some images with the ground truth.

        Args:
            inputs: Dicts of the mapper, with ``image_id``.
            outputs: Dicts of the model; ``panoptic_seg`` is a map (H, W) of segment ids and a list
                of segments in Detectron2's format. A segment without ``isthing`` has the category
                id of the data set. Without a list (None) the map has category × ``label_divisor`` +
                instance of each pixel, and -1 for void.

        Raises:
            ConfigError: If the model gives no panoptic results.
            DataError: If the panoptic PNG of an image cannot be read.
            ValueError: If an image is not in the data set, its result has another size, or its ids
                and segments do not fit together.
        """
        for one_input, output in zip(inputs, outputs, strict=True):
            image_id = one_input["image_id"]
            if image_id not in self._truth:
                raise ValueError(f"image {image_id!r} is not in data set {self._dataset_name!r}")
            if "panoptic_seg" not in output:
                raise ConfigError(
                    f"MODEL.META_ARCHITECTURE: the model gives {', '.join(output)} for an image; "
                    "panoptic_seg expected, as of SpatialFlow and PanopticFPN"
                )
            ids, segments = output["panoptic_seg"]
            image = self._images[image_id]
            size = (image["height"], image["width"])
            if tuple(ids.shape) != size:
                raise ValueError(
                    f"the panoptic result of image {image_id!r} is {tuple(ids.shape)} (height, "
                    f"width), but the image is {size}"
                )
            truth = self._truth[image_id]
            path = os.path.join(self._metadata.panoptic_root, truth["file_name"])
            true_ids = _read_truth(path, ListedImage(image["file_name"], size))
            self._records[image_id] = {
                "image_id": image_id,
                "file_name": image["file_name"],
                "classes": count_matches(
                    (true_ids, truth["segments_info"]),
                    self._with_dataset_ids(ids.cpu().numpy(), segments, image_id),
                    self._categories,
                    image_id,
                ),
            }

    def _with_dataset_ids(
        self, ids: np.ndarray, segments: list[dict[str, Any]] | None, image: int | str
    ) -> Segmentation:
        """Return a panoptic result with the data set's category ids, as Detectron2 converts it.

        Args:
            ids: (H, W) segment ids, or labels if there are no segments.
            segments: Segments in Detectron2's format, or None.
            image: Id of the image, for errors.

        Returns:
            (H, W) segment ids and the segments; nothing of the given ones is changed.

        Raises:
            ValueError: If a segment has a contiguous category id that the data set does not have.
        """
        if segments is None:
            ids, divisor, things = ids + 1, self._metadata.label_divisor, self._category_ids[True]
            labels = [(int(i), int(i - 1) // divisor) for i in np.unique(ids) if i]
            segments = [{"id": i, "category_id": c, "isthing": c in things} for i, c in labels]
        converted = []
        for segment in segments:
            category_id, isthing = segment["category_id"], segment.get("isthing")
            if isthing is not None:
                known = self._category_ids[bool(isthing)]
                if category_id not in known:
                    raise ValueError(
                        f"segment {segment['id']} in the panoptic result of image {image!r} is "
                        f"{'thing' if isthing else 'stuff'} of class {category_id}; one of "
                        f"{sorted(known)} expected"
                    )
                category_id = known[category_id]
            converted.append({"id": segment["id"], "category_id": category_id})
        return ids, converted

    def quality(self, file_names: Container[str]) -> float:
        """Return PQ in percent of some of the images that this process has matched so far.

        Args:
            file_names: Names of the images, as in the JSON. NaN if none of them has a segment.
        """
        records = [r for r in self._records.values() if r["file_name"] in file_names]
        value = summarize(records, self._categories)["summary"]["PQ"]
        return math.nan if value is None else float(value)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Gather the counts of all ranks, log the tables and write the JSON.

        Returns:
            ``{"panoptic_seg": {"PQ": …, "SQ": …, "RQ": …, "PQ_th": …, …, "RQ_st": …}}`` in percent
            on rank 0, None on the other ranks.

        Raises:
            ValueError: If an image of the data set has no result.
        """
        comm.synchronize()
        gathered = comm.gather(list(self._records.values()))
        if not comm.is_main_process():
            return None
        records = {r["image_id"]: r for r in itertools.chain(*gathered)}
        missing = [image_id for image_id in self._truth if image_id not in records]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self._truth)} images of data set {self._dataset_name!r} "
                f"have no panoptic result, the first is {missing[0]!r}; to evaluate fewer images "
                "register the data set with limit="
            )
        per_image = [records[image_id] for image_id in self._truth]
        results = summarize(per_image, self._categories)
        results = {"dataset": self._dataset_name, "images": len(per_image), **results}
        results["interval_95"] = bootstrap_pq(per_image)
        results["per_image"] = per_image
        groups, _, classes = results_table(results).partition("\n\n")
        logger.info("panoptic quality on %s:\n%s", self._dataset_name, groups)
        logger.debug("by class:\n%s", classes)
        if self._output_dir is not None:
            path = self._output_dir / RESULTS_FILE
            write_text(path, _as_json(results))
        returned = {k: math.nan if v is None else v for k, v in results["summary"].items()}
        return OrderedDict(panoptic_seg=returned)


def _read_truth(path: str, image: ListedImage) -> np.ndarray:
    """Return the (H, W) ids of a panoptic PNG that the derived JSON names."""
    # The PNG passed all checks when the JSON was derived, so that the fastest decoder will do.
    colors = cv2.imread(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if colors is None or colors.shape[:2] != image.size:
        return read_panoptic_png(path, image)  # raises, with the reason
    # Four bytes for each pixel are one number, lowest byte first. The last byte means nothing.
    ids = cv2.cvtColor(colors, cv2.COLOR_BGR2RGBA).view("<i4")[..., 0]
    ids &= MAX_SEGMENT_ID
    return ids


def results_table(results: dict[str, Any]) -> str:
    """Return results as two Markdown tables, one of groups and one of classes.

    Args:
        results: Content of ``panoptic_results.json``.

    Returns:
        Text of several lines; numbers are in percent, "n/a" where nothing was measured.
    """
    groups = []
    for suffix, (group, _) in GROUPS.items():
        interval = results["interval_95"][f"PQ{suffix}"]
        groups.append(
            [
                group,
                *(_number(results["summary"][key + suffix]) for key in ("PQ", "SQ", "RQ")),
                "n/a" if interval is None else "{:.1f} to {:.1f}".format(*interval),
                results["classes_counted"][f"PQ{suffix}"],
            ]
        )
    classes = [
        [
            cell(c["name"]),
            "thing" if c["isthing"] else "stuff",
            *(_number(c[key]) for key in ("PQ", "SQ", "RQ")),
            *(c[key] for key in ("tp", "fp", "fn")),
        ]
        for c in results["per_class"]
    ]
    headers = ["", "PQ", "SQ", "RQ", "PQ, 95 %", "classes"]
    class_headers = ["class", "", "PQ", "SQ", "RQ", "TP", "FP", "FN"]
    return "\n\n".join(
        tabulate(rows, headers=head, tablefmt="pipe", disable_numparse=True)
        for rows, head in ((groups, headers), (classes, class_headers))
    )


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | Path | None = None
) -> DatasetEvaluators:
    """Build the evaluators of a registered panoptic data set; all ranks must call this.

    Args:
        cfg: Config; ``TEST.DETECTIONS_PER_IMAGE`` above 100 raises COCO's limit of 100 detections
            per image.
        dataset_name: Name of a data set that ``register_panoptic`` or this package registered.
        output_folder: Folder for the results; None for ``OUTPUT_DIR/inference``.

    Returns:
        Evaluators of PQ and, if the data set has things, of box and mask AP, also by object size.
    """
    folder = Path(cfg.OUTPUT_DIR) / "inference" if output_folder is None else Path(output_folder)
    dataset_name = view_of(dataset_name)
    has_things = bool(ensure_metadata(dataset_name).thing_classes)
    if comm.is_main_process():
        # Derive the files on one rank; the others find them in the cache.
        panoptic_json(dataset_name)
        if has_things:
            instances_json(dataset_name)
    comm.synchronize()
    evaluators: list[DatasetEvaluator] = [PanopticEvaluator(dataset_name, folder)]
    if has_things:
        detections = max(cfg.TEST.DETECTIONS_PER_IMAGE, 100)
        evaluators.append(InstanceEvaluator(dataset_name, str(folder), detections))
    return DatasetEvaluators(evaluators)


def _as_json(results: dict[str, Any]) -> str:
    """Return results as JSON with a line for each image; indented records take far longer."""
    head = {name: value for name, value in results.items() if name != "per_image"}
    records = (json.dumps(record, allow_nan=False) for record in results["per_image"])
    text = json.dumps(head, indent=1, allow_nan=False).removesuffix("\n}")
    return text + ',\n "per_image": [\n  ' + ",\n  ".join(records) + "\n ]\n}\n"
