"""The meta-architecture: wiring of backbone, flow graph, heads and fusion.

Shape legend: N images, C channels, H and W the size of the padded network input, K thing classes,
S stuff classes + 1.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import move_device_like
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from spatialflow.config.checks import check_config
from spatialflow.config.genotypes import genotype_of
from spatialflow.config.options import ATTENTION_SITES, STUFF_SOURCES
from spatialflow.modeling.backbone import FeaturePyramid
from spatialflow.modeling.flow_graph import FlowGraph, topology_from_config
from spatialflow.modeling.fusion import PanopticFusion
from spatialflow.modeling.heads import DenseBoxHead, ProposalMaskHead, StuffHead, resize_logits
from spatialflow.modeling.heads.attention import attention_channels, build_attention
from spatialflow.modeling.layers.packed_conv import pack_convolutions
from spatialflow.modeling.losses import LossNormalizer
from spatialflow.utils.errors import NonFiniteError
from spatialflow.utils.precision import amp_dtype, autocast


class PredictionMaps(NamedTuple):
    """Predictions at every position of a batch, before any box is selected.

    Attributes:
        anchors: Anchors of each level.
        class_logits: (N, A·K, H, W) of each level, A anchors per position.
        box_deltas: (N, A·4, H, W) of each level.
        mask_features: (N, C, H, W) of each level of the mask branch.
        stuff_logits: (N, S, H', W') at the common stride of the stuff head.
    """

    anchors: list[Boxes]
    class_logits: list[Tensor]
    box_deltas: list[Tensor]
    mask_features: list[Tensor]
    stuff_logits: Tensor


class FlowParts(NamedTuple):
    """The parts of the network that a genotype decides.

    Attributes:
        modules: Arguments of the network's constructor, among them ``flow_graph``.
        attention: Site of the stuff head, ``levels`` or ``merged`` → its attention block.
    """

    modules: dict[str, nn.Module]
    attention: dict[str, nn.Module]


@META_ARCH_REGISTRY.register()
class SpatialFlow(nn.Module):
    """Panoptic segmentation by four parallel branches joined by flows (arXiv 1910.08787)."""

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
        pixel_mean: list[float],
        pixel_std: list[float],
        stuff_from: str = "labels",
        inference_dtype: torch.dtype | None = None,
        input_format: str = "RGB",
    ) -> None:
        """Put the parts together.

        Args:
            backbone: Gives the pyramid that the flow graph runs on.
            flow_graph: Branches ``box``, ``cls``, ``stuff`` and ``mask``.
            box_head: On ``cls`` and ``box``.
            mask_head: On ``mask``.
            stuff_head: On ``stuff``.
            fusion: Of detections and stuff.
            pixel_mean: Of each channel, 0 to 255.
            pixel_std: Of each channel.
            stuff_from: What the fusion takes: ``labels`` at the network's scale, resized to the
                original size by nearest neighbour as in the reference, or the argmax of bilinear
                ``logits`` at the original size.
            inference_dtype: Of autocast outside of training; None for the caller's, if any.
            input_format: Channel order of the input images.
        """
        super().__init__()
        if stuff_from not in STUFF_SOURCES:
            raise ValueError(
                f"MODEL.SPATIALFLOW.STUFF_FROM: {stuff_from!r} given, {STUFF_SOURCES} expected"
            )
        self.backbone = backbone
        self.flow_graph = flow_graph
        self.box_head = box_head
        self.mask_head = mask_head
        self.stuff_head = stuff_head
        self.fusion = fusion
        self.stuff_from = stuff_from
        self.inference_dtype = inference_dtype
        self.input_format = input_format
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        pack_convolutions(self)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the parts that a config describes.

        Raises:
            ValueError: If a key has a value that is not allowed.
        """
        return network_parts(cfg, genotype_parts)

    pixel_mean: Tensor
    pixel_std: Tensor

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Run a batch, in Detectron2's format.

        Args:
            batched_inputs: For each image ``image`` (3, h, w) in the model's channel order;
                in training ``instances`` (``gt_boxes``, ``gt_classes``, ``gt_masks``) and
                ``sem_seg`` (h, w); at test time optionally ``height`` and ``width``, the size
                that results should have.

        Returns:
            In training ``{"loss_cls", "loss_box", "loss_mask", "loss_stuff"}``; else for each
            image ``instances``, ``sem_seg`` ((S, height, width) logits) and ``panoptic_seg``
            (ids (height, width) and ``segments_info``).

        Raises:
            NonFiniteError: If, at test time, an image holds NaN or infinity. In training it gives
                losses of NaN, which :class:`spatialflow.engine.StepTrainer` reports.
            ValueError: If there is no image, or one without pixels.
        """
        with self.precision():
            if self.training:
                return self.training_losses(batched_inputs)
            return self.inference(batched_inputs)

    def precision(self) -> AbstractContextManager[object]:
        """Return the autocast of inference; in training none, which is the trainer's."""
        return autocast(self.device, None if self.training else self.inference_dtype)

    def training_losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return the four losses of a batch; see :meth:`forward`."""
        images = self.preprocess_image(batched_inputs)
        maps = self.predict_maps(images)
        return self.losses(maps, self.propose(maps, images.image_sizes), batched_inputs)

    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the results of each image; see :meth:`forward`."""
        images = self.preprocess_image(batched_inputs)
        maps = self.predict_maps(images)
        detections = self.propose(maps, images.image_sizes)
        detections = self.mask_head(maps.mask_features, detections)
        stuff_logits = self.stuff_head.upsample(maps.stuff_logits)
        return [
            self.postprocess(image_detections, image_logits, size, item)
            for image_detections, image_logits, size, item in zip(
                detections, stuff_logits, images.image_sizes, batched_inputs, strict=True
            )
        ]

    def predict_maps(self, images: ImageList) -> PredictionMaps:
        """Run backbone, flow graph and the heads that predict at every position.

        Args:
            images: Normalised and padded images, as :meth:`preprocess_image` returns them.
        """
        branches = self.flow_graph(self.backbone(images.tensor))
        class_logits, box_deltas = self.box_head(
            [branches["cls"][level] for level in branches["box"]], list(branches["box"].values())
        )
        return PredictionMaps(
            self.box_head.anchor_generator(class_logits),
            class_logits,
            box_deltas,
            list(branches["mask"].values()),
            self.stuff_head(branches["stuff"]),
        )

    def propose(self, maps: PredictionMaps, image_sizes: list[tuple[int, int]]) -> list[Instances]:
        """Select the detections of each image, which in training are the mask head's proposals."""
        return self.box_head.inference(
            maps.anchors, maps.class_logits, maps.box_deltas, image_sizes
        )

    def losses(
        self,
        maps: PredictionMaps,
        proposals: list[Instances],
        batched_inputs: list[dict[str, Any]],
    ) -> dict[str, Tensor]:
        """Return the four losses, given the predictions and the mask head's proposals."""
        targets = [item["instances"].to(self.device) for item in batched_inputs]
        labels = [item["sem_seg"].to(self.device) for item in batched_inputs]
        return {
            **self.box_head.losses(maps.anchors, maps.class_logits, maps.box_deltas, targets),
            **self.mask_head(maps.mask_features, proposals, targets),
            **self.stuff_head.losses(maps.stuff_logits, labels),
        }

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise the images, and pad them to one size that the pyramid divides.

        Raises:
            NonFiniteError: As :meth:`forward`.
            ValueError: As :meth:`forward`.
        """
        if not batched_inputs:
            raise ValueError("a batch of one or more images expected, none given")
        for i, item in enumerate(batched_inputs):
            self._check_image(item, f"image {i} of the batch")
        images = [move_device_like(item["image"], self.pixel_mean) for item in batched_inputs]
        padded = ImageList.from_tensors(
            [(image - self.pixel_mean) / self.pixel_std for image in images],
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )
        # Every layer keeps the memory format of what comes in, and this one saves convolutions in
        # 16 bits and the argmax over classes much copying. Not in training: some backward pass of
        # PyTorch 2.14 on CPUs destroys memory with it, where maps have few pixels.
        if not self.training:
            padded.tensor = padded.tensor.contiguous(memory_format=torch.channels_last)
        return padded

    def _check_image(self, item: dict[str, Any], position: str) -> None:
        image, name = item["image"], item.get("file_name", position)
        if image.numel() == 0:
            raise ValueError(f"{name}: an image of shape {tuple(image.shape)} has no pixels")
        # Bytes are finite. In training the answer is not waited for.
        if not self.training and image.is_floating_point() and not image.isfinite().all():
            raise NonFiniteError(f"{name}: the image holds NaN or infinity")

    def postprocess(
        self,
        detections: Instances,
        stuff_logits: Tensor,
        image_size: tuple[int, int],
        item: dict[str, Any],
    ) -> dict[str, Any]:
        """Bring one image's results to the original size and fuse them."""
        size = (item.get("height", image_size[0]), item.get("width", image_size[1]))
        sem_seg = resize_logits(stuff_logits, image_size, size)
        if self.stuff_from == "labels":
            cropped = stuff_logits[:, : image_size[0], : image_size[1]].argmax(dim=0)
            labels = F.interpolate(cropped[None, None].float(), size, mode="nearest")[0, 0].long()
        else:
            labels = sem_seg.argmax(dim=0)
        instances = detector_postprocess(detections, *size)
        return {
            "instances": instances,
            "sem_seg": sem_seg,
            "panoptic_seg": self.fusion(instances, labels),
        }


def network_parts(cfg: CfgNode, build_flow_parts: Callable[[CfgNode], FlowParts]) -> dict[str, Any]:
    """Build the arguments of :class:`SpatialFlow` from a config.

    Args:
        cfg: A config with SpatialFlow's keys.
        build_flow_parts: Builds flow graph and attention from the config.

    Raises:
        ValueError: If a key has a value that is not allowed.
    """
    check_config(cfg)
    own, combine = cfg.MODEL.SPATIALFLOW, cfg.MODEL.PANOPTIC_FPN.COMBINE
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    normalizer = LossNormalizer(own.LOSS_NORMALIZER)
    modules, attention = build_flow_parts(cfg)
    if isinstance(backbone, FeaturePyramid):
        branches = topology_from_config(cfg).branches
        backbone.freeze_unread({level for branch in branches for level in branch.levels})
    return {
        **modules,
        "backbone": backbone,
        "box_head": DenseBoxHead(cfg, shapes, normalizer),
        "mask_head": ProposalMaskHead(cfg, shapes, normalizer),
        "stuff_head": StuffHead(cfg, shapes, normalizer, attention=attention),
        "fusion": PanopticFusion(
            score_threshold=combine.INSTANCES_CONFIDENCE_THRESH,
            overlap_threshold=combine.OVERLAP_THRESH,
            stuff_area_limit=combine.STUFF_AREA_LIMIT,
            box_fill=own.BOX_FILL.ENABLED,
            box_fill_threshold=own.BOX_FILL.THRESH,
        ),
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "stuff_from": own.STUFF_FROM,
        "inference_dtype": amp_dtype(cfg.TEST.AMP),
        "input_format": cfg.INPUT.FORMAT,
    }


def genotype_parts(cfg: CfgNode) -> FlowParts:
    """Build the flow graph and the attention of a config's genotype.

    Raises:
        ValueError: If there is no such genotype, or it cannot be built.
    """
    genotype = genotype_of(cfg)
    graph = FlowGraph.from_genotype(
        genotype,
        channels=cfg.MODEL.FPN.OUT_CHANNELS,
        topology=topology_from_config(cfg),
        norm=cfg.MODEL.RETINANET.NORM,
    )
    attention = {
        site.rpartition(".")[2]: build_attention(
            genotype.choices.get(site, "none"), attention_channels(cfg, site)
        )
        for site in ATTENTION_SITES
    }
    return FlowParts({"flow_graph": graph}, attention)
