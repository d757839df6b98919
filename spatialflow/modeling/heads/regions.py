"""Region head: a second box stage, on regions that the dense box head proposes.

Shape legend: N images, C channels, H and W the size of a level, R proposals of an image, K thing
classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import StandardROIHeads, select_foreground_proposals
from detectron2.structures import Boxes, Instances
from torch import Tensor

from spatialflow.modeling.heads.selection import (
    NO_SCORE,
    BoxSelection,
    Candidates,
    candidates_inside,
    first_of_nms,
)
from spatialflow.modeling.layers.pooling import RegionPooler
from spatialflow.utils.precision import full_precision


class RegionHead(StandardROIHeads):
    """Detectron2's box head of Faster R-CNN (arXiv 1506.01497) on dense proposals.

    Its features are those of the region branch, a node of the flow graph.
    """

    @configurable
    def __init__(
        self,
        *,
        proposal_nms_threshold: float,
        proposals_train: int,
        proposals_test: int,
        selection: BoxSelection,
        **parts: Any,
    ) -> None:
        """Keep the limits.

        Args:
            proposal_nms_threshold: IoU above which a proposal suppresses another one, whatever
                their classes.
            proposals_train: Largest number of proposals of an image in training.
            proposals_test: Largest number of proposals of an image in inference.
            selection: Thresholds and limits for the selection of detections.
            parts: Arguments of Detectron2's ``StandardROIHeads``.
        """
        super().__init__(**parts)
        self.proposal_nms_threshold = proposal_nms_threshold
        self.proposals_train = proposals_train
        self.proposals_test = proposals_test
        self.selection = selection

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """Return the constructor's arguments for a config.

        Args:
            cfg: A config; ``MODEL.ROI_HEADS``, ``MODEL.ROI_BOX_HEAD``, ``MODEL.RPN`` and ``TEST``
                are read.
            input_shape: Level name → channels and stride of the pyramid level.
        """
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES
        # Masks are predicted by a head of our own.
        cfg.MODEL.MASK_ON = cfg.MODEL.KEYPOINT_ON = False
        keys = cfg.MODEL.ROI_HEADS
        parts = super().from_config(cfg, input_shape)
        # Detectron2 has no key for the class; this one has no state of its own.
        parts["box_pooler"].__class__ = RegionPooler
        return {
            **parts,
            "proposal_nms_threshold": cfg.MODEL.RPN.NMS_THRESH,
            "proposals_train": cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN,
            "proposals_test": cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
            "selection": BoxSelection(
                score_threshold=keys.SCORE_THRESH_TEST,
                candidates=cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
                nms_threshold=keys.NMS_THRESH_TEST,
                detections=cfg.TEST.DETECTIONS_PER_IMAGE,
            ),
        }

    @torch.no_grad()
    def propose(
        self, candidates: list[Candidates], image_sizes: list[tuple[int, int]]
    ) -> list[Instances]:
        """Select proposals by the score of their best class.

        Args:
            candidates: Candidates of each image, with one box for all classes.
            image_sizes: (height, width) of each image without padding.

        Returns:
            For each image ``proposal_boxes`` and ``objectness_logits``, best score first.
        """
        count = self.proposals_train if self.training else self.proposals_test
        proposals = []
        for (boxes, scores), size in zip(candidates, image_sizes, strict=True):
            each = Boxes(boxes[:, 0])
            # Empty boxes suppress no others. Taking them out twice would be two waits for a GPU.
            best = scores.amax(dim=1).masked_fill(~each.nonempty(), NO_SCORE)
            keep = first_of_nms(each.tensor, best, self.proposal_nms_threshold, count)
            keep = keep[best[keep] > NO_SCORE]
            proposals.append(
                Instances(
                    size, proposal_boxes=each[keep], objectness_logits=best[keep].logit(eps=1e-6)
                )
            )
        return proposals

    def losses(
        self, features: dict[str, Tensor], proposals: list[Instances], targets: list[Instances]
    ) -> tuple[dict[str, Tensor], list[Instances]]:
        """Return the losses of a sample of the proposals, and those of the sample that are objects.

        Args:
            features: Level of the region branch → (N, C, H, W).
            proposals: From :meth:`propose`.
            targets: Ground truth of each image, with ``gt_boxes``, ``gt_classes`` and ``gt_masks``.

        Returns:
            ``loss_region_cls`` and ``loss_region_box``, scalars in float32; for each image
            ``proposal_boxes``, ``gt_classes`` and ``gt_masks`` of the objects.
        """
        sample = self.label_and_sample_proposals(proposals, targets)
        losses = self._forward_box(_full_precision(features), sample)
        objects, _ = select_foreground_proposals(sample, self.num_classes)
        return {
            "loss_region_cls": losses["loss_cls"],
            "loss_region_box": losses["loss_box_reg"],
        }, objects

    @torch.no_grad()
    def candidates(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> list[Candidates]:
        """Return the boxes and the scores of each proposal.

        Args:
            features: Level of the region branch → (N, C, H, W).
            proposals: From :meth:`propose`.

        Returns:
            For each image as many candidates as it has proposals.
        """
        levels = _full_precision(features)
        maps = [levels[name] for name in self.box_in_features]
        pooled = self.box_pooler(maps, [image.proposal_boxes for image in proposals])
        predictions = self.box_predictor(self.box_head(pooled))
        all_boxes = self.box_predictor.predict_boxes(predictions, proposals)
        all_scores = self.box_predictor.predict_probs(predictions, proposals)
        return [
            candidates_inside(
                boxes.view(len(boxes), boxes.shape[1] // 4, 4), scores[:, :-1], image.image_size
            )
            for boxes, scores, image in zip(all_boxes, all_scores, proposals, strict=True)
        ]


def _full_precision(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return maps in float32: pooling is not implemented in half precision on every device."""
    return {name: full_precision(x) for name, x in features.items()}
