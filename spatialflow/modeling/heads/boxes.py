"""Box head: classes and boxes of anchors as in RetinaNet, with the reference's assignment rules.

Shape legend: N images, C channels, H and W the size of a level, A anchors per position, R anchors
of all levels, K thing classes, M ground-truth boxes of an image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator, build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.structures import Boxes, Instances, pairwise_iou
from fvcore.nn import smooth_l1_loss
from torch import Tensor, nn

from spatialflow.modeling.heads.adaptive_matching import match_by
from spatialflow.modeling.heads.selection import BoxSelection, Candidates, candidates_inside
from spatialflow.modeling.losses import LossNormalizer, focal_loss
from spatialflow.utils.precision import full_precision

SHAPES_KEPT = 16


class DenseBoxHead(nn.Module):
    """Predict classes and boxes of anchors (RetinaNet, arXiv 1708.02002) and select detections.

    RetinaNet's convolutions before the two predictors are the cls and box branches of the graph.
    """

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
        assignment: str = "iou",
    ) -> None:
        """Build the predictors.

        Args:
            channels: C of the cls branch and of the box branch.
            num_classes: K, the number of thing classes.
            anchor_generator: Detectron2's generator, with A anchors on every level.
            box2box_transform: Encoding of boxes as deltas to anchors.
            anchor_matcher: IoU thresholds of positive and negative anchors, without low-quality
                matches, which :func:`match_by` adds by the reference's rule.
            selection: Thresholds and limits for the selection of detections.
            normalizer: Denominator of both losses, from the number of positive anchors.
            focal_alpha: α of the focal loss (arXiv 1708.02002, eq. 5).
            focal_gamma: γ of the focal loss (arXiv 1708.02002, eq. 5).
            prior_probability: Score of every class before training, π in arXiv 1708.02002.
            smooth_l1_beta: Error at which the box loss turns from quadratic to linear; 0 for L1.
            assignment: How anchors are assigned, ``iou`` or ``atss``, as :func:`match_by` has it.
        """
        super().__init__()
        self.num_classes = num_classes
        self.anchor_generator = anchor_generator
        self._anchors: dict[tuple[object, ...], list[Boxes]] = {}  # the last used one is the last
        self.box2box_transform = box2box_transform
        self.anchor_matcher = anchor_matcher
        self.selection = selection
        self.normalizer = normalizer
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.smooth_l1_beta = smooth_l1_beta
        self.assignment = assignment
        num_anchors = anchor_generator.num_cell_anchors[0]
        self.cls_score = nn.Conv2d(channels, num_anchors * num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, num_anchors * 4, 3, padding=1)
        initial_biases = (-math.log(1 / prior_probability - 1), 0.0)
        for predictor, bias in zip((self.cls_score, self.bbox_pred), initial_biases, strict=True):
            nn.init.normal_(predictor.weight, std=0.01)
            predictor.bias.data.fill_(bias)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec], normalizer: LossNormalizer
    ) -> dict[str, Any]:
        """Return the constructor's arguments for a config.

        Args:
            cfg: A config; ``MODEL.RETINANET``, ``MODEL.ANCHOR_GENERATOR`` and ``TEST`` are read.
            input_shape: Level name → channels and stride of the pyramid level.
            normalizer: Denominator of the losses.
        """
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
            "assignment": cfg.MODEL.SPATIALFLOW.ASSIGNMENT,
        }

    def forward(
        self, cls_features: list[Tensor], box_features: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Predict classes and boxes.

        Args:
            cls_features: Levels of the cls branch, each (N, C, H, W).
            box_features: Levels of the box branch, each (N, C, H, W).

        Returns:
            Class logits, one (N, A·K, H, W) per level, and box deltas, one (N, A·4, H, W) per
            level.
        """
        return (
            [self.cls_score(x) for x in cls_features],
            [self.bbox_pred(x) for x in box_features],
        )

    def anchors(self, maps: list[Tensor]) -> list[Boxes]:
        """Return the anchors of each level, H · W · A boxes, which are not to be changed.

        Those of the last shapes are kept, as making them takes a tenth of a GPU's time.

        Args:
            maps: One map per level, (N, any, H, W).
        """
        shape = (maps[0].device, *(x.shape[-2:] for x in maps))
        anchors = self._anchors.pop(shape, None) or self.anchor_generator(maps)
        self._anchors[shape] = anchors
        if len(self._anchors) > SHAPES_KEPT:
            self._anchors.pop(next(iter(self._anchors)))
        return anchors

    def losses(
        self,
        anchors: list[Boxes],
        logits: list[Tensor],
        deltas: list[Tensor],
        targets: list[Instances],
    ) -> dict[str, Tensor]:
        """Return the focal loss of classes and the L1 loss of deltas, per positive anchor.

        Args:
            anchors: Anchors of each level, H · W · A boxes.
            logits: Class logits, one (N, A·K, H, W) per level.
            deltas: Box deltas, one (N, A·4, H, W) per level.
            targets: Ground truth of each image, with ``gt_boxes`` and ``gt_classes``.

        Returns:
            ``loss_cls`` and ``loss_box``, scalars in float32.
        """
        all_deltas = full_precision(cat([permute_to_N_HWA_K(x, 4) for x in deltas], dim=1))
        boxes, levels = Boxes.cat(anchors), [len(level) for level in anchors]
        assigned = [self._assign(boxes, levels, image) for image in targets]
        classes = torch.stack([pair[0] for pair in assigned])  # (N, R)
        target_deltas = torch.stack([pair[1] for pair in assigned])  # (N, R, 4)

        positive = (classes >= 0) & (classes != self.num_classes)
        # The reference counts at least 1 per image.
        normalizer = self.normalizer(positive.sum(dim=1).clamp(min=1).sum())
        loss_cls = sum(
            self._focal(*pair) for pair in zip(logits, classes.split(levels, dim=1), strict=True)
        )
        # Others are compared with themselves, as choosing the positive ones is a wait for a GPU.
        target_deltas = torch.where(positive[..., None], target_deltas, all_deltas.detach())
        loss_box = smooth_l1_loss(
            all_deltas, target_deltas, beta=self.smooth_l1_beta, reduction="sum"
        )
        return {"loss_cls": loss_cls / normalizer, "loss_box": loss_box / normalizer}

    def _focal(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Return the summed focal loss of one level.

        Args:
            logits: Class logits of the level, (N, A·K, H, W).
            classes: Class of each of its anchors, (N, H·W·A); K background, -1 ignored.
        """
        count, _, height, width = logits.shape
        of_position = classes.view(count, height, width, -1).permute(0, 3, 1, 2)
        return focal_loss(
            logits.view(count, -1, self.num_classes, height, width),
            of_position[:, :, None],
            dim=2,
            alpha=self.focal_alpha,
            gamma=self.focal_gamma,
        )

    @torch.no_grad()
    def _assign(self, anchors: Boxes, levels: list[int], image: Instances) -> tuple[Tensor, Tensor]:
        """Return the target class (R,) and deltas (R, 4) of each anchor of one image.

        A class of K is background, -1 is ignored.
        """
        if len(image) == 0:
            background = torch.full(
                (len(anchors),), self.num_classes, dtype=torch.int64, device=anchors.device
            )
            return background, torch.zeros_like(anchors.tensor)
        matches, labels = match_by(
            self.assignment,
            image.gt_boxes,
            anchors,
            pairwise_iou(image.gt_boxes, anchors),
            matcher=self.anchor_matcher,
            levels=levels,
            anchors_per_position=self.anchor_generator.num_cell_anchors[0],
        )
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
        """Select detections by score and NMS per class, as the reference does.

        Keep the best anchors of each level by their best class, and clip their boxes to the image.
        Then run one NMS over all levels on every pair of box and class above the score threshold.

        Args:
            anchors: Anchors of each level, H · W · A boxes.
            logits: Class logits, one (N, A·K, H, W) per level.
            deltas: Box deltas, one (N, A·4, H, W) per level.
            image_sizes: (height, width) of each image without padding.

        Returns:
            For each image ``pred_boxes``, ``scores`` and ``pred_classes``, best score first, in
            pixels of the network's input.
        """
        each = zip(self.candidates(anchors, logits, deltas, image_sizes), image_sizes, strict=True)
        return [self.selection.select(candidates, size) for candidates, size in each]

    @torch.no_grad()
    def candidates(
        self,
        anchors: list[Boxes],
        logits: list[Tensor],
        deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Candidates]:
        """Return the boxes and scores of the best anchors of each level, of all images at once.

        Args:
            anchors: Anchors of each level, H · W · A boxes.
            logits: Class logits, one (N, A·K, H, W) per level.
            deltas: Box deltas, one (N, A·4, H, W) per level.
            image_sizes: (height, width) of each image without padding.

        Returns:
            For each image P candidates, one box for all classes.
        """
        kept = []
        for level_anchors, level_logits, level_deltas in zip(anchors, logits, deltas, strict=True):
            of_classes = permute_to_N_HWA_K(level_logits, self.num_classes)
            # The order of logits is the order of scores.
            best = of_classes.amax(dim=2).float()
            index = best.topk(min(self.selection.candidates, best.shape[1]), dim=1).indices
            # topk orders equal scores differently on each device, and NMS keeps that order.
            rows = index.sort(dim=1).values[..., None]  # (N, candidates of the level, 1)
            kept.append(
                (
                    level_anchors.tensor[rows[..., 0]],
                    of_classes.gather(1, rows.expand(-1, -1, self.num_classes)),
                    permute_to_N_HWA_K(level_deltas, 4).gather(1, rows.expand(-1, -1, 4)),
                )
            )
        # (N, P, 4), (N, P, K), (N, P, 4)
        bases, scores, offsets = (cat(parts, dim=1).float() for parts in zip(*kept, strict=True))
        boxes = self.box2box_transform.apply_deltas(offsets.flatten(0, 1), bases.flatten(0, 1))
        each = zip(boxes.view(*bases.shape[:2], 1, 4), scores.sigmoid(), image_sizes, strict=True)
        return [candidates_inside(*of_image) for of_image in each]
