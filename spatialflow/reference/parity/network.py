"""Compare the network's maps, detections and final masks.

N images, A anchors per location, S stuff classes + 1, M detections, H and W the size of a map.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from spatialflow.reference.conversion import ReferenceLayout, anchor_order, stuff_order
from spatialflow.reference.parity.fixture import Fixture
from spatialflow.reference.parity.table import (
    Row,
    Tolerances,
    at_least,
    at_most,
    equal,
    max_difference,
)


def to_reference_anchors(values: Tensor, layout: ReferenceLayout) -> Tensor:
    """Bring channels (N, A * n, H, W) from Detectron2's anchor order into the authors'."""
    order = anchor_order(layout.num_sizes, layout.num_ratios)
    inverse = torch.tensor(np.argsort(order))
    return values.unflatten(1, (len(order), -1)).index_select(1, inverse).flatten(1, 2)


def to_reference_stuff(values: Tensor, layout: ReferenceLayout) -> Tensor:
    """Bring stuff channels (N, S, H, W) into the authors' class order."""
    order = stuff_order(values.shape[1], layout.things_other_index)
    return values[:, torch.tensor(np.argsort(order))]


@torch.no_grad()
def check_network(
    model: nn.Module, fixture: Fixture, layout: ReferenceLayout, limits: Tolerances
) -> list[Row]:
    """Compare all outputs from the image to the detections, at the scale of the network.

    Args:
        model: Model with the converted weights.
        fixture: Values of the authors' code.
        layout: Orders of the channels in the authors' box and stuff predictors.
        limits: Tolerances.
    """
    model.eval()
    image = torch.from_numpy(fixture.take("image_rgb"))
    images = model.preprocess_image([{"image": image}])
    features = model.backbone(images.tensor)
    branches = model.flow_graph(features)
    levels = list(branches["box"])
    logits, deltas = model.box_head(list(branches["cls"].values()), list(branches["box"].values()))
    stuff_logits = model.stuff_head.upsample(model.stuff_head(branches["stuff"]))
    stuff_logits = to_reference_stuff(stuff_logits, layout)
    outputs = {
        "fpn": features,
        "cls_logits": _by_level(levels, logits, layout),
        "box_deltas": _by_level(levels, deltas, layout),
        "stuff_features": branches["stuff"],
        "mask_features": branches["mask"],
    }
    rows = [row for name, maps in outputs.items() for row in _map_rows(fixture, name, maps, limits)]
    rows.append(max_difference(fixture, "stuff_logits", stuff_logits.numpy(), limits.maps))

    anchors = model.box_head.anchor_generator([features[level] for level in levels])
    (detections,) = model.box_head.inference(anchors, logits, deltas, images.image_sizes)
    mask_levels = list(branches["mask"].values())
    mask_logits = model.mask_head.fcn.layers(
        model.mask_head.pooler(mask_levels, [detections.pred_boxes])
    )
    rows += _detection_rows(fixture, detections, mask_logits, limits)

    labels = stuff_logits[0].argmax(dim=0)[: image.shape[1], : image.shape[2]].numpy()
    agreement = (labels == fixture.take("stuff_labels_network_scale")).mean()
    rows.append(
        at_least("stuff_labels_network_scale", agreement, limits.stuff, "share of equal pixels")
    )
    return rows


@torch.no_grad()
def check_final(model: nn.Module, fixture: Fixture, limits: Tolerances) -> list[Row]:
    """Compare the model's detections and masks at the size of the original image.

    Args:
        model: Model with the converted weights.
        fixture: Values of the authors' code.
        limits: Tolerances.
    """
    model.eval()
    height, width = (int(value) for value in fixture.take("final.size"))
    image = torch.from_numpy(fixture.take("image_rgb"))
    (output,) = model([{"image": image, "height": height, "width": width}])
    instances: Instances = output["instances"]
    rows, pairs = _match_rows(fixture, "final", "final.boxes", instances, limits)
    packed = fixture.take("final.masks_packed")
    expected = np.unpackbits(packed, axis=1, count=height * width).astype(bool)
    ours = instances.pred_masks.numpy().reshape(len(instances), -1)
    overlap = [mask_iou(ours[a], expected[b]) for a, b in pairs]
    smallest = min(overlap, default=1.0) if len(pairs) == len(expected) else 0.0
    return [*rows, at_least("final.masks_packed", smallest, limits.mask_iou, "smallest IoU")]


def mask_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Return the intersection over union of two boolean masks; 1 if both are empty."""
    union = np.logical_or(first, second).sum()
    return float(np.logical_and(first, second).sum() / union) if union else 1.0


def match_detections(
    ours: tuple[np.ndarray, np.ndarray, np.ndarray],
    theirs: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> list[tuple[int, int]]:
    """Match detections of equal labels one to one, the closest first.

    Args:
        ours: Our boxes (M, 4), scores (M,) and labels (M,).
        theirs: The authors' boxes (M', 4), scores (M',) and labels (M',).

    Returns:
        Pairs of indices (ours, theirs), in the order of the authors' detections.
    """
    boxes = np.abs(ours[0][:, None] - theirs[0][None]).max(axis=2)
    scores = np.abs(ours[1][:, None] - theirs[1][None])
    # One pixel weighs as much as 0.01 of score, as in the tolerances.
    cost = np.where(ours[2][:, None] == theirs[2][None], boxes + 100 * scores, np.inf)
    pairs = []
    for index in np.argsort(cost, axis=None, kind="stable"):
        ours_index, theirs_index = np.unravel_index(index, cost.shape)
        if not np.isfinite(cost[ours_index, theirs_index]):
            continue
        pairs.append((int(ours_index), int(theirs_index)))
        cost[ours_index, :] = cost[:, theirs_index] = np.inf
    return sorted(pairs, key=lambda pair: pair[1])


def _by_level(levels: list[str], maps: list[Tensor], layout: ReferenceLayout) -> dict[str, Tensor]:
    ordered = (to_reference_anchors(values, layout) for values in maps)
    return dict(zip(levels, ordered, strict=True))


def _map_rows(
    fixture: Fixture, name: str, maps: Mapping[str, Tensor], limits: Tolerances
) -> list[Row]:
    return [
        max_difference(fixture, f"{name}.{level}", values.numpy(), limits.maps)
        for level, values in maps.items()
    ]


def _detection_rows(
    fixture: Fixture, detections: Instances, mask_logits: Tensor, limits: Tolerances
) -> list[Row]:
    rows, pairs = _match_rows(
        fixture, "detections", "detections.boxes_network_scale", detections, limits
    )
    key = "detections.mask_logits"
    if len(pairs) == len(detections) == fixture.shape(key)[0]:
        ours = mask_logits.numpy()[[ours_index for ours_index, _ in pairs]]
        rows.append(max_difference(fixture, key, ours, limits.mask_logit))
    else:
        rows.append(equal(key, len(pairs), fixture.shape(key)[0], "matched detections"))
    return rows


def _match_rows(
    fixture: Fixture, group: str, boxes_key: str, instances: Instances, limits: Tolerances
) -> tuple[list[Row], list[tuple[int, int]]]:
    ours = (
        instances.pred_boxes.tensor.numpy(),
        instances.scores.numpy(),
        instances.pred_classes.numpy(),
    )
    keys = (boxes_key, f"{group}.scores", f"{group}.labels")
    theirs = (fixture.take(keys[0]), fixture.take(keys[1]), fixture.take(keys[2]))
    pairs = match_detections(ours, theirs)
    first = [pair[0] for pair in pairs]
    second = [pair[1] for pair in pairs]
    # A detection without a partner has no difference: the rows must not hold then.
    complete = len(pairs) == len(ours[1]) == len(theirs[1])
    box, score = (
        float(np.abs(ours[i][first] - theirs[i][second]).max(initial=0)) if complete else np.inf
        for i in (0, 1)
    )
    count = f"{len(pairs)} matched of {len(ours[1])}"
    rows = [
        at_most(keys[0], box, limits.box, "max corner difference, px,"),
        at_most(keys[1], score, limits.score, "max score difference"),
        equal(keys[2], count, f"{len(theirs[1])} matched of {len(theirs[1])}", "one to one,"),
    ]
    return rows, pairs
