"""Test-time augmentation: one result from views of an image at several sizes, also mirrored.

Shape legend: C channels, H and W the size of a map, R candidate boxes, M detections, K thing
classes, S stuff classes + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from spatialflow.data.augmentation import ResizeShortestEdge
from spatialflow.data.images import read_image
from spatialflow.modeling.heads import candidates_inside, detections_at_size, resize_logits
from spatialflow.modeling.meta_arch import SpatialFlow
from spatialflow.utils.errors import ConfigError


class TestTimeAugmentation(nn.Module):
    """Run a model on several views of each image, as the authors' code does.

    Map the candidate boxes of all views back to the image and select detections by one non-maximum
    suppression. Predict their masks in each view and average the probabilities. Resize the stuff
    logits of each view to the image's size and average them. The views are those of Detectron2's
    ``DatasetMapperTTA``, except that none of a thin image has a side of 0.
    """

    __test__ = False  # pytest collects classes by the prefix "Test"

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        """Wrap a model.

        Args:
            cfg: A config; ``TEST.AUG`` and ``INPUT.FORMAT`` are read.
            model: A :class:`spatialflow.SpatialFlow`. It must be in eval mode when views are run.

        Raises:
            ValueError: If the model has another class, or ``TEST.AUG.MIN_SIZES`` is empty.
        """
        super().__init__()
        if not isinstance(model, SpatialFlow):
            raise ConfigError(
                f"TEST.AUG.ENABLED: given for {type(model).__name__}, SpatialFlow expected"
            )
        if not cfg.TEST.AUG.MIN_SIZES:
            raise ConfigError("TEST.AUG.MIN_SIZES: none given, one or more sizes expected")
        self.model = model
        self.resizes = [
            ResizeShortestEdge(size, cfg.TEST.AUG.MAX_SIZE) for size in cfg.TEST.AUG.MIN_SIZES
        ]
        self.flip = cfg.TEST.AUG.FLIP
        self.input_format = cfg.INPUT.FORMAT
        self.white_level = cfg.INPUT.WHITE_LEVEL

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Run a batch in Detectron2's format, one image at a time.

        Args:
            batched_inputs: The batch, as for :meth:`spatialflow.SpatialFlow.forward` at inference.
                The views of an image with a ``file_name`` are made from that file at its own size,
                those of other images from ``image``.

        Returns:
            One dictionary per image, as the model returns it.
        """
        with self.model.precision():
            return [self._run_image(self._read(item)) for item in batched_inputs]

    def _read(self, item: dict[str, Any]) -> dict[str, Any]:
        """Return ``image`` (C, H, W) on the CPU, and ``height`` and ``width`` of the results."""
        if "file_name" not in item:
            height, width = item["image"].shape[-2:]
            return {"height": height, "width": width, **item, "image": item["image"].cpu()}
        pixels = read_image(item["file_name"], self.input_format, white_level=self.white_level)
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return {"image": image, "height": image.shape[1], "width": image.shape[2]}

    def _views(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        """Return ``image`` (C, H, W) and ``transforms`` of each view, from the results' size."""
        pixels = np.ascontiguousarray(item["image"].permute(1, 2, 0).numpy())
        size, own_size = (item["height"], item["width"]), pixels.shape[:2]
        before = [] if size == own_size else [T.ResizeTransform(*size, *own_size)]
        flips: list[list[T.Augmentation]] = [[], [T.RandomFlip(prob=1.0)]]
        views = []
        for resize in self.resizes:
            for flip in flips[: 1 + self.flip]:
                view, transforms = T.apply_augmentations([resize, *flip], pixels)
                # A copy: the mirrored view of one column is contiguous, with a negative stride.
                image = torch.from_numpy(view.transpose(2, 0, 1).copy())
                combined = T.TransformList([*before, *transforms.transforms])
                views.append({"image": image, "transforms": combined})
        return views

    def _run_image(self, item: dict[str, Any]) -> dict[str, Any]:
        """Return the result of one image from all its views."""
        size = (item["height"], item["width"])
        views = self._views(item)
        boxes, scores, mask_features, stuff_logits = [], [], [], []
        for view in views:
            images = self.model.preprocess_image([view])
            maps = self.model.predict_maps(images)
            ((view_boxes, view_scores),) = self.model.candidates(maps, images.image_sizes)
            back = _transform_boxes(view_boxes.flatten(0, 1), view["transforms"].inverse())
            boxes.append(back.view_as(view_boxes))
            scores.append(view_scores)
            mask_features.append(maps.mask_features)
            (logits,) = self.model.stuff_head.upsample(maps.stuff_logits)
            logits = resize_logits(logits, images.image_sizes[0], size)
            stuff_logits.append(logits.flip(-1) if _is_mirrored(view) else logits)
        candidates = candidates_inside(torch.cat(boxes), torch.cat(scores), size)
        detections = self.model.selection.select(candidates, size)
        detections.pred_masks = self._mean_masks(detections, views, mask_features)
        sem_seg = torch.stack(stuff_logits).mean(dim=0)
        instances = detections_at_size(detections, size)
        return {
            "instances": instances,
            "sem_seg": sem_seg,
            "panoptic_seg": self.model.fusion(instances, sem_seg.argmax(dim=0)),
        }

    def _mean_masks(
        self,
        detections: Instances,
        views: Sequence[dict[str, Any]],
        mask_features: Sequence[list[Tensor]],
    ) -> Tensor:
        """Return the mean over views of mask probabilities inside the boxes, (M, 1, 28, 28).

        Args:
            detections: The detections of the image, M boxes in its pixels.
            views: The views of the image.
            mask_features: The levels of the mask branch, one list per view, each (1, C, H, W).
        """
        masks = []
        for view, levels in zip(views, mask_features, strict=True):
            view_detections = Instances(
                tuple(view["image"].shape[-2:]),
                pred_boxes=Boxes(
                    _transform_boxes(detections.pred_boxes.tensor, view["transforms"])
                ),
                pred_classes=detections.pred_classes,
            )
            (view_detections,) = self.model.mask_head(levels, [view_detections])
            view_masks = view_detections.pred_masks
            masks.append(view_masks.flip(-1) if _is_mirrored(view) else view_masks)
        return torch.stack(masks).mean(dim=0)


def _transform_boxes(boxes: Tensor, transforms: T.TransformList) -> Tensor:
    """Return boxes (R, 4) after a view's transforms."""
    transformed = transforms.apply_box(boxes.double().cpu().numpy())
    return torch.as_tensor(transformed, dtype=boxes.dtype, device=boxes.device)


def _is_mirrored(view: dict[str, Any]) -> bool:
    """Return whether a view is flipped from left to right."""
    return any(isinstance(t, T.HFlipTransform) for t in view["transforms"].transforms)
