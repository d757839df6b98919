"""The meta-architecture: backbone, flow graph, heads and fusion, wired.

Shape legend: N images, h and w the size of an image before padding, C channels, H and W the size of
a map, A anchors per position, K thing classes, S stuff classes + 1 (class 0 is "things").
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from spatialflow.config.options import STUFF_SOURCES
from spatialflow.modeling.build import genotype_parts, network_parts
from spatialflow.modeling.flow_graph import FlowGraph
from spatialflow.modeling.fusion import PanopticFusion
from spatialflow.modeling.heads import (
    BoxSelection,
    Candidates,
    DenseBoxHead,
    ProposalMaskHead,
    RegionHead,
    StuffHead,
    detections_at_size,
    resize_logits,
)
from spatialflow.modeling.image_batch import check_images, of_one_size
from spatialflow.modeling.layers.residual import PyramidResidual
from spatialflow.utils.errors import ConfigError
from spatialflow.utils.precision import autocast


class PredictionMaps(NamedTuple):
    """Predictions at every position of a batch, before boxes are selected.

    Attributes:
        anchors: The anchors of each level of the box branch, H · W · A boxes per level.
        class_logits: One map per level of the cls branch, (N, A·K, H, W).
        box_deltas: One map per level of the box branch, (N, A·4, H, W).
        mask_features: One map per level of the mask branch, (N, C, H, W).
        region_features: Level of the region branch → (N, C, H, W); empty without a region head.
        stuff_logits: Stuff logits (N, S, H, W) at the common stride of the stuff head.
    """

    anchors: list[Boxes]
    class_logits: list[Tensor]
    box_deltas: list[Tensor]
    mask_features: list[Tensor]
    stuff_logits: Tensor
    region_features: dict[str, Tensor]


@META_ARCH_REGISTRY.register()
class SpatialFlow(nn.Module):
    """Panoptic segmentation with parallel branches, connected by flows (arXiv 1910.08787).

    Inference runs in this order: :meth:`preprocess_image`, :meth:`predict_maps`, :meth:`detect`,
    the mask head on the detections, :meth:`postprocess`. Training runs the first three steps in the
    same order, then :meth:`losses`. With a region head the dense boxes are proposals, from which
    :meth:`detect` makes the detections.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        flow_graph: FlowGraph,
        box_head: DenseBoxHead,
        mask_head: ProposalMaskHead,
        stuff_head: StuffHead,
        fusion: PanopticFusion,
        region_head: RegionHead | None = None,
        residual: PyramidResidual | None = None,
        pixel_mean: list[float],
        pixel_std: list[float],
        stuff_from: str = "labels",
        inference_dtype: torch.dtype | None = None,
        input_format: str = "RGB",
    ) -> None:
        """Keep the parts, which the constructor does not change.

        Args:
            backbone: Computes the pyramid, (N, 3, H, W) → level name → (N, C, H, W).
            flow_graph: Runs the branches ``box``, ``cls``, ``stuff`` and ``mask`` on the pyramid.
            box_head: Predicts classes from the cls branch and boxes from the box branch.
            mask_head: Predicts the masks of detections from the mask branch.
            stuff_head: Predicts stuff logits from the stuff branch.
            fusion: Merges detections and stuff labels into one panoptic map.
            region_head: Second box stage, from the region branch; None for dense boxes alone.
            residual: Adds the pyramid to outputs of branches; None for the outputs alone.
            pixel_mean: Mean of each image channel on the scale 0 to 255, subtracted first.
            pixel_std: Standard deviation of each image channel, by which pixels are divided.
            stuff_from: Source of the stuff labels for the fusion. ``labels`` takes the argmax at
                the network's scale and resizes it by nearest neighbour, as the reference does.
                ``logits`` takes the argmax of logits, resized to the original size bilinearly.
            inference_dtype: Autocast type outside of training; None for the caller's autocast.
            input_format: Channel order of the input images, for Detectron2's visualisation.

        Raises:
            ValueError: If ``stuff_from`` has another value.
        """
        super().__init__()
        if stuff_from not in STUFF_SOURCES:
            raise ConfigError(
                f"MODEL.SPATIALFLOW.STUFF_FROM: {stuff_from!r} given, {STUFF_SOURCES} expected"
            )
        self.backbone = backbone
        self.flow_graph = flow_graph
        self.box_head = box_head
        self.mask_head = mask_head
        self.stuff_head = stuff_head
        self.fusion = fusion
        self.region_head = region_head
        self.residual = residual
        self.stuff_from = stuff_from
        self.inference_dtype = inference_dtype
        self.input_format = input_format
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the constructor's arguments from a config.

        Raises:
            ValueError: If a key has a value that is not allowed.
        """
        return network_parts(cfg, genotype_parts)

    pixel_mean: Tensor
    pixel_std: Tensor

    @property
    def device(self) -> torch.device:
        """Device of the model's parameters."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Run a batch, in Detectron2's format.

        Args:
            batched_inputs: One dictionary per image with ``image``, (3, h, w) in the model's
                channel order. Training also needs ``instances`` (``gt_boxes``, ``gt_classes``,
                ``gt_masks``) and ``sem_seg``, stuff labels (h, w). Inference also reads ``height``
                and ``width``, the size of the results in pixels; (h, w) where they are absent.

        Returns:
            In training, a dictionary of the scalars ``loss_cls``, ``loss_box``, ``loss_mask`` and
            ``loss_stuff``, and with a region head ``loss_region_cls`` and ``loss_region_box``. In
            inference, one dictionary per image with ``instances``, ``sem_seg``
            (logits (S, height, width)) and ``panoptic_seg`` (segment ids (height, width) and
            Detectron2's ``segments_info``).

        Raises:
            NonFiniteError: If an image contains NaN or infinity at inference. In training such an
                image leads to losses of NaN, which :class:`spatialflow.engine.StepTrainer` reports.
            ValueError: If the batch is empty, or an image has no pixels.
        """
        with self.precision():
            if self.training:
                return self.training_losses(batched_inputs)
            return self.inference(batched_inputs)

    def precision(self) -> AbstractContextManager[object]:
        """Return the autocast context of inference; in training the trainer sets its own."""
        return autocast(self.device, None if self.training else self.inference_dtype)

    def training_losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the losses of a batch, as :meth:`forward` does in training."""
        images = self.preprocess_image(batched_inputs)
        maps = self.predict_maps(images)
        return self.losses(maps, self.propose(maps, images.image_sizes), batched_inputs)

    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the results of each image, as :meth:`forward` does at inference.

        Images of one size after padding run together, others one size after another. Group norm
        sees the padding: beside a larger image, an image would get another result.
        """
        check_images(batched_inputs)
        results: dict[int, dict[str, Any]] = {}
        for indices in of_one_size(batched_inputs, self.backbone.size_divisibility):
            found = self._inference_of_one_size([batched_inputs[i] for i in indices])
            results.update(zip(indices, found, strict=True))
        return [results[i] for i in range(len(batched_inputs))]

    def _inference_of_one_size(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        images = self._padded(batched_inputs)
        maps = self.predict_maps(images)
        detections = self.detect(maps, images.image_sizes)
        detections = self.mask_head(maps.mask_features, detections)
        stuff_logits = self.stuff_head.upsample(maps.stuff_logits)
        return [
            self.postprocess(image_detections, image_logits, size, item)
            for image_detections, image_logits, size, item in zip(
                detections, stuff_logits, images.image_sizes, batched_inputs, strict=True
            )
        ]

    def predict_maps(self, images: ImageList) -> PredictionMaps:
        """Run backbone, flow graph, box predictors and stuff head.

        Args:
            images: Normalised and padded images (N, 3, H, W), from :meth:`preprocess_image`.
        """
        pyramid = self.backbone(images.tensor)
        branches = self.flow_graph(pyramid)
        if self.residual is not None:
            branches = self.residual(branches, pyramid)
        class_logits, box_deltas = self.box_head(
            [branches["cls"][level] for level in branches["box"]], list(branches["box"].values())
        )
        return PredictionMaps(
            self.box_head.anchors(class_logits),
            class_logits,
            box_deltas,
            list(branches["mask"].values()),
            self.stuff_head(branches["stuff"]),
            branches.get("region", {}),
        )

    def propose(self, maps: PredictionMaps, image_sizes: list[tuple[int, int]]) -> list[Instances]:
        """Select the dense boxes of each image: proposals of the region head or of the mask head.

        Args:
            maps: Predictions from :meth:`predict_maps`.
            image_sizes: (h, w) of each image.

        Returns:
            For each image, best score first and in pixels of the network's input: ``pred_boxes``,
            ``scores`` and ``pred_classes``, or with a region head ``proposal_boxes`` and
            ``objectness_logits``.
        """
        if self.region_head is None:
            return self.detect(maps, image_sizes)
        return self.region_head.propose(self._dense_candidates(maps, image_sizes), image_sizes)

    def candidates(
        self, maps: PredictionMaps, image_sizes: list[tuple[int, int]]
    ) -> list[Candidates]:
        """Return what :meth:`detect` selects from, in pixels of the network's input.

        Args:
            maps: Predictions from :meth:`predict_maps`.
            image_sizes: (h, w) of each image.
        """
        if self.region_head is None:
            return self._dense_candidates(maps, image_sizes)
        return self.region_head.candidates(maps.region_features, self.propose(maps, image_sizes))

    @property
    def selection(self) -> BoxSelection:
        """Thresholds and limits by which detections are selected from :meth:`candidates`."""
        return (self.region_head or self.box_head).selection

    def detect(self, maps: PredictionMaps, image_sizes: list[tuple[int, int]]) -> list[Instances]:
        """Return the detections of each image: ``pred_boxes``, ``scores`` and ``pred_classes``.

        Args:
            maps: Predictions from :meth:`predict_maps`.
            image_sizes: (h, w) of each image.
        """
        each = zip(self.candidates(maps, image_sizes), image_sizes, strict=True)
        return [self.selection.select(candidates, size) for candidates, size in each]

    def _dense_candidates(
        self, maps: PredictionMaps, image_sizes: list[tuple[int, int]]
    ) -> list[Candidates]:
        return self.box_head.candidates(
            maps.anchors, maps.class_logits, maps.box_deltas, image_sizes
        )

    def losses(
        self,
        maps: PredictionMaps,
        proposals: list[Instances],
        batched_inputs: list[dict[str, Any]],
    ) -> dict[str, Tensor]:
        """Return the losses: four, and two of the region head where there is one.

        Args:
            maps: Predictions from :meth:`predict_maps`.
            proposals: Boxes of each image, from :meth:`propose`.
            batched_inputs: The batch with its ground truth, as for :meth:`forward`.
        """
        targets = [item["instances"].to(self.device) for item in batched_inputs]
        labels = [item["sem_seg"].to(self.device) for item in batched_inputs]
        if self.region_head is None:
            of_objects = self.mask_head(maps.mask_features, proposals, targets)
        else:
            of_objects, objects = self.region_head.losses(maps.region_features, proposals, targets)
            of_objects |= self.mask_head.losses(maps.mask_features, objects)
        return {
            **self.box_head.losses(maps.anchors, maps.class_logits, maps.box_deltas, targets),
            **of_objects,
            **self.stuff_head.losses(maps.stuff_logits, labels),
        }

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise the images and pad them to one size, a multiple of the largest stride.

        Args:
            batched_inputs: The batch, as for :meth:`forward`.

        Returns:
            Detectron2's ``ImageList``: ``tensor`` (N, 3, H, W), and ``image_sizes`` (h, w).

        Raises:
            NonFiniteError: If an image contains NaN or infinity at inference.
            ValueError: If the batch is empty, or an image has no pixels.
        """
        check_images(batched_inputs, finite=not self.training)
        return self._padded(batched_inputs)

    def _padded(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        # Also of images in float64, as Detectron2 reads the format YUV-BT.601.
        images = [item["image"].to(self.pixel_mean, non_blocking=True) for item in batched_inputs]
        padded = ImageList.from_tensors(
            [(image - self.pixel_mean) / self.pixel_std for image in images],
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )
        # Every layer keeps the memory format of its input. This format saves copies in bfloat16
        # convolutions and in the argmax over classes. Training leaves it out: on CPUs a backward
        # pass of PyTorch 2.14 destroys memory with it where maps have few pixels.
        if not self.training:
            padded.tensor = padded.tensor.contiguous(memory_format=torch.channels_last)
        return padded

    def postprocess(
        self,
        detections: Instances,
        stuff_logits: Tensor,
        image_size: tuple[int, int],
        item: dict[str, Any],
    ) -> dict[str, Any]:
        """Resize one image's results to the original size and fuse them.

        Args:
            detections: Detections with masks, in pixels of the network's input.
            stuff_logits: (S, H, W) at the size of the padded input.
            image_size: (h, w) of the image.
            item: The image's dictionary, whose ``height`` and ``width`` give the original size.

        Returns:
            ``instances``, ``sem_seg`` and ``panoptic_seg``, as :meth:`forward` returns them.
        """
        size = (item.get("height", image_size[0]), item.get("width", image_size[1]))
        sem_seg = resize_logits(stuff_logits, image_size, size)
        if self.stuff_from == "labels":
            cropped = stuff_logits[:, : image_size[0], : image_size[1]].argmax(dim=0)
            labels = F.interpolate(cropped[None, None].float(), size, mode="nearest")[0, 0].long()
        else:
            labels = sem_seg.argmax(dim=0)
        instances = detections_at_size(detections, size)
        return {
            "instances": instances,
            "sem_seg": sem_seg,
            "panoptic_seg": self.fusion(instances, labels),
        }
