"""The box head: assignment of anchors, the two losses, and the selection of detections."""

import math

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from spatialflow.modeling.heads.anchor_matching import match_anchors
from spatialflow.modeling.heads.boxes import BoxSelection, DenseBoxHead
from spatialflow.modeling.losses import LossNormalizer

IGNORED, NEGATIVE, POSITIVE = -1, 0, 1


def matcher():
    return Matcher([0.4, 0.5], [NEGATIVE, IGNORED, POSITIVE])


def match_slowly(iou):
    """Apply the reference's rules to one anchor and one ground truth at a time.

    An anchor is positive from an IoU of 0.5, negative below 0.4, and ignored between them. Then
    every ground truth in turn takes all anchors that overlap it as much as its best anchor does,
    unless that overlap is zero.
    """
    rows = iou.tolist()
    pairs = []
    for anchor in range(iou.shape[1]):
        column = [row[anchor] for row in rows]
        best = max(column)
        label = POSITIVE if best >= 0.5 else NEGATIVE if best < 0.4 else IGNORED
        pairs.append((column.index(best), label))
    for truth, row in enumerate(rows):
        for anchor, value in enumerate(row):
            if value == max(row) and value > 0:
                pairs[anchor] = (truth, POSITIVE)
    return pairs


def build_head(num_classes=2, sizes=((8,), (16,)), selection=None, **options):
    return DenseBoxHead(
        channels=4,
        num_classes=num_classes,
        anchor_generator=DefaultAnchorGenerator(
            sizes=sizes, aspect_ratios=[[1.0]], strides=[4 * 2**i for i in range(len(sizes))]
        ),
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        anchor_matcher=matcher(),
        selection=selection or BoxSelection(0.05, 1000, 0.4, 100),
        normalizer=LossNormalizer(),
        **options,
    )


def truth(boxes, classes, size=(32, 32)):
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return instances


@given(st.integers(1, 4), st.integers(1, 12), st.integers(0, 10**6))
def test_matching_equals_the_slow_loop(truths, anchors, seed):
    """Use IoUs in tenths, so that ties and values on the thresholds are common."""
    generator = torch.Generator().manual_seed(seed)
    iou = torch.randint(0, 9, (truths, anchors), generator=generator) / 10
    matches, labels = match_anchors(iou, matcher())
    for (index, label), match, actual in zip(match_slowly(iou), matches, labels, strict=True):
        assert actual == label
        if label == POSITIVE:
            assert match == index


def test_matching_written_out():
    iou = torch.tensor(
        [
            [0.6, 0.45, 0.30, 0.0, 0.6, 0.39],
            [0.7, 0.20, 0.10, 0.0, 0.1, 0.00],
            [0.0, 0.00, 0.35, 0.0, 0.0, 0.35],
            [0.0, 0.00, 0.00, 0.0, 0.0, 0.00],
        ]
    )
    matches, labels = match_anchors(iou, matcher())
    # Anchors 2 and 5 are the best of truth 2, although both IoUs are low and anchor 5 overlaps
    # truth 0 more. Truth 3 overlaps nothing and takes nothing.
    assert labels.tolist() == [POSITIVE, IGNORED, POSITIVE, NEGATIVE, POSITIVE, POSITIVE]
    assert matches[labels == POSITIVE].tolist() == [1, 2, 0, 2]


def test_the_last_claim_wins():
    matches, labels = match_anchors(torch.tensor([[0.3, 0.0], [0.2, 0.1]]), matcher())
    assert (matches[0], labels[0], labels[1]) == (1, POSITIVE, NEGATIVE)


def losses_slowly(anchors, logits, deltas, targets, num_classes, alpha, gamma):
    """Compute both losses anchor by anchor, from logits (R, K) and deltas (R, 4) of each image."""
    loss_cls = loss_box = 0.0
    positives = 0
    for image_logits, image_deltas, image in zip(logits, deltas, targets, strict=True):
        boxes = image.gt_boxes.tensor.tolist()
        pairs = [(0, NEGATIVE)] * len(anchors)
        if boxes:
            pairs = match_slowly(torch.tensor([[_iou(b, a) for a in anchors] for b in boxes]))
        found = 0
        for r, (index, label) in enumerate(pairs):
            if label == IGNORED:
                continue
            for k in range(num_classes):
                hit = label == POSITIVE and k == image.gt_classes[index]
                p = 1 / (1 + math.exp(-image_logits[r, k].item()))
                right = p if hit else 1 - p
                weight = alpha if hit else 1 - alpha
                loss_cls -= weight * (1 - right) ** gamma * math.log(right)
            if label == POSITIVE:
                found += 1
                goal = _encode(anchors[r], boxes[index])
                loss_box += sum(
                    abs(g - d) for g, d in zip(goal, image_deltas[r].tolist(), strict=True)
                )
        positives += max(found, 1)
    return loss_cls / positives, loss_box / positives


def _iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (area - width * height)


def _encode(anchor, box):
    (ax, ay, aw, ah), (bx, by, bw, bh) = (
        ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1]) for b in (anchor, box)
    )
    return (bx - ax) / aw, (by - ay) / ah, math.log(bw / aw), math.log(bh / ah)


def flat(levels, size):
    """Return one (N, size, H, W) per level as (N, R, size), for one anchor per position."""
    return torch.cat([x.flatten(2).transpose(1, 2) for x in levels], dim=1).reshape(
        len(levels[0]), -1, size
    )


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.4, 1.0)])
def test_losses_equal_the_slow_loop(alpha, gamma):
    head = build_head(focal_alpha=alpha, focal_gamma=gamma)
    logits = [torch.randn(3, 2, 8, 8), torch.randn(3, 2, 4, 4)]
    deltas = [torch.randn(3, 4, 8, 8), torch.randn(3, 4, 4, 4)]
    anchors = head.anchor_generator(logits)
    targets = [
        truth([[2, 3, 11, 12], [10, 12, 27, 26]], [1, 0]),
        truth([], []),
        truth([[0, 0, 3, 3]], [1]),
    ]
    losses = head.losses(anchors, logits, deltas, targets)
    everything = Boxes.cat(anchors).tensor.tolist()
    expected = losses_slowly(everything, flat(logits, 2), flat(deltas, 4), targets, 2, alpha, gamma)
    assert losses["loss_cls"].item() == pytest.approx(expected[0], rel=1e-5)
    assert losses["loss_box"].item() == pytest.approx(expected[1], rel=1e-5)


def test_focal_loss_without_focus_is_cross_entropy():
    head = build_head(focal_alpha=-1, focal_gamma=0.0)
    logits, deltas = (
        [torch.randn(1, 2, 2, 2), torch.randn(1, 2, 1, 1)],
        [
            torch.zeros(1, 4, 2, 2),
            torch.zeros(1, 4, 1, 1),
        ],
    )
    losses = head.losses(head.anchor_generator(logits), logits, deltas, [truth([], [])])
    expected = F.binary_cross_entropy_with_logits(
        flat(logits, 2), torch.zeros(1, 5, 2), reduction="sum"
    )
    torch.testing.assert_close(losses["loss_cls"], expected)
    assert losses["loss_box"] == 0


def test_an_anchor_on_its_truth_costs_no_box_loss():
    head = build_head()
    logits = [torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, 2)]
    anchors = head.anchor_generator(logits)
    image = truth([anchors[1].tensor[3].tolist()], [0])
    exact = [torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 2, 2)]
    assert head.losses(anchors, logits, exact, [image])["loss_box"] == 0
    off = [exact[0], exact[1].clone()]
    off[1][0, :, 1, 1] = torch.tensor([1.0, -2.0, 0.5, 0.25])
    assert head.losses(anchors, logits, off, [image])["loss_box"].item() == pytest.approx(3.75)


def select(scores, boxes, selection, size=(32, 32), levels=1):
    """Return the detections of one image from scores (R, K) and boxes (R, 4)."""
    scores, boxes = torch.tensor(scores), torch.tensor(boxes, dtype=torch.float32)
    head = build_head(scores.shape[1], sizes=((8,),) * levels, selection=selection)
    anchors = [
        Boxes(part) for part in torch.tensor([[0.0, 0, 16, 16]]).repeat(len(boxes), 1).chunk(levels)
    ]
    deltas = head.box2box_transform.get_deltas(Boxes.cat(anchors).tensor, boxes)
    return head.inference(
        anchors,
        [x.T[None, :, :, None] for x in scores.logit().chunk(levels)],
        [x.T[None, :, :, None] for x in deltas.chunk(levels)],
        [size],
    )[0]


APART = [[0, 0, 8, 8], [10, 0, 18, 8], [20, 0, 28, 8], [0, 10, 8, 18]]


def test_anchors_are_ranked_by_their_best_class():
    """Check that a candidate is an anchor with all its classes, not a pair of anchor and class."""
    scores = [[0.5, 0.1, 0.1], [0.9, 0.8, 0.7], [0.1, 0.6, 0.1], [0.3, 0.3, 0.3]]
    found = select(scores, APART, BoxSelection(0.2, 2, 0.4, 100))
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert found.pred_classes.tolist() == [0, 1, 2, 1]
    expected = torch.tensor([APART[1]] * 3 + [APART[2]], dtype=torch.float32)
    torch.testing.assert_close(found.pred_boxes.tensor, expected, rtol=0, atol=1e-4)


def test_candidates_are_counted_per_level():
    found = select([[0.9], [0.8], [0.4], [0.3]], APART, BoxSelection(0.2, 1, 0.4, 100), levels=2)
    assert found.scores.tolist() == pytest.approx([0.9, 0.4])


def test_boxes_are_clipped_before_nms():
    # The boxes overlap little, but completely after clipping to the image.
    boxes = [[0, 0, 100, 100], [-10, -10, 32, 32]]
    found = select([[0.6], [0.9]], boxes, BoxSelection(0.05, 10, 0.4, 100))
    assert found.scores.tolist() == pytest.approx([0.9])
    torch.testing.assert_close(found.pred_boxes.tensor, torch.tensor([[0.0, 0, 32, 32]]))


def test_nms_is_by_class_and_over_levels():
    boxes = [[0, 0, 8, 8], [20, 0, 28, 8], [0, 0, 8, 7], [20, 0, 28, 8]]
    scores = [[0.9, 0.1], [0.8, 0.1], [0.7, 0.1], [0.1, 0.6]]
    found = select(scores, boxes, BoxSelection(0.2, 10, 0.4, 100), levels=2)
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.6])


def test_threshold_and_number_of_detections():
    scores = [[0.3], [0.5], [0.4], [0.2]]
    assert len(select(scores, APART, BoxSelection(0.45, 10, 0.4, 100))) == 1
    best = select(scores, APART, BoxSelection(0.05, 10, 0.4, 2))
    assert best.scores.tolist() == pytest.approx([0.5, 0.4])
    nothing = select(scores, APART, BoxSelection(0.6, 10, 0.4, 100))
    assert len(nothing) == 0
    assert nothing.pred_boxes.tensor.shape == (0, 4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_make_no_detections(value):
    """Check that no assertion fails; the trainer reports a diverged model, as in Detectron2."""
    head = build_head()
    logits, deltas = [torch.full((1, 2, 2, 2), value)], [torch.full((1, 4, 2, 2), value)]
    anchors = [head.anchor_generator([x, x])[0] for x in logits]
    assert len(head.inference(anchors, logits, deltas, [(32, 32)])[0]) == 0


def test_prior_probability_at_the_start():
    head = build_head(prior_probability=0.01)
    torch.testing.assert_close(head.cls_score.bias.sigmoid(), torch.full((2,), 0.01))
    assert not head.bbox_pred.bias.any()
