"""The region head: proposals from dense boxes, the sample that learns, detections by class."""

import pytest
import torch
from detectron2.layers import ShapeSpec, nms
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from spatialflow.modeling.heads import Candidates, RegionHead
from spatialflow.modeling.heads.selection import first_of_nms

CLASSES, SIZE = 3, (64, 96)
SHAPES = {f"p{i}": ShapeSpec(channels=8, stride=2**i) for i in (2, 3, 4, 5)}


@pytest.fixture
def build(tiny_cfg):
    def make(changes=None):
        keys = {
            "MODEL.ROI_HEADS.IN_FEATURES": list(SHAPES),
            "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
            "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
            "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
            "MODEL.RETINANET.NUM_CLASSES": CLASSES,
            **(changes or {}),
        }
        return RegionHead(tiny_cfg(keys), SHAPES)

    return make


@pytest.fixture
def features():
    return {name: torch.randn(1, 8, 64 // s.stride, 96 // s.stride) for name, s in SHAPES.items()}


def truth(*boxes):
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    instances = Instances(SIZE)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.arange(len(boxes)) % CLASSES
    instances.gt_masks = BitMasks(masks)
    return instances


def test_proposals_suppress_each_other_whatever_their_class(build):
    boxes = torch.tensor([[0, 0, 20, 20], [1, 0, 21, 20], [40, 40, 60, 60], [5, 5, 5, 30]]).float()
    scores = torch.tensor([[0.2, 0.1, 0], [0, 0.9, 0], [0.3, 0, 0], [1, 0, 0]])
    (proposals,) = build().propose([Candidates(boxes[:, None], scores)], [SIZE])
    # The box without a width is left out, and the first one overlaps a better one.
    torch.testing.assert_close(proposals.proposal_boxes.tensor, boxes[[1, 2]])
    torch.testing.assert_close(proposals.objectness_logits.sigmoid(), torch.tensor([0.9, 0.3]))


@pytest.mark.parametrize(("training", "count"), [(True, 5), (False, 3)])
def test_proposals_are_limited(build, training, count):
    head = build({"MODEL.RPN.POST_NMS_TOPK_TRAIN": 5, "MODEL.RPN.POST_NMS_TOPK_TEST": 3})
    left = torch.arange(8.0) * 10
    boxes = torch.stack([left, left * 0, left + 8, left * 0 + 8], dim=1)[:, None]
    scores = torch.rand(8, CLASSES)
    (proposals,) = head.train(training).propose([Candidates(boxes, scores)], [SIZE])
    best = scores.amax(dim=1).sort(descending=True).values[:count]
    torch.testing.assert_close(proposals.objectness_logits.sigmoid(), best)


@pytest.mark.parametrize("spread", [20, 400])
@pytest.mark.parametrize("count", [1, 10, 60, 500])
def test_the_first_of_nms_are_the_first_of_all(spread, count):
    """Few boxes are kept where they are crowded, so that the first half of the search fails."""
    corners = torch.rand(300, 2) * spread
    boxes = torch.cat([corners, corners + 10 + torch.rand(300, 2) * 20], dim=1)
    scores = (torch.rand(300) * 50).round() / 50  # with equal ones
    found = first_of_nms(boxes, scores, 0.3, count)
    assert torch.equal(found, nms(boxes, scores, 0.3)[:count])


def test_objects_are_those_that_overlap_the_truth(build, features):
    targets = truth((8, 8, 40, 40), (50, 10, 90, 60))
    proposals = Instances(
        SIZE, proposal_boxes=Boxes(torch.tensor([[9, 9, 41, 40.0], [0, 0, 9, 9]]))
    )
    proposals.objectness_logits = torch.zeros(2)
    head = build()
    with EventStorage():
        losses, (objects,) = head.losses(features, [proposals], [targets])
    assert set(losses) == {"loss_region_cls", "loss_region_box"}
    assert all(value > 0 for value in losses.values())
    # One proposal, and the two true boxes.
    assert sorted(objects.gt_classes.tolist()) == [0, 0, 1]
    assert objects.gt_masks.tensor.flatten(1).sum(dim=1).tolist() == [
        {0: 32 * 32, 1: 40 * 50}[c] for c in objects.gt_classes.tolist()
    ]
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in head.parameters())


@pytest.mark.parametrize("boxes", [[], [[0.0, 0, 9, 9]]])
def test_an_image_without_objects_has_finite_losses(build, features, boxes):
    proposals = Instances(SIZE, proposal_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)))
    proposals.objectness_logits = torch.zeros(len(boxes))
    with EventStorage():
        losses, (objects,) = build().losses(features, [proposals], [truth()])
    assert all(value.isfinite() for value in losses.values())
    assert len(objects) == 0


def test_candidates_are_boxes_of_classes_inside_the_image(build, features):
    head = build().eval()
    predictor = head.box_predictor
    torch.nn.init.zeros_(predictor.cls_score.weight)
    predictor.cls_score.bias.data.copy_(torch.tensor([2.0, 0.0, 2.0, 0.0]))
    torch.nn.init.zeros_(predictor.bbox_pred.weight)
    # Class 2 moves its boxes to the right by half of their width.
    predictor.bbox_pred.bias.data[8] = 0.5 * predictor.box2box_transform.weights[0]
    proposals = Instances(SIZE, proposal_boxes=Boxes(torch.tensor([[60.0, 10, 90, 40]])))
    ((boxes, scores),) = head.candidates(features, [proposals])
    here, moved = [60.0, 10, 90, 40], [75.0, 10, 96, 40]
    torch.testing.assert_close(boxes, torch.tensor([[here, here, moved]]))
    torch.testing.assert_close(scores, torch.tensor([[2.0, 0, 2, 0]]).softmax(1)[:, :3])


@torch.no_grad()
def test_an_image_without_proposals_has_no_candidates(build, features):
    head = build().eval()
    two = {name: x.repeat(2, 1, 1, 1) for name, x in features.items()}
    one = Candidates(torch.tensor([[[1.0, 2, 30, 40]]]), torch.tensor([[0.5, 0, 0]]))
    none = Candidates(torch.zeros(0, 1, 4), torch.zeros(0, CLASSES))
    proposals = head.propose([one, none], [SIZE, SIZE])
    some, nothing = head.candidates(two, proposals)
    assert [len(x) for x in (*some, *nothing)] == [1, 1, 0, 0]
    assert len(head.selection.select(nothing, SIZE)) == 0
    (nothing,) = head.candidates(features, head.propose([none], [SIZE]))
    assert len(head.selection.select(nothing, SIZE)) == 0


@pytest.mark.parametrize("agnostic", [False, True])
@torch.no_grad()
def test_boxes_may_be_those_of_all_classes(build, features, agnostic):
    keys = {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0, "MODEL.ROI_HEADS.NMS_THRESH_TEST": 1.0}
    head = build({**keys, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": agnostic}).eval()
    torch.nn.init.normal_(head.box_predictor.bbox_pred.weight, std=1.0)
    proposals = Instances(SIZE, proposal_boxes=Boxes(torch.tensor([[20.0, 10, 60, 40]])))
    (candidates,) = head.candidates(features, [proposals])
    found = head.selection.select(candidates, SIZE)
    assert sorted(found.pred_classes.tolist()) == list(range(CLASSES))
    assert (len(found.pred_boxes.tensor.unique(dim=0)) == 1) == agnostic


def test_boxes_that_are_not_finite_are_left_out(build, features):
    head = build({"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0}).eval()
    head.box_predictor.bbox_pred.bias.data[:4] = float("nan")
    proposals = Instances(SIZE, proposal_boxes=Boxes(torch.tensor([[60.0, 10, 90, 40]])))
    (candidates,) = head.candidates(features, [proposals])
    found = head.selection.select(candidates, SIZE)
    assert found.pred_boxes.tensor.isfinite().all()
    assert sorted(found.pred_classes.tolist()) == [1, 2]
