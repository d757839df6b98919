"""Compare the losses, positive proposals and gradient norms of one training step.

H, W: Height and width of the image in pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from spatialflow.reference.conversion import ReferenceLayout, our_name, stuff_order
from spatialflow.reference.parity.fixture import Fixture
from spatialflow.reference.parity.table import Row, Tolerances, at_most, equal

_IGNORE = 255
_LOSSES = {
    "train.loss_cls": "loss_cls",
    "train.loss_bbox": "loss_box",
    "train.loss_mask": "loss_mask",
    "train.loss_stuff": "loss_stuff",
}
_GRADIENT = "train.grad_norm"


def check_training(
    model: nn.Module,
    fixture: Fixture,
    layout: ReferenceLayout,
    limits: Tolerances,
    ignore_value: int,
) -> list[Row]:
    """Compare a training step on the fixture's ground truth.

    Args:
        model: Model with the converted weights; its gradients are overwritten.
        fixture: Values of the authors' code.
        layout: Orders of the authors' channels, with the index of things-other.
        limits: Tolerances.
        ignore_value: Label of the pixels that the model's stuff loss ignores.
    """
    model.train()
    model.zero_grad(set_to_none=True)
    proposals: list[int] = []
    counter = model.mask_head.fcn.deconv.register_forward_pre_hook(
        lambda _module, inputs: proposals.append(len(inputs[0]))
    )
    with EventStorage():
        losses = model([_training_input(fixture, layout, ignore_value)])
    counter.remove()
    sum(losses.values()).backward()
    # The model counts ground-truth boxes as proposals, the authors' code does not.
    found = sum(proposals) - len(fixture.take("train.gt_boxes"))
    key = "train.num_positive_proposals"
    rows = [equal(key, found, int(fixture.take(key)), "besides the ground truth")]
    rows += [
        _relative(fixture, key, losses[name].item(), limits.loss) for key, name in _LOSSES.items()
    ]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rows.append(_relative(fixture, _GRADIENT, gradient_norm(trainable), limits.gradient))
    parameters = dict(model.named_parameters())
    deformable = any(name.endswith(".offset.weight") for name in parameters)
    for key in fixture.under(f"{_GRADIENT}."):
        name = our_name(key.removeprefix(f"{_GRADIENT}."), deformable=deformable)
        if name in parameters:
            norm = gradient_norm([parameters[name]])
            rows.append(_relative(fixture, key, norm, limits.gradient))
    return rows


def gradient_norm(parameters: list[nn.Parameter]) -> float:
    """Return the Euclidean norm over all gradients, computed in float64; 0 without gradients."""
    squares = [p.grad.double().square().sum() for p in parameters if p.grad is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def stuff_target(fixture: Fixture, layout: ReferenceLayout, ignore_value: int) -> Tensor:
    """Return the fixture's stuff target (H, W) in this project's class order."""
    theirs = fixture.take("train.gt_semantic").astype(np.int64)
    num_stuff = fixture.checkpoint["stuff_head.conv.weight"].shape[0]
    order = np.argsort(stuff_order(num_stuff, layout.things_other_index))
    known = theirs != _IGNORE
    ours = np.full_like(theirs, ignore_value)
    ours[known] = order[theirs[known]]
    return torch.from_numpy(ours)


def _training_input(
    fixture: Fixture, layout: ReferenceLayout, ignore_value: int
) -> dict[str, object]:
    image = torch.from_numpy(fixture.take("image_rgb"))
    height, width = image.shape[1:]
    truth = Instances((height, width))
    truth.gt_boxes = Boxes(torch.from_numpy(fixture.take("train.gt_boxes")))
    truth.gt_classes = torch.from_numpy(fixture.take("train.gt_labels"))
    truth.gt_masks = BitMasks(torch.from_numpy(fixture.take("train.gt_masks")).bool())
    return {
        "image": image,
        "height": height,
        "width": width,
        "instances": truth,
        "sem_seg": stuff_target(fixture, layout, ignore_value),
    }


def _relative(fixture: Fixture, key: str, ours: float, limit: float) -> Row:
    expected = float(fixture.take(key))
    difference = abs(ours - expected) / max(abs(expected), np.finfo(np.float32).tiny)
    return at_most(key, difference, limit, "relative difference")
