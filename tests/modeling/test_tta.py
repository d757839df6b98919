"""Test-time augmentation: how the results of views are merged."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.checkpoint import Checkpointer
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, pairwise_iou
from PIL import Image
from torch import nn

from spatialflow.engine import Predictor, Trainer
from spatialflow.modeling.tta import TestTimeAugmentation

# Let a network with random weights detect things: its scores are all about 0.01.
FINDS = {
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": 0.0,
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": 1,
    "MODEL.SPATIALFLOW.STUFF_FROM": "logits",
    "TEST.DETECTIONS_PER_IMAGE": 6,
    "MODEL.RETINANET.NORM": "",
}


def views(flip=False, *sizes):
    return {
        **FINDS,
        "TEST.AUG.ENABLED": True,
        "TEST.AUG.MIN_SIZES": list(sizes),
        "TEST.AUG.FLIP": flip,
    }


@pytest.fixture
def build(tiny_cfg):
    def build(changes):
        torch.manual_seed(0)
        cfg = tiny_cfg(changes)
        model = build_model(cfg).eval()
        with torch.no_grad():
            for parameter in model.flow_graph.parameters():
                nn.init.normal_(parameter, std=0.05)
        return cfg, model, TestTimeAugmentation(cfg, model).eval()

    return build


@pytest.fixture
def image():
    generator = torch.Generator().manual_seed(3)
    small = torch.randint(0, 256, (1, 3, 8, 12), generator=generator, dtype=torch.uint8)
    return nn.functional.interpolate(small, scale_factor=8)[0]  # 64 × 96


@torch.no_grad()
def test_one_view_at_its_own_size_is_the_model_itself(build, image):
    _, model, augmented = build(views(False, 64))
    (expected,) = model([{"image": image}])
    (given,) = augmented([{"image": image}])
    torch.testing.assert_close(given["sem_seg"], expected["sem_seg"], rtol=1e-4, atol=1e-5)
    for name in ("pred_boxes", "scores", "pred_classes", "pred_masks"):
        mine, other = (x["instances"].get(name) for x in (given, expected))
        mine, other = (getattr(x, "tensor", x) for x in (mine, other))
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-3)
    assert torch.equal(given["panoptic_seg"][0], expected["panoptic_seg"][0])


def test_a_mirrored_image_gives_the_mirrored_result(build, image):
    _, model, augmented = build(views(True, 64, 96))
    (one,) = augmented([{"image": image}])
    (two,) = augmented([{"image": image.flip(-1)}])
    torch.testing.assert_close(two["sem_seg"].flip(-1), one["sem_seg"], rtol=1e-3, atol=1e-4)
    boxes = two["instances"].pred_boxes.tensor
    mirrored = torch.stack([96 - boxes[:, 2], boxes[:, 1], 96 - boxes[:, 0], boxes[:, 3]], dim=1)
    # Detections are in order of score. Scores are equal, as only the view is mirrored.
    torch.testing.assert_close(mirrored, one["instances"].pred_boxes.tensor, rtol=1e-3, atol=1e-2)
    masks = two["instances"].pred_masks.flip(-1)
    assert (masks != one["instances"].pred_masks).float().mean() < 0.01
    plain = model([{"image": image.flip(-1)}])[0]["sem_seg"].flip(-1)
    assert not torch.allclose(plain, model([{"image": image}])[0]["sem_seg"], atol=1e-4)


def test_boxes_of_all_views_pass_one_suppression(build, image):
    _, _, several = build(views(True, 64, 80, 112))
    (result,) = several([{"image": image}])
    instances = result["instances"]
    assert len(instances) == 6
    assert instances.image_size == (64, 96)
    overlaps = pairwise_iou(instances.pred_boxes, instances.pred_boxes)
    same = instances.pred_classes[:, None] == instances.pred_classes[None]
    others = ~torch.eye(6, dtype=torch.bool)
    assert (overlaps * (same & others)).max() <= 0.4


def test_an_image_with_a_name_is_read_at_its_own_size(build, image, tmp_path):
    _, _, augmented = build(views(False, 64))
    path = tmp_path / "image.png"
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    small = nn.functional.interpolate(image[None].float(), size=(32, 48))[0].byte()
    item = {"image": small, "file_name": str(path), "height": 64, "width": 96}
    (given,), (expected,) = augmented([item]), augmented([{"image": image}])
    torch.testing.assert_close(given["sem_seg"], expected["sem_seg"])


def test_evaluation_and_predictor_use_the_views(scenes_cfg, tmp_path):
    cfg = scenes_cfg({**views(True, 64), "OUTPUT_DIR": str(tmp_path)})
    model = build_model(cfg).eval()
    results = Trainer.test(cfg, model)
    assert "PQ" in results["panoptic_seg"]
    Checkpointer(model, str(tmp_path)).save("weights")
    changed = cfg.clone()
    changed.defrost()
    changed.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    picture = np.full((64, 80, 3), 90, np.uint8)
    cv2.circle(picture, (30, 30), 12, (20, 200, 60), -1)
    stuff = []
    for changed.INPUT.MIN_SIZE_TEST in (32, 64):
        predictor = Predictor(changed)
        assert isinstance(predictor.model, TestTimeAugmentation)
        seen = predictor(picture)
        assert seen["panoptic_seg"][0].shape == (64, 80)
        stuff.append(seen["sem_seg"])
    # Views are made from the image itself, not from the smaller copy that is used without views.
    assert torch.equal(*stuff)


def test_what_cannot_be_augmented(tiny_cfg):
    with pytest.raises(ValueError, match="TEST.AUG.MIN_SIZES: none given"):
        TestTimeAugmentation(tiny_cfg(views(False)), build_model(tiny_cfg()))
    with pytest.raises(ValueError, match="given for Linear, SpatialFlow expected"):
        TestTimeAugmentation(tiny_cfg(views(False, 64)), nn.Linear(1, 1))


def test_masks_of_mirrored_views_are_mirrored_back(build, image, monkeypatch):
    _, model, augmented = build(views(True, 64))
    ramp, calls = torch.arange(28.0).expand(1, 1, 28, 28), []

    def see(levels, detections):
        detections[0].pred_masks = ramp.flip(-1) if calls else ramp
        calls.append(1)
        return detections

    monkeypatch.setattr(model.mask_head, "forward", see)
    box, kind = Boxes(torch.tensor([[8.0, 8, 40, 40]])), torch.tensor([0])
    found = Instances((64, 96), pred_boxes=box, pred_classes=kind)
    seen = augmented._views({"image": image, "height": 64, "width": 96})
    assert len(seen) == 2
    assert torch.equal(augmented._mean_masks(found, seen, [None, None]), ramp)


@pytest.mark.parametrize("size", [(300, 1), (1, 300), (1, 1)])
@torch.no_grad()
def test_views_of_a_thin_image_have_pixels(build, size):
    """Its short side would be rounded to 0."""
    _, _, augmented = build({**views(True, 32, 64), "TEST.AUG.MAX_SIZE": 64})
    (result,) = augmented([{"image": torch.full((3, *size), 99, dtype=torch.uint8)}])
    assert result["panoptic_seg"][0].shape == size


@pytest.mark.parametrize("size", [1, 32])
def test_views_may_be_small(build, make_input, size):
    _, _, model = build({**views(True, 1, 32), "TEST.AUG.MAX_SIZE": size})
    image = make_input(70, 90)
    (result,) = model([image])
    assert result["panoptic_seg"][0].shape == (70, 90)
