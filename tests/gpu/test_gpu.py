"""A GPU beside the CPU, in single precision without TF32.

make bench-gpu                                        # these tests, and what is to be measured
SPATIALFLOW_TEST_DEVICE=cpu pytest -m gpu tests/gpu   # a dry run
"""

import copy
import json
import os

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from hypothesis import given

from spatialflow.config.options import SUPERNET
from spatialflow.engine import Trainer, prepare_config
from spatialflow.search.trainer import SearchTrainer
from tests.conftest import TINY_RUN
from tests.modeling.test_fusion import images, rules
from tests.modeling.test_meta_arch import EAGER
from tests.modeling.test_refined import REFINED

DEVICE = torch.device(os.environ.get("SPATIALFLOW_TEST_DEVICE", "cuda"))
NETWORKS = {"published": {}, "refined": {**REFINED, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0}}
SEARCH = {
    "MODEL.META_ARCHITECTURE": SUPERNET,
    "SEARCH.WARMUP": 0.0,
    "SEARCH.SPACE.OPERATIONS": ["identity", "conv_1x1"],
}

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _exact():
    """Leave out TF32, which rounds to ten bits. PyTorch's default has it in convolutions alone."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


@pytest.fixture(params=NETWORKS)
def both(request, tiny_cfg):
    """One network on the CPU and on the GPU."""
    model = build_model(tiny_cfg({**EAGER, **NETWORKS[request.param]}))
    torch.nn.init.normal_(model.box_head.cls_score.weight, std=0.1)
    return model, copy.deepcopy(model).to(DEVICE)


@torch.no_grad()
def test_predictions(both, make_input):
    here, there = (model.eval() for model in both)
    batch = [make_input(96, 128), make_input(64, 90, seed=1)]
    for expected, found in zip(here(batch), there(batch), strict=True):
        ids, segments = expected["panoptic_seg"]
        same = (found["panoptic_seg"][0].cpu() == ids).float().mean()
        assert same > 0.999
        assert len(found["panoptic_seg"][1]) == len(segments)
        torch.testing.assert_close(
            found["sem_seg"].cpu(), expected["sem_seg"], rtol=1e-3, atol=1e-3
        )
        boxes = [x["instances"].pred_boxes.tensor.cpu() for x in (found, expected)]
        torch.testing.assert_close(*boxes, rtol=1e-3, atol=0.05)


@given(images(), rules)
def test_fusion(image, rule):
    instances, stuff = image
    ids, segments = rule(instances, stuff)
    found = rule(instances.to(DEVICE), stuff.to(DEVICE))
    assert torch.equal(found[0].cpu(), ids)
    assert found[1] == segments


def test_losses_and_gradients(both, make_input):
    batch = [make_input(96, 128), make_input(96, 128, seed=1, things=3)]
    results = []
    for model in both:
        torch.manual_seed(0)  # the region head draws a sample
        with EventStorage():
            losses = model.train()(batch)
        sum(losses.values()).backward()
        gradients = [p.grad.cpu() for p in model.parameters() if p.grad is not None]
        results.append(({k: v.item() for k, v in losses.items()}, gradients))
    (expected, gradients), (found, there) = results
    if both[0].region_head is None:
        assert found == pytest.approx(expected, rel=1e-3)
        for one, other in zip(gradients, there, strict=True):
            scale = one.abs().max().item()
            torch.testing.assert_close(other, one, rtol=1e-2, atol=1e-3 * scale + 1e-6)
    else:  # devices draw other samples
        assert found.keys() == expected.keys()
        assert all(x.isfinite().all() for x in there)


@pytest.mark.parametrize("kind", [Trainer, SearchTrainer])
@pytest.mark.parametrize("amp", [False, True])
def test_steps(tiny_cfg, kind, amp, tmp_path):
    keys = {
        **TINY_RUN,
        **(SEARCH if kind is SearchTrainer else {}),
        "MODEL.DEVICE": DEVICE.type,
        "SOLVER.AMP.ENABLED": amp,
        "SOLVER.AMP.DTYPE": "bfloat16",
        "SOLVER.MAX_ITER": 3,
        "DATASETS.TEST": (),
        "OUTPUT_DIR": str(tmp_path / "run"),
    }
    cfg = tiny_cfg(keys, "generated/spatialflow.yaml")
    prepare_config(cfg)
    trainer = kind(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    lines = (tmp_path / "run" / "metrics.json").read_text().splitlines()
    losses = [v for line in lines for k, v in json.loads(line).items() if k.startswith("loss_")]
    assert len(losses) >= 4
    assert torch.tensor(losses).isfinite().all()


@pytest.mark.distributed
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus(program, tmp_path):
    keys = {**TINY_RUN, "MODEL.DEVICE": "cuda", "SOLVER.MAX_ITER": 3, "OUTPUT_DIR": tmp_path}
    words = [str(item) for pair in keys.items() for item in pair]
    config = ["--config-file", "generated/spatialflow.yaml", "--num-gpus", "2"]
    done = program("train_net.py", *config, *words)
    assert done.returncode == 0, done.stderr[-2000:]
