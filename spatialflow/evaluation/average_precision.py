"""Box and mask AP of a registered data set: Detectron2's evaluator, with a fast core.

H, W: Height and width of an image in pixels; N: number of instances.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from detectron2.structures import Instances
from detectron2.utils.logger import log_first_n
from pycocotools.coco import COCO

logger = logging.getLogger(__name__)

hotcoco: ModuleType | None
try:
    import hotcoco
except ImportError:
    hotcoco = None

TASKS = ("bbox", "segm")


class InstanceEvaluator(COCOEvaluator):
    """Detectron2's evaluator of box and mask AP, with the same results, messages and files.

    It differs where nothing was found in any image: AP of what the truth has is 0, and NaN where
    the truth has nothing to find. Detectron2 gives NaN for both.

    Detections are matched with the truth by hotcoco, a port of pycocotools to Rust with the same
    results to the last bit; by pycocotools where hotcoco is not installed.
    """

    def __init__(self, dataset_name: str, output_dir: str, max_detections: int = 100) -> None:
        """Read the ground truth of a registered data set, and derive it on first use.

        Args:
            dataset_name: Name of a data set that ``register_panoptic`` or this package registered.
            output_dir: Folder for Detectron2's files of results.
            max_detections: Number of detections of an image that count, those with the best scores.
        """
        super().__init__(
            dataset_name,
            tasks=TASKS,
            output_dir=output_dir,
            max_dets_per_image=max_detections,
            use_fast_impl=False,
        )
        if hotcoco is None:
            core = "pycocotools, as hotcoco is not installed (it is faster, with equal results)"
        else:
            core = f"hotcoco {hotcoco.__version__}"
            self._use_fast_impl = True  # Only for Detectron2's message: "unofficial".
        log_first_n(logging.INFO, f"AP is computed by {core}", key="message")

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep the instances of some images, their masks as run lengths.

        Args:
            inputs: Dicts of the mapper, with ``image_id``.
            outputs: Dicts of the model; ``instances`` are Detectron2's ``Instances``, with
                ``pred_masks`` (N, H, W).
        """
        for one_input, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to(self._cpu_device)
            fields = dict(instances.get_fields())
            masks = fields.pop("pred_masks")
            # Detectron2 encodes the same run lengths, but reorders the masks in a slow way.
            super().process([one_input], [{"instances": Instances(instances.image_size, **fields)}])
            for result, mask in zip(self._predictions[-1]["instances"], masks, strict=True):
                rle = mask_util.encode(cv2.transpose(mask.numpy().astype(np.uint8)).T)
                result["segmentation"] = {**rle, "counts": rle["counts"].decode()}

    def evaluate(self, img_ids: list[int | str] | None = None) -> Any:
        """Return Detectron2's results; the tables that pycocotools prints go to the log."""
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            results = super().evaluate(img_ids)
        if printed.getvalue():
            logger.debug("summary of pycocotools:\n%s", printed.getvalue())
        return results

    def _eval_predictions(
        self, predictions: list[dict[str, Any]], img_ids: list[int | str] | None = None
    ) -> None:
        """Fill ``_results`` with the metrics of boxes and masks."""
        found = list(itertools.chain.from_iterable(p["instances"] for p in predictions))
        if hotcoco is None and found:
            super()._eval_predictions(predictions, img_ids)
            return
        # Without tasks Detectron2 only gives the results the data set's categories and saves them.
        self._tasks = ()
        super()._eval_predictions(predictions, img_ids)
        if not found:
            self._logger.warning("nothing was found in any image: AP is 0 where there is truth")
        for task in TASKS:
            match = self._match if found else self._match_nothing
            self._results[task] = self._derive_coco_results(
                match(found, task, img_ids), task, class_names=self._metadata.get("thing_classes")
            )

    def _tasks_from_predictions(self, predictions: list[dict[str, Any]]) -> list[str]:
        """Return no task; Detectron2 asks this if it was given none."""
        return []

    def _match_nothing(
        self, found: list[dict[str, Any]], task: str, img_ids: list[int | str] | None
    ) -> COCOevalMaxDets:
        """Return pycocotools' evaluation of no detection, and print its summary.

        Detectron2 gives NaN for all metrics then, also for those of objects that were missed.
        """
        nothing = COCO()
        nothing.dataset = {**self._coco_api.dataset, "annotations": []}
        nothing.createIndex()
        evaluation = COCOevalMaxDets(self._coco_api, nothing, task)
        evaluation.params.maxDets = self._max_dets_per_image
        if img_ids is not None:
            evaluation.params.imgIds = img_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation

    def _match(
        self, found: list[dict[str, Any]], task: str, img_ids: list[int | str] | None
    ) -> COCOevalMaxDets:
        """Return an evaluation of pycocotools that hotcoco filled, and print its summary."""
        assert hotcoco is not None
        truth = self._coco_api.dataset
        # hotcoco needs numbers. Their order is pycocotools', which decides between equal scores.
        numbers = {i: n for n, i in enumerate(sorted(image["id"] for image in truth["images"]))}
        numbered = hotcoco.COCO(
            {
                "images": [{**image, "id": numbers[image["id"]]} for image in truth["images"]],
                "annotations": [
                    {**a, "image_id": numbers[a["image_id"]]} for a in truth["annotations"]
                ],
                "categories": truth["categories"],
            }
        )
        # The area of a result with a box would be that of the box.
        left_out = ("bbox",) if task == "segm" else ("segmentation",)
        results = [
            {
                **{k: v for k, v in r.items() if k not in left_out},
                "image_id": numbers[r["image_id"]],
            }
            for r in found
        ]
        core = hotcoco.COCOeval(numbered, numbered.loadRes(results), task)
        core.params.maxDets = self._max_dets_per_image
        if img_ids is not None:
            core.params.imgIds = [numbers[i] for i in img_ids]
        core.evaluate()
        core.accumulate()
        evaluation = COCOevalMaxDets(iouType=task)
        evaluation.params.maxDets = self._max_dets_per_image
        evaluation.eval = core.eval
        evaluation.summarize()
        return evaluation
