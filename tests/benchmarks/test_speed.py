"""What the benchmarks of speed time: the parts of inference, and as many things on both sides."""

import pytest
import torch
from detectron2.modeling import build_model

from benchmarks.speed.contestants import paint_every_detection, painted_things
from benchmarks.speed.inference import _after_the_network
from tests.modeling.test_meta_arch import EAGER


@pytest.fixture
def model(tiny_cfg):
    model = build_model(tiny_cfg(EAGER)).eval()
    torch.nn.init.normal_(model.box_head.cls_score.weight, std=0.1)
    return model


@torch.no_grad()
def test_every_part_after_the_network_is_timed(model, make_input):
    parts = _after_the_network(model, make_input(64, 64), rounds=1)
    assert len(parts) == 3
    assert all(part["seconds"] > 0 for part in parts.values())


@torch.no_grad()
def test_every_detection_with_a_mask_is_painted(model, make_input):
    item = make_input(64, 96)
    paint_every_detection(model)
    (output,) = model([item])
    masks = output["instances"].pred_masks
    assert painted_things(output) == int(masks.flatten(1).any(dim=1).sum()) > 1
