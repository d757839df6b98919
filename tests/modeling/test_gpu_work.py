"""How often the CPU waits for a GPU at inference, and what it queues, on an emulated one."""

from dataclasses import replace

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler

from spatialflow.modeling.layers.packed_conv import unpack_convolutions
from tests.emulated_gpu import EmulatedGPU, on_emulated_gpu
from tests.modeling.test_meta_arch import EAGER
from tests.modeling.test_refined import REFINED

# Outside of backbone, flow graph, predictors and stuff head. Fusion by instance and selection by
# level had about 1,200 operations and 280 waits.
MOST_OPERATIONS = {"published": 230, "refined": 320}
MOST_WAITS = 12
KEYS = {"published": {}, "refined": {**REFINED, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0}}


@pytest.fixture(params=["published", "refined"])
def network(request):
    return request.param


@pytest.fixture
def models(tiny_cfg, network):
    """The same network on the CPU and on the emulated GPU, which paints all that it detects."""

    def build(things, box_fill=False):
        keys = {**EAGER, **KEYS[network], "TEST.DETECTIONS_PER_IMAGE": things}
        model = build_model(tiny_cfg(keys)).eval()
        torch.nn.init.normal_(model.box_head.cls_score.weight, std=0.1)
        model.fusion = replace(
            model.fusion, score_threshold=0.0, overlap_threshold=1.0, box_fill=box_fill
        )
        unpack_convolutions(model)
        return model, on_emulated_gpu(model)

    return build


def count(model, item):
    """Return the counts of a second call, and what it returns."""
    with torch.no_grad(), EmulatedGPU():
        model([item])
    with torch.no_grad(), EmulatedGPU() as gpu:
        (found,) = model([item])
    return gpu, found


@pytest.mark.parametrize("box_fill", [False, True])
def test_thirty_things_are_few_waits(models, make_input, network, box_fill):
    _, there = models(30, box_fill)
    item = make_input(96, 128)
    gpu, found = count(there, item)
    assert len(found["instances"]) == 30
    assert gpu.waits.total() <= MOST_WAITS, gpu.waits
    with torch.no_grad(), EmulatedGPU() as dense:
        there.predict_maps(there.preprocess_image([item]))
    outside = gpu.operations.total() - dense.operations.total()
    assert outside <= MOST_OPERATIONS[network], gpu.operations - dense.operations


def test_the_number_of_things_changes_no_count(models, make_input):
    counts = []
    for things in (5, 60):
        gpu, found = count(models(things)[1], make_input(96, 128))
        assert len(found["instances"]) == things
        counts.append((gpu.waits.total(), gpu.operations.total() - gpu.operations["bitwise_or_"]))
    few, many = counts
    assert many[0] == few[0]
    # One byte of masks for each eight things, and each has two operations.
    assert many[1] <= few[1] + 3 * 60 / 8


def test_a_gpu_gives_the_same(models, make_input):
    here, there = models(30, box_fill=True)
    item = make_input(96, 128)
    _, found = count(there, item)
    with torch.no_grad():
        (expected,) = here([item])
    ids, segments = expected["panoptic_seg"]
    assert torch.equal(found["panoptic_seg"][0].on_cpu, ids)
    assert found["panoptic_seg"][1] == segments
    assert torch.equal(found["sem_seg"].on_cpu, expected["sem_seg"])
    for name, value in expected["instances"].get_fields().items():
        theirs = found["instances"].get(name)
        assert torch.equal(
            getattr(theirs, "tensor", theirs).on_cpu, getattr(value, "tensor", value)
        )


def test_the_emulation_counts(models, make_input, network):
    """Detectron2's pooler asks once a level, and once for the number of boxes."""
    _, there = models(30)
    before = count(there, make_input(96, 128))[0].waits.total()
    there.mask_head.pooler.__class__ = ROIPooler
    after = count(there, make_input(96, 128))[0].waits.total()
    assert after >= before + len(there.mask_head.pooler.level_poolers)
