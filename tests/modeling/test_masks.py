"""The mask head: which boxes learn which mask, from which level."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from spatialflow.modeling.heads import ProposalMaskHead
from spatialflow.modeling.losses import LossNormalizer

CLASSES = 3


class RecordingPooler(nn.Module):
    """A pooler that returns zeros and records the boxes."""

    def forward(self, features, boxes):
        self.boxes = [image.tensor for image in boxes]
        return torch.zeros(sum(len(image) for image in boxes), 4, 14, 14)


@pytest.fixture(autouse=True)
def _storage():
    """Open the event storage to which Detectron2's mask loss writes its accuracy."""
    with EventStorage():
        yield


@pytest.fixture
def head():
    """Build a head whose logits are the biases of its predictor, so that its loss is known."""
    fcn = MaskRCNNConvUpsampleHead(
        ShapeSpec(channels=4, width=14, height=14), num_classes=CLASSES, conv_dims=[4, 4]
    )
    nn.init.zeros_(fcn.predictor.weight)
    fcn.predictor.bias.data.copy_(torch.tensor([-1.0, 0.5, 2.0]))
    return ProposalMaskHead(
        fcn=fcn, pooler=RecordingPooler(), proposal_iou=0.5, normalizer=LossNormalizer()
    )


def truth(boxes, classes, size=(64, 64), half=False):
    """Return ground truth whose masks fill their boxes, or the left half of them."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left : (left + right) // 2 if half else right] = True
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    instances.gt_masks = BitMasks(masks)
    return instances


def detected(boxes, classes=None, size=(64, 64)):
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.pred_classes = torch.tensor(classes or [0] * len(boxes), dtype=torch.int64)
    return instances


@pytest.mark.parametrize(
    ("side", "level"),
    [(1, 0), (56, 0), (111.9, 0), (112, 1), (160, 1), (223.9, 1), (224, 2), (500, 2), (2000, 2)],
)
def test_level_of_a_box(tiny_cfg, side, level):
    shapes = {f"p{i}": ShapeSpec(channels=32, stride=2**i) for i in range(3, 8)}
    head = ProposalMaskHead(tiny_cfg(), shapes, LossNormalizer())
    features = [
        torch.full((1, 32, 2048 // s, 2048 // s), float(i)) for i, s in enumerate((8, 16, 32))
    ]
    pooled = head.pooler(features, [Boxes(torch.tensor([[0.0, 0.0, side, side]]))])
    assert pooled.shape == (1, 32, 14, 14)
    torch.testing.assert_close(pooled, torch.full_like(pooled, level))


def test_ground_truth_comes_first_then_what_overlaps_half_of_it(head):
    image = truth([[0, 0, 20, 20], [30, 30, 50, 50]], [2, 0])
    boxes = [
        [0, 0, 20, 10],  # IoU 0.5 exactly: learns
        [0, 0, 20, 9],  # IoU 0.45
        [30, 30, 50, 48],  # IoU 0.9, with another class
        [55, 55, 60, 60],  # no overlap
    ]
    head([torch.zeros(1)], [detected(boxes, [1, 1, 1, 1])], [image])
    expected = [[0, 0, 20, 20], [30, 30, 50, 50], boxes[0], boxes[2]]
    assert head.pooler.boxes[0].tolist() == expected


def bce(logit, target):
    return F.binary_cross_entropy_with_logits(torch.tensor(logit), torch.tensor(float(target)))


def test_loss_is_that_of_the_truths_class_meaned_over_pixels(head):
    images = [
        truth([[0, 0, 28, 28]], [2]),
        truth([[0, 0, 28, 28], [28, 28, 56, 56]], [0, 1], half=True),
    ]
    boxes = [detected([[0, 0, 28, 27]]), detected([])]
    loss = head([torch.zeros(1)], boxes, images)["loss_mask"]
    full = bce(2.0, 1)
    halves = [(bce(logit, 1) + bce(logit, 0)) / 2 for logit in (-1.0, 0.5)]
    torch.testing.assert_close(loss, (2 * full + sum(halves)) / 4)


def test_nothing_to_learn_gives_zero_and_zero_gradients(head):
    empty = truth([], [])
    loss = head([torch.zeros(1)], [detected([[0, 0, 9, 9]]), detected([])], [empty, empty])
    assert loss["loss_mask"] == 0
    loss["loss_mask"].backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_an_empty_image_does_not_dilute_the_others(head):
    image, empty = truth([[0, 0, 28, 28]], [1]), truth([], [])
    alone = head([torch.zeros(1)], [detected([])], [image])["loss_mask"]
    with_empty = head([torch.zeros(1)], [detected([]), detected([])], [empty, image])["loss_mask"]
    torch.testing.assert_close(alone, bce(0.5, 1))
    torch.testing.assert_close(with_empty, alone)


def test_proposals_carry_no_gradient(head):
    boxes = detected([[0, 0, 28, 27]])
    boxes.pred_boxes.tensor.requires_grad_(True)
    head([torch.zeros(1)], [boxes], [truth([[0, 0, 28, 28]], [1])])["loss_mask"].backward()
    assert boxes.pred_boxes.tensor.grad is None


def test_prediction_is_that_of_the_predicted_class(head):
    head.eval()
    first, second = head(
        [torch.zeros(1)], [detected([[0, 0, 9, 9], [3, 3, 5, 5]], [2, 0]), detected([])]
    )
    assert first.pred_masks.shape == (2, 1, 28, 28)
    assert second.pred_masks.shape == (0, 1, 28, 28)
    expected = torch.tensor([2.0, -1.0]).sigmoid()[:, None, None, None]
    torch.testing.assert_close(first.pred_masks, expected.expand(2, 1, 28, 28))


def test_batch_without_any_detection(head):
    head.eval()
    results = head([torch.zeros(1)], [detected([]), detected([])])
    assert [len(image) for image in results] == [0, 0]
    assert all(image.has("pred_masks") for image in results)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_masks_of_one_class_each_are_those_of_the_whole_head(head, count):
    """Compare with the whole head, which computes its last two layers in another order."""
    for parameter in head.fcn.parameters():
        nn.init.normal_(parameter, std=0.3)
    pooled, classes = torch.randn(count, 4, 14, 14), torch.arange(count) % CLASSES
    with torch.no_grad():
        expected = head.fcn.layers(pooled)[torch.arange(count), classes][:, None]
        given = head._logits(pooled, classes)
    assert given.shape == (count, 1, 28, 28)
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)
