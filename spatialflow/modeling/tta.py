"""Test-time augmentation: one image at several sizes, also mirrored, and one result.

Shape legend: N images, C channels, V views, M instances, K thing classes, S stuff classes + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import read_image
from detectron2.data.transforms import HFlipTransform, TransformList
from detectron2.modeling import DatasetMapperTTA
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from spatialflow.modeling.heads import resize_logits
from spatialflow.modeling.meta_arch import SpatialFlow


class TestTimeAugmentation(nn.Module):
    """A model that sees every image in several views, as the authors' code does.

    Candidate boxes of all views, brought to the image, pass one non-maximum suppression; masks of
    what is left are predicted in each view, and their probabilities averaged; stuff logits are
    brought to the image's size and averaged. Views are Detectron2's, by ``TEST.AUG``.
    """

    __test__ = False  # the name is no test's

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        """Take a model.

        Args:
            cfg: ``TEST.AUG`` and ``INPUT.FORMAT``.
            model: A :class:`spatialflow.SpatialFlow`, in eval mode when it is used.

        Raises:
            ValueError: If it is another model, or there is no size.
        """
        super().__init__()
        if not isinstance(model, SpatialFlow):
            raise ValueError(
                f"TEST.AUG.ENABLED: given for {type(model).__name__}, SpatialFlow expected"
            )
        if not cfg.TEST.AUG.MIN_SIZES:
            raise ValueError("TEST.AUG.MIN_SIZES: none given, one or more sizes expected")
        self.model = model
        self.views = DatasetMapperTTA(cfg)
        self.input_format = cfg.INPUT.FORMAT

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Run a batch in Detectron2's format, image by image.

        Args:
            batched_inputs: As :class:`spatialflow.SpatialFlow` takes them at test time. An image
                with a ``file_name`` is read from there, at its own size; without one, the views are
                made of ``image`` as it is.

        Returns:
            For each image what the model itself returns.
        """
        with self.model.precision():
            return [self._combine(self._read(item)) for item in batched_inputs]

    def _read(self, item: dict[str, Any]) -> dict[str, Any]:
        if "file_name" not in item:
            size = item["image"].shape[-2:]
            return {"height": size[0], "width": size[1], **item, "image": item["image"].cpu()}
        pixels = read_image(item["file_name"], self.input_format)
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return {"image": image, "height": image.shape[1], "width": image.shape[2]}

    def _combine(self, item: dict[str, Any]) -> dict[str, Any]:
        size = (item["height"], item["width"])
        views = self.views({key: item[key] for key in ("image", "height", "width")})
        boxes, scores, masks_of, stuff = [], [], [], []
        for view in views:
            images = self.model.preprocess_image([view])
            seen = self.model.dense(images)
            ((view_boxes, view_scores),) = self.model.box_head.candidates(
                seen.anchors, seen.logits, seen.deltas, images.image_sizes
            )
            boxes.append(_moved(view_boxes.tensor, view["transforms"].inverse()))
            scores.append(view_scores)
            masks_of.append(seen.mask_features)
            (logits,) = self.model.stuff_head.upsample(seen.stuff_logits)
            logits = resize_logits(logits, images.image_sizes[0], size)
            stuff.append(logits.flip(-1) if _mirrors(view) else logits)
        joined = Boxes(torch.cat(boxes))
        joined.clip(size)
        detections = self.model.box_head.select(joined, torch.cat(scores), size)
        detections.pred_masks = self._masks(detections.pred_boxes, detections, views, masks_of)
        sem_seg = torch.stack(stuff).mean(dim=0)
        instances = detector_postprocess(detections, *size)
        return {
            "instances": instances,
            "sem_seg": sem_seg,
            "panoptic_seg": self.model.fusion(instances, sem_seg.argmax(dim=0)),
        }

    def _masks(
        self,
        boxes: Boxes,
        detections: Instances,
        views: Sequence[dict[str, Any]],
        features: Sequence[list[Tensor]],
    ) -> Tensor:
        """Return the mean over views of the masks' probabilities in their boxes, (M, 1, h, w)."""
        predicted = []
        for view, levels in zip(views, features, strict=True):
            seen = Instances(
                tuple(view["image"].shape[-2:]),
                pred_boxes=Boxes(_moved(boxes.tensor, view["transforms"])),
                pred_classes=detections.pred_classes,
            )
            (seen,) = self.model.mask_head(levels, [seen])
            masks = seen.pred_masks
            predicted.append(masks.flip(-1) if _mirrors(view) else masks)
        return torch.stack(predicted).mean(dim=0)


def _moved(boxes: Tensor, transforms: TransformList) -> Tensor:
    """Transform boxes, (R, 4)."""
    moved = transforms.apply_box(boxes.double().cpu().numpy())
    return torch.as_tensor(moved, dtype=boxes.dtype, device=boxes.device)


def _mirrors(view: dict[str, Any]) -> bool:
    return any(isinstance(t, HFlipTransform) for t in view["transforms"].transforms)
