"""Masks of proposals, on the mask branch.

Shape legend: N images, C channels, M proposals or detections of a batch, K thing classes.
"""

from __future__ import annotations

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor, nn
from torch.nn import functional as F

from spatialflow.modeling.layers.norms import norm_builder
from spatialflow.modeling.losses import LossNormalizer
from spatialflow.utils.precision import full_precision


class ProposalMaskHead(nn.Module):
    """Detectron2's mask head on the detector's own boxes: no RPN, no second box stage.

    In training the boxes are the current detections and the ground truth; those that overlap some
    ground truth by ``proposal_iou`` or more, whatever their class, learn its mask.
    """

    @configurable
    def __init__(
        self,
        *,
        fcn: MaskRCNNConvUpsampleHead,
        pooler: ROIPooler,
        proposal_iou: float,
        normalizer: LossNormalizer,
    ) -> None:
        """Build the head.

        Args:
            fcn: From pooled features to logits (M, K, 28, 28).
            pooler: Pools proposals from the mask branch's levels.
            proposal_iou: Overlap at which a proposal learns a ground truth's mask.
            normalizer: Of the loss, given the number of proposals.
        """
        super().__init__()
        self.fcn = fcn
        self.pooler = pooler
        self.matcher = Matcher([proposal_iou], [0, 1])
        self.normalizer = normalizer

    @classmethod
    def from_config(cls, cfg, input_shape, normalizer: LossNormalizer) -> dict:  # noqa: ANN001
        """Read ``MODEL.ROI_MASK_HEAD`` and ``MODEL.SPATIALFLOW``."""
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
            "pooler": ROIPooler(
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
        """Learn the masks of proposals, or predict those of detections.

        Args:
            features: The mask branch, (N, C, H, W) a level.
            detections: Of each image, with ``pred_boxes`` (and ``pred_classes`` to predict).
            targets: Ground truth of each image; needed in training.

        Returns:
            In training ``{"loss_mask": scalar}``; else the detections, with ``pred_masks``
            (M, 1, 28, 28), probabilities in the box.
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
        proposals = [self._sample(*pair) for pair in zip(detections, targets, strict=True)]
        logits = self.fcn.layers(
            self.pooler(features, [image.proposal_boxes for image in proposals])
        )
        loss = mask_rcnn_loss(full_precision(logits), proposals)
        # Detectron2's loss is the mean over this process's proposals.
        count = torch.as_tensor(len(logits), device=logits.device)
        return {"loss_mask": loss * count / self.normalizer(count)}

    def _logits(self, pooled: Tensor, classes: Tensor) -> Tensor:
        """Return what ``fcn`` gives for one class of each box, (M, 1, 28, 28).

        Its last convolution is not done for the other classes, and before the upsampled pixels,
        each of which comes of one pixel, are put in their places.
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
    def _sample(self, detections: Instances, targets: Instances) -> Instances:
        """Return the proposals that overlap ground truth, with that ground truth attached."""
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
