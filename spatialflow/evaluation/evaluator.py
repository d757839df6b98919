"""Panoptic quality on registered data, as tables and as JSON, with intervals.

Images are matched one at a time, so each image's counts are known: intervals come from resampling
images, and no pool of processes is started. Segments are counted on the rank that predicted them,
and only the counts are gathered.
"""

from __future__ import annotations

import copy
import itertools
import json
import logging
import math
import tempfile
from collections import OrderedDict
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, DatasetEvaluators
from detectron2.utils import comm
from tabulate import tabulate

from spatialflow.data.evaluation_json import instances_json, panoptic_json
from spatialflow.data.registration import ensure_metadata
from spatialflow.evaluation.intervals import bootstrap_pq
from spatialflow.evaluation.panoptic_quality import GROUPS, count_matches, summarize

logger = logging.getLogger(__name__)

RESULTS_FILE = "panoptic_results.json"


class PanopticEvaluator(COCOPanopticEvaluator):
    """PQ, SQ and RQ for all classes, things and stuff, in Detectron2's format.

    A group without classes, or whose classes are in no image, is nan in the returned dict, "n/a"
    in the table and null in the JSON.
    """

    def __init__(self, dataset_name: str, output_dir: str | Path | None = None) -> None:
        """Reads the ground truth of a registered data set, deriving it if this is the first time.

        Args:
            dataset_name: a name given to `register_panoptic`, or a built-in one.
            output_dir: folder for `panoptic_results.json`; None writes nothing.
        """
        ensure_metadata(dataset_name)
        super().__init__(dataset_name, None if output_dir is None else str(output_dir))
        truth = json.loads(panoptic_json(dataset_name).read_text())
        self._dataset_name = dataset_name
        self._categories = {c["id"]: c for c in truth["categories"]}
        self._truth = {a["image_id"]: a for a in truth["annotations"]}
        self._images = {i["id"]: i for i in truth["images"]}
        self._records: dict[int | str, dict] = {}

    def reset(self) -> None:
        """Forgets the images seen so far."""
        super().reset()
        self._records = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Matches the segments of some images with the ground truth.

        Args:
            inputs: the mapper's dicts, with `image_id` and `file_name`.
            outputs: the model's dicts, with `panoptic_seg`.

        Raises:
            ValueError: if an image is not in the data set, or the result has another size.
        """
        for one_input, output in zip(inputs, outputs, strict=True):
            image_id = one_input["image_id"]
            if image_id not in self._truth:
                raise ValueError(f"image {image_id!r} is not in data set {self._dataset_name!r}")
            ids, segments = output["panoptic_seg"]
            image = self._images[image_id]
            expected = (image["height"], image["width"])
            if tuple(ids.shape) != expected:
                raise ValueError(
                    f"the panoptic result of image {image_id!r} is {tuple(ids.shape)} (height, "
                    f"width), but the image is {expected}"
                )
            # Detectron2's process() replaces the ids of the segments it is given.
            super().process([one_input], [{"panoptic_seg": (ids, copy.deepcopy(segments))}])
            self._records[image_id] = self._count(self._predictions.pop())

    def _count(self, prediction: dict) -> dict:
        """Counts one image's matches; the record goes into the JSON as it is."""
        truth = self._truth[prediction["image_id"]]
        with tempfile.TemporaryDirectory(prefix="spatialflow_pq_") as folder:
            (Path(folder) / prediction["file_name"]).write_bytes(prediction.pop("png_string"))
            folders = (self._metadata.panoptic_root, folder)
            classes = count_matches((truth, prediction), folders, self._categories)
        return {
            "image_id": prediction["image_id"],
            "file_name": self._images[prediction["image_id"]]["file_name"],
            "classes": classes,
        }

    def evaluate(self) -> OrderedDict | None:
        """Gathers the counts of all ranks, logs the tables and writes the JSON.

        Returns:
            {"panoptic_seg": {"PQ", "SQ", "RQ", "PQ_th", …, "RQ_st"}} in percent on rank 0, None on
            the others.

        Raises:
            ValueError: if an image of the data set has no result.
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
        logger.info("panoptic quality on %s:\n%s", self._dataset_name, results_table(results))
        if self._output_dir is not None:
            path = Path(self._output_dir) / RESULTS_FILE
            path.write_text(json.dumps(results, indent=1, allow_nan=False))
        returned = {k: math.nan if v is None else v for k, v in results["summary"].items()}
        return OrderedDict(panoptic_seg=returned)


def results_table(results: dict) -> str:
    """Writes results as two tables, the groups and the classes.

    Args:
        results: the content of `panoptic_results.json`.

    Returns:
        text of several lines; "n/a" where there is nothing to measure.
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
            c["name"],
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
    """Builds the evaluators of a registered panoptic data set.

    Args:
        cfg: TEST.DETECTIONS_PER_IMAGE raises COCO's limit of 100 detections an image.
        dataset_name: a name given to `register_panoptic`, or a built-in one.
        output_folder: where results are written; None means OUTPUT_DIR/inference.

    Returns:
        PQ, and box and mask AP (by object size too) if the data set has things. All ranks have to
        call this.
    """
    folder = Path(cfg.OUTPUT_DIR) / "inference" if output_folder is None else Path(output_folder)
    has_things = bool(ensure_metadata(dataset_name).thing_classes)
    if comm.is_main_process():
        # Derived once here, so that the other ranks find the files ready.
        panoptic_json(dataset_name)
        if has_things:
            instances_json(dataset_name)
    comm.synchronize()
    evaluators = [PanopticEvaluator(dataset_name, folder)]
    if has_things:
        detections = cfg.TEST.DETECTIONS_PER_IMAGE
        evaluators.append(
            COCOEvaluator(
                dataset_name,
                tasks=("bbox", "segm"),
                output_dir=str(folder),
                max_dets_per_image=detections if detections > 100 else None,
                use_fast_impl=False,
            )
        )
    return DatasetEvaluators(evaluators)
