"""Mask head: masks of proposals and detections, from the mask branch.

Shape legend: N images, C channels, H and W the size of a level, M proposals or detections of a
batch, K thing classes, C' channels inside the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, paste_masks_in_image
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.memory import retry_if_cuda_oom
from torch import Tensor, nn
from torch.nn import functional as F

from spatialflow.modeling.heads.selection import clipped
from spatialflow.modeling.layers.norms import norm_builder
from spatialflow.modeling.layers.pooling import RegionPooler
from spatialflow.modeling.losses import LossNormalizer
from spatialflow.utils.precision import full_precision


class ProposalMaskHead(nn.Module):
    """Detectron2's mask head (Mask R-CNN, arXiv 1703.06870) on the boxes of the box head.

    In training the proposals are the current detections and the ground-truth boxes, or the sample
    of a region head, which is matched already (:meth:`losses`). A detection that overlaps a ground
    truth by ``proposal_iou`` or more learns its mask, whatever its class.
    """

    @configurable
    def __init__(
        self,
        *,
        fcn: MaskRCNNConvUpsampleHead,
        pooler: RegionPooler,
        proposal_iou: float,
        normalizer: LossNormalizer,
    ) -> None:
        """Build the head.

        Args:
            fcn: Convolutions from pooled features (M, C, 14, 14) to mask logits (M, K, 28, 28).
            pooler: ROIAlign from the levels of the mask branch.
            proposal_iou: Smallest IoU with which a proposal learns the mask of a ground truth.
            normalizer: Denominator of the loss, from the number of proposals.
        """
        super().__init__()
        self.fcn = fcn
        self.pooler = pooler
        self.matcher = Matcher([proposal_iou], [0, 1])
        self.normalizer = normalizer

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec], normalizer: LossNormalizer
    ) -> dict[str, Any]:
        """Return the constructor's arguments for a config.

        Args:
            cfg: A config; ``MODEL.ROI_MASK_HEAD`` and ``MODEL.SPATIALFLOW.MASK_*`` are read.
            input_shape: Level name → channels and stride of the pyramid level.
            normalizer: Denominator of the loss.
        """
        keys, own = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.SPATIALFLOW
        shapes = [input_shape[level] for level in own.MASK_IN_FEATURES]
        resolution = keys.POOLER_RESOLUTION
        pooled = ShapeSpec(channels=shapes[0].channels, width=resolution, height=resolution)
        return {
            "fcn": MaskRCNNConvUpsampleHead(
                pooled,
                num_classes=cfg.MODEL.RETINANET.NUM_CLASSES,
                conv_dims=[keys.CONV_DIM] * (keys.NUM_CONV + 1),
                conv_norm=norm_builder(keys.NORM),
            ),
            "pooler": RegionPooler(
                output_size=resolution,
                scales=[1.0 / shape.stride for shape in shapes],
                sampling_ratio=keys.POOLER_SAMPLING_RATIO,
                pooler_type=keys.POOLER_TYPE,
                canonical_box_size=own.MASK_CANONICAL_BOX_SIZE,
                canonical_level=own.MASK_CANONICAL_LEVEL,
            ),
            "proposal_iou": own.MASK_PROPOSAL_IOU,
            "normalizer": normalizer,
        }

    def forward(
        self,
        features: list[Tensor],
        detections: list[Instances],
        targets: list[Instances] | None = None,
    ) -> dict[str, Tensor] | list[Instances]:
        """Return the loss of proposals in training; predict the masks of detections otherwise.

        Args:
            features: Levels of the mask branch, each (N, C, H, W).
            detections: Detections of each image with ``pred_boxes``; inference also needs
                ``pred_classes``.
            targets: Ground truth of each image, with ``gt_boxes``, ``gt_classes`` and
                ``gt_masks``; only needed in training.

        Returns:
            In training ``loss_mask``, a scalar in float32. Otherwise the detections with
            ``pred_masks``, probabilities inside the boxes, (M, 1, 28, 28).
        """
        # Pooling is not implemented in half precision on every device.
        features = [full_precision(level) for level in features]
        if not self.training:
            boxes = [image.pred_boxes for image in detections]
            classes = torch.cat([image.pred_classes for image in detections])
            logits = self._logits(self.pooler(features, boxes), classes)
            mask_rcnn_inference(full_precision(logits), detections)
            return detections
        assert targets is not None
        pairs = zip(detections, targets, strict=True)
        return self.losses(features, [self._match_proposals(*pair) for pair in pairs])

    def losses(self, features: list[Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """Return the loss of proposals that are matched with ground truth.

        Args:
            features: Levels of the mask branch, each (N, C, H, W).
            proposals: ``proposal_boxes``, ``gt_classes`` and ``gt_masks`` of each image.

        Returns:
            ``loss_mask``, a scalar in float32.
        """
        features = [full_precision(level) for level in features]
        logits = self.fcn.layers(
            self.pooler(features, [image.proposal_boxes for image in proposals])
        )
        loss = mask_rcnn_loss(full_precision(logits), proposals)
        # Detectron2's loss is the mean over this process's proposals.
        count = torch.as_tensor(len(logits), device=logits.device)
        return {"loss_mask": loss * count / self.normalizer(count)}

    def _logits(self, pooled: Tensor, classes: Tensor) -> Tensor:
        """Return the mask logits of one class of each box, (M, 1, 28, 28).

        Compute what ``fcn`` computes, with less work: the predictor runs for one class only, and
        before the upsampled pixels are arranged. Each of them depends on one pixel, because the
        transposed convolution has a 2×2 kernel and a stride of 2.

        Args:
            pooled: Pooled features (M, C, 14, 14).
            classes: Class of each box, (M,).
        """
        *convolutions, upsample, _, predictor = self.fcn.children()
        features = pooled.contiguous(memory_format=torch.channels_last)
        for convolution in convolutions:
            features = convolution(features)
        kernel = upsample.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4·C', C)
        quarters = F.linear(features.permute(0, 2, 3, 1), kernel, upsample.bias.repeat(4)).relu_()
        count, height, width, _ = quarters.shape
        weight = predictor.weight[classes].flatten(1)[..., None]  # (M, C', 1)
        pixels = quarters.reshape(count, height * width * 4, weight.shape[1]) @ weight
        logits = pixels + predictor.bias[classes].view(-1, 1, 1)
        ordered = logits.view(count, height, width, 2, 2).transpose(2, 3)
        return ordered.reshape(count, 1, 2 * height, 2 * width)

    @torch.no_grad()
    def _match_proposals(self, detections: Instances, targets: Instances) -> Instances:
        """Return an image's M boxes that overlap ground truth, with its classes (M,) and masks."""
        boxes = Boxes.cat([targets.gt_boxes, detections.pred_boxes])
        matches, labels = self.matcher(pairwise_iou(targets.gt_boxes, boxes))
        positive = labels == 1
        matches = matches[positive]
        return Instances(
            targets.image_size,
            proposal_boxes=boxes[positive],
            gt_classes=targets.gt_classes[matches],
            gt_masks=targets.gt_masks[matches],
        )


def detections_at_size(detections: Instances, size: tuple[int, int]) -> Instances:
    """Return an image's detections at another size, with masks of the whole image.

    It is Detectron2's ``detector_postprocess``, which makes the CPU wait for a GPU once a field.

    Args:
        detections: ``pred_boxes``, ``pred_masks`` (M, 1, 28, 28) and other fields; they stay as
            they are.
        size: (height, width) of the results.

    Returns:
        The detections whose boxes are not empty at that size, with ``pred_masks`` (M, height,
        width) in bool.
    """
    (height, width), (old_height, old_width) = size, detections.image_size
    boxes = detections.pred_boxes.clone()
    boxes.scale(width / old_width, height / old_height)
    boxes = Boxes(clipped(boxes.tensor, size))
    kept = boxes.nonempty().nonzero()[:, 0]
    resized = Instances(size, **{**detections.get_fields(), "pred_boxes": boxes})[kept]
    paste = retry_if_cuda_oom(paste_masks_in_image)
    boxes_there = resized.pred_boxes.tensor  # tracing takes no Boxes
    resized.pred_masks = paste(resized.pred_masks[:, 0], boxes_there, size).bool()
    return resized
