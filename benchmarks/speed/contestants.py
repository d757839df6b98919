"""The networks that are compared: untrained, but with any wanted number of things.

All have an R50 and its pyramid. With random weights a detector finds nothing or as much as it may.
So its last layers are scaled, its score threshold is set where the wanted number passes, and its
fusion paints every detection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import get_cfg as detectron2_get_cfg
from detectron2.modeling import PanopticFPN, build_model
from torch import nn

from spatialflow import SpatialFlow
from spatialflow.config import get_cfg

Item = dict[str, Any]

PANOPTIC_FPN, PARALLEL, SPATIALFLOW = "Panoptic FPN", "parallel branches", "SpatialFlow"
REFINED = "refined SpatialFlow"
NAMES = (SPATIALFLOW, PARALLEL, REFINED, PANOPTIC_FPN)
# Contestant of SpatialFlow → its config, and its genotype.
CONFIGS = {
    SPATIALFLOW: ("coco/spatialflow_r50_20e.yaml", "spatialflow"),
    PARALLEL: ("coco/spatialflow_r50_20e.yaml", "parallel"),
    REFINED: ("coco/refined_r50_1x.yaml", "parallel"),
}
# Meta-architecture → layer → standard deviation of its output before the bias.
SCALES = {
    SpatialFlow: {
        "box_head.cls_score": 1.0,
        "box_head.bbox_pred": 0.3,
        "region_head.box_predictor.cls_score": 1.0,
        "region_head.box_predictor.bbox_pred": 1.0,
    },
    PanopticFPN: {
        "proposal_generator.rpn_head.objectness_logits": 1.0,
        "proposal_generator.rpn_head.anchor_deltas": 0.3,
        "roi_heads.box_predictor.cls_score": 1.0,
        "roi_heads.box_predictor.bbox_pred": 1.0,
    },
}


def build(name: str, opts: tuple[object, ...] = (), device: str = "cpu") -> nn.Module:
    """Build an untrained model in training mode.

    Args:
        name: One of :data:`NAMES`.
        opts: KEY VALUE pairs for the SpatialFlow networks.
        device: Device of the model.
    """
    torch.manual_seed(0)
    if name == PANOPTIC_FPN:
        cfg = detectron2_get_cfg()
        cfg.merge_from_file(str(Path(__file__).with_name("panoptic_fpn.yaml")))
        cfg.merge_from_list(["MODEL.WEIGHTS", "", "MODEL.DEVICE", device])
        return build_model(cfg)
    file, genotype = CONFIGS[name]
    keys = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", device, "MODEL.SPATIALFLOW.GENOTYPE", genotype]
    packed = ["MODEL.SPATIALFLOW.PACK_CONVOLUTIONS", True]
    return build_model(get_cfg(file, [*keys, *packed, *opts]))


@torch.no_grad()
def calibrated_models(
    item: Item,
    opts: tuple[object, ...] = (),
    names: tuple[str, ...] = NAMES,
    device: str = "cpu",
) -> dict[str, nn.Module]:
    """Build contestants in eval mode, with norms and last layers calibrated on an image.

    Args:
        item: Input of the model with the image.
        opts: KEY VALUE pairs for the SpatialFlow networks.
        names: Contestants to build.
        device: Device of the models.
    """
    models = {name: build(name, opts, device) for name in names}
    trunk = _calibrated_trunk(build(SPATIALFLOW, (), device), item)
    for model in models.values():
        model.eval().backbone.bottom_up.load_state_dict(trunk, strict=False)
        for layer, deviation in SCALES[type(model)].items():
            if getattr(model, layer.split(".")[0]) is not None:
                _scale(model, model.get_submodule(layer), deviation, item)
    return models


@torch.no_grad()
def set_detections(model: nn.Module, item: Item, count: int) -> None:
    """Set a calibrated model so that it detects and paints about ``count`` things."""
    paint_every_detection(model)
    search = _spatialflow_counter if isinstance(model, SpatialFlow) else _panoptic_fpn_counter
    set_threshold, detected = search(model, item, count)
    low, high = (1.0, 1.0) if count == 0 else (0.0, 1.0)
    while high - low > 1e-6:
        middle = (low + high) / 2
        set_threshold(middle)
        low, high = (middle, high) if detected() >= count else (low, middle)
    set_threshold(low)


def paint_every_detection(model: Any) -> None:
    """Set the thresholds of a model's fusion so that every detection becomes a segment.

    Those of Panoptic FPN would drop most detections of an untrained model, and their cost.
    """
    if isinstance(model, SpatialFlow):
        model.fusion = dataclasses.replace(model.fusion, score_threshold=0.0, overlap_threshold=1.0)
    else:
        model.combine_instances_score_thresh = 0.0
        model.combine_overlap_thresh = 1.0


def painted_things(output: Item) -> int:
    """Return the number of things in the panoptic map of an image."""
    _, segments = output["panoptic_seg"]
    return sum(segment["isthing"] for segment in segments)


def _spatialflow_counter(
    model: Any, item: Item, count: int
) -> tuple[Callable[[float], None], Callable[[], int]]:
    head = model.region_head or model.box_head
    images = model.preprocess_image([item])
    maps = model.predict_maps(images)

    def set_threshold(value: float) -> None:
        head.selection = dataclasses.replace(
            head.selection, score_threshold=value, detections=max(count, 1)
        )

    set_threshold(0.0)
    (candidates,) = model.candidates(maps, images.image_sizes)

    def detected() -> int:
        # NMS would be slow on so many pairs, and with random scores enough of them survive.
        if int((candidates.scores > head.selection.score_threshold).sum()) > 20 * count:
            return count
        return len(head.selection.select(candidates, images.image_sizes[0]))

    return set_threshold, detected


def _panoptic_fpn_counter(
    model: Any, item: Item, count: int
) -> tuple[Callable[[float], None], Callable[[], int]]:
    heads = model.roi_heads
    images = model.preprocess_image([item])
    features = model.backbone(images.tensor)
    proposals, _ = model.proposal_generator(images, features)
    pooled = heads.box_pooler(
        [features[name] for name in heads.box_in_features], [x.proposal_boxes for x in proposals]
    )
    predictions = heads.box_predictor(heads.box_head(pooled))
    heads.box_predictor.test_topk_per_image = max(count, 1)

    def set_threshold(value: float) -> None:
        heads.box_predictor.test_score_thresh = value

    def detected() -> int:
        return len(heads.box_predictor.inference(predictions, proposals)[0][0])

    return set_threshold, detected


def _calibrated_trunk(model: Any, item: Item) -> dict[str, torch.Tensor]:
    """Return a trunk's weights with the norm statistics of an image.

    With others, activations of a deep random network explode.
    """
    trunk = model.backbone.bottom_up.train()
    norms = [m for m in trunk.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    trunk(model.preprocess_image([item]).tensor)
    state: dict[str, torch.Tensor] = trunk.state_dict()
    return state


def _scale(model: nn.Module, layer: nn.Module, deviation: float, item: Item) -> None:
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, output: seen.append(output.flatten()))
    if isinstance(model, SpatialFlow):
        # The whole model would run NMS on all pairs, as there is no threshold yet.
        images = model.preprocess_image([item])
        model.candidates(model.predict_maps(images), images.image_sizes)
    else:
        model([item])
    handle.remove()
    layer.weight *= deviation / torch.cat(seen).std()
