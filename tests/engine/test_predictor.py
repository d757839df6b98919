"""The predictor: one image, and several as one batch."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from spatialflow.engine import Predictor
from spatialflow.engine.checkpoint import Checkpointer
from tests.modeling.test_meta_arch import EAGER


@pytest.fixture
def predictor(tiny_cfg, tmp_path):
    cfg = tiny_cfg({**EAGER, "INPUT.MIN_SIZE_TEST": 64, "MODEL.RETINANET.NORM": "GN"})
    model = build_model(cfg)
    torch.nn.init.normal_(model.box_head.cls_score.weight, std=0.1)
    Checkpointer(model, str(tmp_path)).save("weights")
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    return Predictor(cfg)


def test_images_of_a_list_get_what_they_get_alone(predictor):
    rng = np.random.default_rng(0)
    sizes = [(50, 80), (90, 60), (50, 80), (40, 200)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    together = predictor(images)
    for image, found in zip(images, together, strict=True):
        alone = predictor(image)
        assert found["sem_seg"].shape[-2:] == image.shape[:2]
        torch.testing.assert_close(found["sem_seg"], alone["sem_seg"], rtol=0, atol=1e-4)
        assert torch.equal(found["panoptic_seg"][0], alone["panoptic_seg"][0])
    assert predictor([]) == []


@pytest.mark.parametrize("wrong", ["a path", np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_what_is_no_image_is_refused_alone_and_in_a_list(predictor, wrong):
    with pytest.raises(ValueError, match="an image of .H, W, 3. uint8"):
        predictor(wrong)
    with pytest.raises(ValueError, match="an image of .H, W, 3. uint8"):
        predictor([np.zeros((40, 40, 3), np.uint8), wrong])
