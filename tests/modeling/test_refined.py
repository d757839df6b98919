"""The whole model with the keys of the refined network, each for itself and together."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from darts.genotype import Flow, Genotype, GenotypeError
from spatialflow.config import genotype_of, load_genotype
from spatialflow.modeling.topology import spatialflow_topology, topology_from_config
from spatialflow.modeling.tta import TestTimeAugmentation
from spatialflow.search.space import search_space
from tests.modeling.test_meta_arch import EAGER as DENSE_EAGER
from tests.modeling.test_meta_arch import LOSSES

REGIONS = {
    "MODEL.SPATIALFLOW.REGIONS.ENABLED": True,
    "MODEL.ROI_HEADS.IN_FEATURES": ["p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
}
P2 = {
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SPATIALFLOW.MASK_IN_FEATURES": ["p2", "p3", "p4", "p5"],
}
REFINED = {
    **REGIONS,
    **P2,
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.SPATIALFLOW.RESIDUAL": "rms",
    "MODEL.SPATIALFLOW.POOL_FROM": "pyramid",
}
KEYS = {
    "regions": REGIONS,
    "P2": P2,
    "rms": {"MODEL.SPATIALFLOW.RESIDUAL": "rms"},
    "learned": {"MODEL.SPATIALFLOW.RESIDUAL": "learned"},
    "pyramid": {"MODEL.SPATIALFLOW.POOL_FROM": "pyramid"},
    "atss": {"MODEL.SPATIALFLOW.ASSIGNMENT": "atss"},
    "all": REFINED,
}
EAGER = {**DENSE_EAGER, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0}


@pytest.fixture
def build(tiny_cfg):
    def make(changes=None):
        model = build_model(tiny_cfg(changes))
        torch.nn.init.normal_(model.box_head.cls_score.weight, std=0.1)
        return model

    return make


@pytest.mark.parametrize("changes", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("genotype", ["spatialflow", "parallel"])
def test_every_parameter_learns(build, make_input, changes, genotype):
    model = build({**changes, "MODEL.SPATIALFLOW.GENOTYPE": genotype}).train()
    with EventStorage():
        losses = model([make_input(100, 130), make_input(100, 129, things=3, seed=1)])
    of_regions = {"loss_region_cls", "loss_region_box"} if model.region_head else set()
    assert set(losses) == LOSSES | of_regions
    assert all(value.isfinite() and value > 0 for value in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("changes", KEYS.values(), ids=KEYS)
@torch.no_grad()
def test_images_of_all_sizes_are_predicted(build, make_input, changes):
    model = build({**changes, **EAGER}).eval()
    items = [make_input(height, width) for height, width in ((64, 64), (33, 100), (5, 7))]
    for item, output in zip(items, model(items), strict=True):
        size = (item["height"], item["width"])
        # All boxes of an untrained network may lie outside of a very small image.
        assert min(size) < 8 or len(output["instances"]) > 0
        assert len(output["instances"]) <= 8
        assert output["instances"].pred_masks.shape[1:] == size
        ids, segments = output["panoptic_seg"]
        assert ids.shape == size
        assert {s["id"] for s in segments} >= set(ids.unique().tolist()) - {0}


@torch.no_grad()
def test_batches_give_what_single_images_give(build, make_input):
    model = build({**REFINED, **EAGER}).eval()
    items = [make_input(64, 64), make_input(64, 64, seed=1)]
    for together, item in zip(model(items), items, strict=True):
        (alone,) = model([item])
        torch.testing.assert_close(
            together["instances"].scores, alone["instances"].scores, rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision(build, make_input, dtype):
    model, item = build({**REFINED, **EAGER, "MODEL.SPATIALFLOW.RESIDUAL": "learned"}), make_input()
    with torch.autocast("cpu", dtype), EventStorage():
        losses = model.train()([item])
        with torch.no_grad():
            (output,) = model.eval()([item])
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
    assert len(output["instances"]) > 0


@pytest.mark.parametrize("things", [0, 3])
def test_images_without_things_learn(build, make_input, things):
    model = build(REFINED).train()
    with EventStorage():
        losses = model([make_input(64, 96, things=0), make_input(64, 96, things=things, seed=1)])
    assert all(value.isfinite() for value in losses.values())


@torch.no_grad()
def test_augmentation_of_one_view_is_the_model(tiny_cfg, build, make_input):
    changes = {
        **REFINED,
        **EAGER,
        "MODEL.SPATIALFLOW.STUFF_FROM": "logits",
        "TEST.AUG.ENABLED": True,
        "TEST.AUG.MIN_SIZES": [64],
        "TEST.AUG.FLIP": False,
    }
    model = build(changes).eval()
    item = make_input(64, 96)
    (alone,) = model([item])
    (augmented,) = TestTimeAugmentation(tiny_cfg(changes), model).eval()([item])
    for name in ("pred_boxes", "scores"):
        one, other = (getattr(x["instances"], name) for x in (alone, augmented))
        one, other = (getattr(x, "tensor", x) for x in (one, other))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_regions_are_a_node_of_the_graph():
    topology = spatialflow_topology(region_levels=("p2", "p3", "p4", "p5"))
    region = topology.node("region.1")
    sources = {source.name for source, target in topology.edges() if target is region}
    assert sources == {"box.3", "stuff.3", "cls.3", "box.4", "stuff.4"}
    targets = {target.name for source, target in topology.edges() if source is region}
    assert targets == {"mask.1", "cls.4"}
    without = [(a.name, b.name) for a, b in spatialflow_topology().edges()]
    assert without == [
        (a.name, b.name) for a, b in topology.edges() if "region.1" not in (a.name, b.name)
    ]


def test_flows_into_regions_need_the_region_head(tiny_cfg, tmp_path):
    flow = Flow("stuff.4", "region.1", "gate", "conv_3x3")
    path = tmp_path / "genotype.json"
    Genotype(name="regions", flows=(flow,), choices={}, provenance={}).save(path)
    build_model(tiny_cfg({**REGIONS, "MODEL.SPATIALFLOW.GENOTYPE": str(path)}))
    with pytest.raises(GenotypeError, match=r"unknown node 'region\.1'"):
        build_model(tiny_cfg({"MODEL.SPATIALFLOW.GENOTYPE": str(path)}))


@pytest.mark.parametrize("port", ["input", "gate"])
def test_a_flow_reaches_boxes_by_the_region_node(tiny_cfg, tmp_path, make_input, port):
    flow = Flow("stuff.4", "region.1", port, "conv_3x3")
    path = tmp_path / "genotype.json"
    Genotype(name="regions", flows=(flow,), choices={}, provenance={}).save(path)
    model = build_model(tiny_cfg({**REFINED, "MODEL.SPATIALFLOW.GENOTYPE": str(path)})).train()
    with EventStorage():
        losses = model([make_input(100, 130)])
    (losses["loss_region_cls"] + losses["loss_region_box"]).backward()
    grads = [p.grad.abs().max() for p in model.flow_graph.flows.parameters()]
    assert max(grads) > 0


def test_flows_reach_levels_that_are_finer_than_their_source(tiny_cfg, tmp_path):
    """Most objects are pooled from P2, which neither the stuff branch nor the box branch has."""
    path = tmp_path / "genotype.json"
    flow = Flow("stuff.4", "mask.1", "input", "identity")
    Genotype(name="finer", flows=(flow,), choices={}, provenance={}).save(path)
    graph = build_model(tiny_cfg({**REFINED, "MODEL.SPATIALFLOW.GENOTYPE": str(path)})).flow_graph
    levels = {f"p{i}": torch.randn(1, 32, 2 ** (7 - i), 3 * 2 ** (7 - i)) for i in range(2, 8)}
    outputs = graph(levels)
    stuff, mask = outputs["stuff"], outputs["mask"]
    for level in ("p3", "p4", "p5"):
        torch.testing.assert_close(mask[level], levels[level] + stuff[level])
    enlarged = stuff["p3"].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(mask["p2"], levels["p2"] + enlarged)


def test_gates_into_the_pyramid_start_as_the_identity(tiny_cfg, tmp_path):
    flows = tuple(Flow("stuff.4", t, "gate", "conv_3x3") for t in ("region.1", "mask.1"))
    path = tmp_path / "genotype.json"
    Genotype(name="gates", flows=flows, choices={}, provenance={}).save(path)
    graph = build_model(tiny_cfg({**REFINED, "MODEL.SPATIALFLOW.GENOTYPE": str(path)})).flow_graph
    levels = {f"p{i}": torch.randn(1, 32, 2 ** (7 - i), 2 ** (7 - i)) for i in range(2, 8)}
    outputs = graph(levels)
    for branch in ("region", "mask"):
        for level, x in outputs[branch].items():
            assert torch.equal(x, levels[level])


def test_a_genotype_chooses_before_the_key(tiny_cfg, tmp_path):
    path = tmp_path / "genotype.json"
    choices = {"mask.1.conv": "deformable"}
    Genotype(name="chosen", flows=(), choices=choices, provenance={}).save(path)
    chosen = genotype_of(tiny_cfg({**REFINED, "MODEL.SPATIALFLOW.GENOTYPE": str(path)})).choices
    assert chosen == {"region.1.conv": "identity", "mask.1.conv": "deformable"}
    assert genotype_of(tiny_cfg()).choices == load_genotype("spatialflow").choices


@pytest.mark.parametrize(
    ("pool_from", "choices", "expected"),
    [
        ("branch", {}, ["box", "region", "mask", "cls"]),
        ("pyramid", {}, ["box", "cls"]),
        ("pyramid", {"mask.1.conv": "deformable"}, ["box", "mask", "cls"]),
        ("branch", {"mask.1.conv": "identity"}, ["box", "region", "cls"]),
    ],
)
def test_the_pyramid_is_added_where_there_are_convolutions(
    tiny_cfg, tmp_path, pool_from, choices, expected
):
    path = tmp_path / "genotype.json"
    Genotype(name="chosen", flows=(), choices=choices, provenance={}).save(path)
    keys = {"MODEL.SPATIALFLOW.POOL_FROM": pool_from, "MODEL.SPATIALFLOW.GENOTYPE": str(path)}
    assert list(build_model(tiny_cfg({**REFINED, **keys})).residual.branches) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 3},
            "POSITIVE_FRACTION: 0.25 .*1 or more objects",
        ),
        ({"MODEL.FPN.IN_FEATURES": []}, "MASK_IN_FEATURES.*from p2 on with res2"),
        ({"MODEL.ROI_BOX_HEAD.NUM_FC": 0}, "NUM_FC: 0 .*1 or more"),
    ],
)
def test_mistakes_are_named(tiny_cfg, changes, message):
    with pytest.raises(ValueError, match=message):
        build_model(tiny_cfg({**REFINED, **changes}))


def test_a_trunk_without_the_stride_of_p2_is_named(tiny_cfg, monkeypatch):
    trunk = build_model(tiny_cfg()).backbone.bottom_up
    monkeypatch.setattr("spatialflow.modeling.backbone.pyramid._resnet", lambda *_: trunk)
    with pytest.raises(ValueError, match=r"FPN\.IN_FEATURES: .*'res2'.* the trunk resnet has"):
        build_model(tiny_cfg(REFINED))


def test_search_spaces_have_the_region_node(tiny_cfg):
    def targets(changes):
        space = search_space(tiny_cfg(changes))
        space.check(load_genotype("spatialflow"))
        return {edge.flow.target for edge in space.edges}

    assert targets(REGIONS) - targets({}) == {"region.1"}


@pytest.mark.parametrize("pool_from", ["branch", "pyramid"])
def test_a_supernet_with_regions_learns(tiny_cfg, make_input, pool_from):
    changes = {
        **REFINED,
        "MODEL.SPATIALFLOW.POOL_FROM": pool_from,
        "MODEL.META_ARCHITECTURE": "SpatialFlowSupernet",
    }
    model = build_model(tiny_cfg(changes)).train()
    with EventStorage():
        losses = model([make_input(64, 96)])
    sum(losses.values()).backward()
    assert all(math.isfinite(value) for value in losses.values())
    assert all(p.grad is not None for p in model.architecture.parameters())


def test_a_flow_that_skips_a_level_of_its_source_is_not_enlarged(tiny_cfg, tmp_path):
    """P4 of the mask branch gets nothing, as the source has P3 and not P4."""
    path = tmp_path / "genotype.json"
    flow = Flow("stuff.4", "mask.1", "input", "identity")
    Genotype(name="skips", flows=(flow,), choices={}, provenance={}).save(path)
    keys = {
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["p3", "p5"],
        "MODEL.SPATIALFLOW.MASK_IN_FEATURES": ["p4", "p5"],
        "MODEL.SPATIALFLOW.POOL_FROM": "pyramid",
        "MODEL.SPATIALFLOW.GENOTYPE": str(path),
    }
    graph = build_model(tiny_cfg(keys)).flow_graph
    levels = {f"p{i}": torch.randn(1, 32, 2 ** (7 - i), 2 ** (7 - i)) for i in range(3, 8)}
    mask = graph(levels)["mask"]
    assert torch.equal(mask["p4"], levels["p4"])
    assert not torch.equal(mask["p5"], levels["p5"])


def test_topologies_follow_the_config(tiny_cfg):
    names = [branch.name for branch in topology_from_config(tiny_cfg(REFINED)).branches]
    assert names == ["box", "stuff", "region", "mask", "cls"]
    names = [branch.name for branch in topology_from_config(tiny_cfg()).branches]
    assert names == ["box", "stuff", "mask", "cls"]


GENOTYPES = ("refined_flows", "refined_gates", "task_cascade", "proposal_attention")


@pytest.mark.parametrize("genotype", GENOTYPES)
@torch.no_grad()
def test_flows_from_zero_start_as_no_flows(tiny_cfg, make_input, genotype):
    """Compare all results bit by bit, and see that flows at random change them."""
    keys = {
        **REFINED,
        **EAGER,
        "SEED": 3,
        "MODEL.RETINANET.NUM_CONVS": 2,
        "MODEL.SPATIALFLOW.FLOW_INIT": "zero",
    }
    item = make_input(64, 96)

    def logits(changes):
        model = build_model(tiny_cfg({**keys, **changes})).eval()
        maps = model.predict_maps(model.preprocess_image([item]))
        return [*maps.class_logits, maps.stuff_logits, *maps.mask_features]

    without = logits({"MODEL.SPATIALFLOW.GENOTYPE": "parallel"})
    from_zero = logits({"MODEL.SPATIALFLOW.GENOTYPE": genotype})
    assert all(torch.equal(a, b) for a, b in zip(without, from_zero, strict=True))
    at_random = logits(
        {"MODEL.SPATIALFLOW.GENOTYPE": genotype, "MODEL.SPATIALFLOW.FLOW_INIT": "random"}
    )
    added = any(flow.port == "input" for flow in load_genotype(genotype).flows)
    changed = any(not torch.equal(a, b) for a, b in zip(without, at_random, strict=True))
    assert changed == added


@pytest.mark.parametrize("genotype", GENOTYPES[:3])
def test_flows_into_regions_need_the_region_stage(build, genotype):
    with pytest.raises(GenotypeError, match=r"MODEL\.SPATIALFLOW\.GENOTYPE: .*region\.1"):
        build({"MODEL.SPATIALFLOW.GENOTYPE": genotype, "MODEL.RETINANET.NUM_CONVS": 2})


def test_what_cannot_start_at_zero_is_refused(build, tmp_path):
    path = tmp_path / "own.json"
    Genotype("own", (Flow("box.1", "cls.1", "input", "identity"),)).save(path)
    keys = {"MODEL.SPATIALFLOW.GENOTYPE": str(path)}
    build(keys)
    with pytest.raises(GenotypeError, match=r"box\.1 -> cls\.1.*FLOW_INIT.*conv_1x1"):
        build({**keys, "MODEL.SPATIALFLOW.FLOW_INIT": "zero"})
