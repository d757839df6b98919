"""Adaptive assignment of anchors, against the paper's algorithm one ground truth at a time."""

import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou

from spatialflow.modeling.heads.adaptive_matching import POSITIONS, match_adaptively

STRIDES = (8, 16, 32)
SIDE = 96


def anchors_of(sizes=(1.5, 3.0)):
    """Anchors of three levels, squares of some strides at each position."""
    levels = []
    for stride in STRIDES:
        steps = torch.arange(SIDE // stride) * float(stride)
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        centers = torch.stack((x.flatten(), y.flatten()), dim=1)[:, None]  # (P, 1, 2)
        halves = torch.tensor(sizes)[None, :, None] * stride / 2  # (1, A, 1)
        boxes = torch.cat((centers - halves, centers + halves), dim=2)
        levels.append(Boxes(boxes.reshape(-1, 4)))
    return levels


def matched(truth, levels, count):
    """Return what is matched: the index of the ground truth, and the label, of each anchor."""
    anchors = Boxes.cat(levels)
    iou = pairwise_iou(truth, anchors)
    return match_adaptively(truth, anchors, iou, [len(level) for level in levels], count)


def random_truth(count, seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 70
    size = 4 + torch.rand(count, 2, generator=generator) * 50
    return Boxes(torch.cat((corner, corner + size), dim=1))


def by_hand(truth, levels, count):
    """Return the ground truth of each positive anchor."""
    anchors = Boxes.cat(levels)
    iou = pairwise_iou(truth, anchors)
    owner, highest = {}, {}
    for i, box in enumerate(truth.tensor.tolist()):
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        candidates, first = [], 0
        for level in levels:
            centers = level.get_centers()[::count].tolist()
            order = sorted(
                range(len(centers)),
                key=lambda p: (centers[p][0] - middle[0]) ** 2 + (centers[p][1] - middle[1]) ** 2,
            )
            candidates += [first + p * count + a for p in order[:POSITIONS] for a in range(count)]
            first += len(level)
        own = iou[i, candidates]
        threshold = own.mean() + own.std()
        positive = []
        for j in candidates:
            x, y = anchors.get_centers()[j].tolist()
            inside = box[0] < x < box[2] and box[1] < y < box[3]
            if inside and iou[i, j] >= threshold:
                positive.append((j, float(iou[i, j])))
        if not positive and iou[i].max() > 0:
            positive = [(int(iou[i].argmax()), 1 + float(iou[i].max()))]
        for j, value in positive:
            if value > highest.get(j, -1.0):
                owner[j], highest[j] = i, value
    return owner


@pytest.mark.parametrize("seed", range(20))
def test_as_by_hand(seed):
    levels, truth = anchors_of(), random_truth(1 + seed % 7, seed)
    matches, labels = matched(truth, levels, 2)
    found = {j: int(matches[j]) for j in (labels == 1).nonzero()[:, 0].tolist()}
    assert found == by_hand(truth, levels, 2)
    assert set(labels.tolist()) <= {0, 1}


def test_every_thing_that_overlaps_an_anchor_learns():
    """A tiny box between the positions has no candidate with its centre inside."""
    levels = anchors_of()
    truth = Boxes(torch.tensor([[2.0, 2.0, 4.0, 4.0], [500.0, 500.0, 510.0, 510.0]]))
    iou = pairwise_iou(truth, Boxes.cat(levels))
    matches, labels = matched(truth, levels, 2)
    assert matches[labels == 1].tolist() == [0]
    assert int(iou[0].argmax()) == int((labels == 1).nonzero())


def test_fewer_positions_than_candidates():
    levels = [Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]])), Boxes(torch.tensor([[0.0, 0, 16, 16]]))]
    truth = Boxes(torch.tensor([[0.0, 0.0, 9.0, 9.0]]))
    assert matched(truth, levels, 1)[1].tolist() == [1, 0]


def test_of_two_without_a_candidate_the_nearer_one_gets_the_anchor():
    levels = anchors_of()
    truth = Boxes(torch.tensor([[64.5, 64.5, 66.0, 66.0], [66.0, 64.5, 69.0, 67.0]]))
    iou = pairwise_iou(truth, Boxes.cat(levels))
    assert iou[0].argmax() == iou[1].argmax()
    matches, labels = matched(truth, levels, 2)
    assert matches[labels == 1].tolist() == [int(iou.amax(dim=1).argmax())]
