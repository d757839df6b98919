"""Run models on a few images, measure their quality and draw their results.

H, W: Height and width of an image in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from torch import Tensor, nn

from spatialflow.data.images import read_image
from spatialflow.data.mapper import PanopticMapper, panoptic_ground_truth
from spatialflow.evaluation.intervals import bootstrap_pq
from spatialflow.evaluation.panoptic_quality import Segmentation, count_matches, summarize
from spatialflow.utils.visualize import draw_panoptic, side_by_side

Panoptic = tuple[Tensor, list[dict[str, Any]]]
"""Segment ids (H, W), and the segments in Detectron2's format."""


class Samples:
    """Images of one data set with their ground truth.

    Attributes:
        images: Dicts of the images, as in ``DatasetCatalog.get``.
        metadata: Detectron2's metadata of the data set.
        truth: Ground truth of each image.
        categories: Category id → entry as in the ``categories`` of COCO's panoptic format.
    """

    def __init__(
        self,
        images: Sequence[dict[str, Any]],
        metadata: Metadata,
        *,
        white_level: float | None = None,
    ) -> None:
        """Read the ground truth.

        Args:
            images: Dicts of the images, as in ``DatasetCatalog.get``.
            metadata: Detectron2's metadata of the data set.
            white_level: The value of ``INPUT.WHITE_LEVEL``, to draw images of more than 8 bits.

        Raises:
            DataError: If a file cannot be read.
        """
        self.images = images
        self.metadata = metadata
        self.white_level = white_level
        self.truth: list[Panoptic] = [panoptic_ground_truth(image, metadata) for image in images]
        self.categories = {
            _category(isthing, index): {
                "id": _category(isthing, index),
                "name": name,
                "isthing": int(isthing),
            }
            for isthing, names in (
                (True, metadata.thing_classes),
                (False, metadata.stuff_classes),
            )
            for index, name in enumerate(names)
        }

    @torch.no_grad()
    def results_of(self, model: nn.Module, mapper: PanopticMapper) -> list[Panoptic]:
        """Return the panoptic result of a model for each image.

        Args:
            model: Panoptic model with Detectron2's outputs, in eval mode.
            mapper: Mapper of inference (``is_train=False``).
        """
        return [model([mapper(dict(image))])[0]["panoptic_seg"] for image in self.images]

    def quality(self, results: Sequence[Panoptic]) -> dict[str, tuple[float, float, float] | None]:
        """Return PQ, PQ_th and PQ_st in percent with their 95 % intervals over images.

        Args:
            results: One panoptic result per image.

        Returns:
            "PQ", "PQ_th" and "PQ_st" → mean, lower and upper end; None for a group without a class
            in these images.
        """
        records = []
        for image, truth, result in zip(self.images, self.truth, results, strict=True):
            name = image["file_name"]
            counts = count_matches(_annotated(*truth), _annotated(*result), self.categories, name)
            records.append({"file_name": name, "classes": counts})
        means = summarize(records, self.categories)["summary"]
        found: dict[str, tuple[float, float, float] | None] = {}
        for name, ends in bootstrap_pq(records).items():
            found[name] = None if means[name] is None or ends is None else (means[name], *ends)
        return found

    def draw(self, results: Mapping[str, Sequence[Panoptic]], count: int) -> np.ndarray:
        """Draw the first images, their ground truth and the results of models side by side.

        Args:
            results: Title → one panoptic result per image.
            count: Number of images to draw.

        Returns:
            (H', W', 3) uint8 RGB.
        """
        rows = []
        for i, image in enumerate(self.images[:count]):
            rgb = read_image(image["file_name"], white_level=self.white_level)
            drawn = [self.truth[i], *(result[i] for result in results.values())]
            rows.append(
                [rgb, *(draw_panoptic(rgb, ids, found, self.metadata) for ids, found in drawn)]
            )
        return side_by_side(rows, titles=("image", "ground truth", *results))


def _category(isthing: bool, index: int) -> int:
    """Return a category id for a thing or stuff class; both are counted from 0."""
    return 2 * index + int(isthing)


def _annotated(ids: Tensor, segments: list[dict[str, Any]]) -> Segmentation:
    """Return ids and segments in COCO's panoptic format; segments without a pixel are left out."""
    array = ids.cpu().numpy()
    areas = dict(zip(*(a.tolist() for a in np.unique(array, return_counts=True)), strict=True))
    listed = [
        {
            "id": segment["id"],
            "category_id": _category(segment["isthing"], segment["category_id"]),
            "iscrowd": 0,
            "area": areas[segment["id"]],
        }
        for segment in segments
        if segment["id"] in areas
    ]
    return array, listed
