"""Dense boxes and classes in the manner of RetinaNet, with the reference's assignment rules.

Shape legend: N images, C channels, A anchors per location, R anchors of all levels, K thing
classes, M ground-truth boxes of an image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from detectron2.config import configurable
from detectron2.layers import batched_nms, cat
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator, build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.structures import Boxes, Instances, pairwise_iou
from fvcore.nn import sigmoid_focal_loss, smooth_l1_loss
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spatialflow.modeling.losses import LossNormalizer
from spatialflow.utils.precision import full_precision


@dataclass(frozen=True, slots=True)
class BoxSelection:
    """How raw predictions become detections.

    Attributes:
        score_threshold: A (box, class) pair needs a higher score.
        candidates: Anchors kept per level before NMS, ranked by their best class.
        nms_threshold: Boxes of one class that overlap more (IoU) are suppressed.
        detections: Boxes kept per image.
    """

    score_threshold: float
    candidates: int
    nms_threshold: float
    detections: int


class DenseBoxHead(nn.Module):
    """Predictors on the cls and box branches, their losses, and detections from them."""

    @configurable
    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        anchor_generator: DefaultAnchorGenerator,
        box2box_transform: Box2BoxTransform,
        anchor_matcher: Matcher,
        selection: BoxSelection,
        normalizer: LossNormalizer,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        prior_probability: float = 0.01,
        smooth_l1_beta: float = 0.0,
    ) -> None:
        """Build the predictors.

        Args:
            channels: C of both branches.
            num_classes: K.
            anchor_generator: Detectron2's; the same number of anchors on every level.
            box2box_transform: Coding of boxes against anchors.
            anchor_matcher: IoU thresholds; without low-quality matches, which
                :func:`match_anchors` adds in the reference's way.
            selection: How detections are chosen.
            normalizer: Of both losses, given the number of positive anchors.
            focal_alpha: α of the focal loss (Lin et al. 2017, eq. 5).
            focal_gamma: γ of the focal loss.
            prior_probability: Score of every class at the start.
            smooth_l1_beta: Where the box loss turns from quadratic to linear; 0 is plain L1.
        """
        super().__init__()
        self.num_classes = num_classes
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        self.anchor_matcher = anchor_matcher
        self.selection = selection
        self.normalizer = normalizer
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.smooth_l1_beta = smooth_l1_beta
        num_anchors = anchor_generator.num_cell_anchors[0]
        self.cls_score = nn.Conv2d(channels, num_anchors * num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, num_anchors * 4, 3, padding=1)
        initial_biases = (-math.log(1 / prior_probability - 1), 0.0)
        for predictor, bias in zip((self.cls_score, self.bbox_pred), initial_biases, strict=True):
            nn.init.normal_(predictor.weight, std=0.01)
            predictor.bias.data.fill_(bias)

    @classmethod
    def from_config(cls, cfg, input_shape, normalizer: LossNormalizer) -> dict:  # noqa: ANN001
        """Read ``MODEL.RETINANET``, ``MODEL.ANCHOR_GENERATOR`` and ``TEST``."""
        keys = cfg.MODEL.RETINANET
        shapes = [input_shape[level] for level in keys.IN_FEATURES]
        return {
            "channels": shapes[0].channels,
            "num_classes": keys.NUM_CLASSES,
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "box2box_transform": Box2BoxTransform(weights=keys.BBOX_REG_WEIGHTS),
            "anchor_matcher": Matcher(keys.IOU_THRESHOLDS, keys.IOU_LABELS),
            "selection": BoxSelection(
                score_threshold=keys.SCORE_THRESH_TEST,
                candidates=keys.TOPK_CANDIDATES_TEST,
                nms_threshold=keys.NMS_THRESH_TEST,
                detections=cfg.TEST.DETECTIONS_PER_IMAGE,
            ),
            "normalizer": normalizer,
            "focal_alpha": keys.FOCAL_LOSS_ALPHA,
            "focal_gamma": keys.FOCAL_LOSS_GAMMA,
            "prior_probability": keys.PRIOR_PROB,
            "smooth_l1_beta": keys.SMOOTH_L1_LOSS_BETA,
        }

    def forward(
        self, cls_features: list[Tensor], box_features: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Predict, level by level, from two lists of (N, C, H, W).

        Returns:
            Class logits, (N, A·K, H, W) a level, and box deltas, (N, A·4, H, W) a level.
        """
        return (
            [self.cls_score(x) for x in cls_features],
            [self.bbox_pred(x) for x in box_features],
        )

    def losses(
        self,
        anchors: list[Boxes],
        logits: list[Tensor],
        deltas: list[Tensor],
        targets: list[Instances],
    ) -> dict[str, Tensor]:
        """Focal loss of the classes and L1 loss of the deltas, both over positive anchors' count.

        Args:
            anchors: Of each level.
            logits: (N, A·K, H, W) a level.
            deltas: (N, A·4, H, W) a level.
            targets: Ground truth of each image: ``gt_boxes`` and ``gt_classes``.

        Returns:
            ``loss_cls`` and ``loss_box``, scalars in float32.
        """
        all_deltas = full_precision(cat([permute_to_N_HWA_K(x, 4) for x in deltas], dim=1))
        boxes = Boxes.cat(anchors)
        assigned = [self._assign(boxes, image) for image in targets]
        classes = torch.stack([pair[0] for pair in assigned])  # (N, R)
        goals = torch.stack([pair[1] for pair in assigned])  # (N, R, 4)

        positive = (classes >= 0) & (classes != self.num_classes)
        # At least 1 an image, as the reference counts.
        normalizer = self.normalizer(positive.sum(dim=1).clamp(min=1).sum())
        level_classes = classes.split([len(level) for level in anchors], dim=1)
        # What its many small steps keep for the backward pass is more than the network's own, so
        # it is computed anew there.
        loss_cls = sum(
            checkpoint(self._focal, *pair, use_reentrant=False, preserve_rng_state=False)
            for pair in zip(logits, level_classes, strict=True)
        )
        loss_box = smooth_l1_loss(
            all_deltas[positive], goals[positive], beta=self.smooth_l1_beta, reduction="sum"
        )
        return {"loss_cls": loss_cls / normalizer, "loss_box": loss_box / normalizer}

    def _focal(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Return the sum over a level's anchors, of logits (N, A·K, H, W) and classes (N, R)."""
        valid = classes >= 0
        logits = full_precision(permute_to_N_HWA_K(logits, self.num_classes))[valid]
        one_hot = classes[valid][:, None] == torch.arange(self.num_classes, device=logits.device)
        return sigmoid_focal_loss(
            logits,
            one_hot.to(logits),
            alpha=self.focal_alpha,
            gamma=self.focal_gamma,
            reduction="sum",
        )

    @torch.no_grad()
    def _assign(self, anchors: Boxes, image: Instances) -> tuple[Tensor, Tensor]:
        """Return each anchor's class (K background, -1 ignored) and box deltas, (R,) and (R, 4)."""
        if len(image) == 0:
            background = torch.full(
                (len(anchors),), self.num_classes, dtype=torch.int64, device=anchors.device
            )
            return background, torch.zeros_like(anchors.tensor)
        matches, labels = match_anchors(pairwise_iou(image.gt_boxes, anchors), self.anchor_matcher)
        classes = image.gt_classes[matches]
        classes[labels == 0] = self.num_classes
        classes[labels == -1] = -1
        deltas = self.box2box_transform.get_deltas(anchors.tensor, image.gt_boxes.tensor[matches])
        return classes, deltas

    @torch.no_grad()
    def inference(
        self,
        anchors: list[Boxes],
        logits: list[Tensor],
        deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Choose detections by score and class-wise NMS, as the reference does.

        The best anchors of each level are ranked by their best class; all their (box, class) pairs
        above the threshold enter one NMS over levels, after clipping to the image.

        Args:
            anchors: Of each level.
            logits: (N, A·K, H, W) a level.
            deltas: (N, A·4, H, W) a level.
            image_sizes: (height, width) of each image without padding.

        Returns:
            For each image ``pred_boxes``, ``scores`` and ``pred_classes``, best score first, at
            the scale of the network's input.
        """
        found = self.candidates(anchors, logits, deltas, image_sizes)
        return [
            self.select(boxes, scores, size)
            for (boxes, scores), size in zip(found, image_sizes, strict=True)
        ]

    @torch.no_grad()
    def candidates(
        self,
        anchors: list[Boxes],
        logits: list[Tensor],
        deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[tuple[Boxes, Tensor]]:
        """Return what detections are chosen from: the best anchors of each level.

        Args:
            anchors: Of each level.
            logits: (N, A·K, H, W) a level.
            deltas: (N, A·4, H, W) a level.
            image_sizes: (height, width) of each image without padding.

        Returns:
            For each image R boxes, clipped to it, and their scores (R, K).
        """
        level_scores = [permute_to_N_HWA_K(x, self.num_classes).float().sigmoid() for x in logits]
        level_deltas = [permute_to_N_HWA_K(x, 4).float() for x in deltas]
        return [
            self._candidates(
                anchors,
                [scores[i] for scores in level_scores],
                [level[i] for level in level_deltas],
                size,
            )
            for i, size in enumerate(image_sizes)
        ]

    def _candidates(
        self,
        anchors: list[Boxes],
        level_scores: list[Tensor],
        level_deltas: list[Tensor],
        image_size: tuple[int, int],
    ) -> tuple[Boxes, Tensor]:
        kept_boxes, kept_scores = [], []
        for level_anchors, scores, deltas in zip(anchors, level_scores, level_deltas, strict=True):
            best = scores.amax(dim=1)
            candidates = best.topk(min(self.selection.candidates, len(best))).indices
            kept_scores.append(scores[candidates])
            kept_boxes.append(
                self.box2box_transform.apply_deltas(
                    deltas[candidates], level_anchors.tensor[candidates]
                )
            )
        boxes, scores = Boxes(cat(kept_boxes)), cat(kept_scores)
        # A model that diverges is the trainer's to report; clip() would fail an assertion first.
        finite = boxes.tensor.isfinite().all(dim=1)
        boxes, scores = boxes[finite], scores[finite]
        boxes.clip(image_size)
        return boxes, scores

    @torch.no_grad()
    def select(self, boxes: Boxes, scores: Tensor, image_size: tuple[int, int]) -> Instances:
        """Choose detections from candidates by score and class-wise NMS.

        Args:
            boxes: R candidates.
            scores: (R, K).
            image_size: (height, width) of the image that they are of.
        """
        index, classes = (scores > self.selection.score_threshold).nonzero(as_tuple=True)
        pair_scores = scores[index, classes]
        keep = batched_nms(boxes.tensor[index], pair_scores, classes, self.selection.nms_threshold)[
            : self.selection.detections
        ]
        return Instances(
            image_size,
            pred_boxes=boxes[index[keep]],
            scores=pair_scores[keep],
            pred_classes=classes[keep],
        )


def match_anchors(iou: Tensor, matcher: Matcher) -> tuple[Tensor, Tensor]:
    """Assign anchors to ground truth by IoU; each ground truth also takes its best anchors.

    Detectron2's own low-quality matches only turn an anchor's label; the reference reassigns the
    anchor to the ground truth whose best it is (the last one, where several claim it). A ground
    truth that overlaps no anchor at all takes none.

    Args:
        iou: (M, R), M at least 1.
        matcher: Thresholds, without low-quality matches.

    Returns:
        Index of the matched ground truth and label (1 positive, 0 negative, -1 ignored), both (R,).
    """
    matches, labels = matcher(iou)
    best = iou.amax(dim=1, keepdim=True)  # (M, 1)
    claims = (iou == best) & (best > 0)
    order = torch.arange(1, len(iou) + 1, device=iou.device)[:, None]
    last_claim = (claims * order).amax(dim=0)  # (R,), 0 where nobody claims
    claimed = last_claim > 0
    matches = torch.where(claimed, last_claim - 1, matches)
    labels = torch.where(claimed, torch.ones_like(labels), labels)
    return matches, labels
