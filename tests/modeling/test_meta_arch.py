"""The whole model, tested as in Detectron2's end-to-end tests."""

import math

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from detectron2.utils.visualizer import Visualizer

from spatialflow import SpatialFlow

LOSSES = {"loss_cls", "loss_box", "loss_mask", "loss_stuff"}
EAGER = {  # keep all detections of an untrained model
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": 0.0,
    "TEST.DETECTIONS_PER_IMAGE": 8,
}


@pytest.fixture
def build(tiny_cfg):
    """Return a function that builds a tiny model whose scores differ between positions."""

    def make(changes=None):
        model = build_model(tiny_cfg(changes))
        assert type(model) is SpatialFlow
        torch.nn.init.normal_(model.box_head.cls_score.weight, std=0.1)
        return model

    return make


def train_step(model, inputs):
    """Return the losses of a batch; every learning parameter must get a finite gradient."""
    model.train()
    with EventStorage():
        losses = model(inputs)
    assert set(losses) == LOSSES
    for name, value in losses.items():
        assert value.ndim == 0, name
        assert value.dtype == torch.float32, name
        assert torch.isfinite(value), name
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"no gradient for {name}"
            assert torch.isfinite(parameter.grad).all(), name
    return losses


@pytest.mark.parametrize("genotype", ["spatialflow", "parallel"])
def test_trains_on_odd_sizes_and_every_parameter_learns(build, make_input, genotype):
    model = build({"MODEL.SPATIALFLOW.GENOTYPE": genotype})
    losses = train_step(model, [make_input(100, 130), make_input(100, 129, things=3, seed=1)])
    assert all(value > 0 for value in losses.values())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().sum() > 0, f"zero gradient for {name}"


@pytest.mark.parametrize(
    ("first", "second", "zero"),
    [
        ({"things": 0}, {"things": 0}, {"loss_box", "loss_mask"}),
        ({"things": 0}, {"things": 2}, set()),
        ({"stuff": False}, {"stuff": False}, set()),
        ({"things": 0, "stuff": False}, {"things": 0, "stuff": False}, LOSSES - {"loss_cls"}),
        ({"height": 64, "width": 129}, {"height": 100, "width": 33, "things": 1}, set()),
    ],
    ids=["no things", "half empty", "no stuff", "all void", "two sizes"],
)
def test_trains_on_images_that_lack_something(build, make_input, first, second, zero):
    losses = train_step(build(), [make_input(**first), make_input(**second, seed=1)])
    assert {name for name, value in losses.items() if value == 0} == zero


def test_trains_where_all_things_are_crowd(build, make_input):
    """Train without instances, where the crowd's pixels are "things" for the stuff head."""
    crowd = make_input(things=2)
    crowd["instances"] = crowd["instances"][torch.zeros(2, dtype=torch.bool)]
    assert (crowd["sem_seg"] == 0).any()
    losses = train_step(build(), [crowd, crowd])
    assert losses["loss_box"] == losses["loss_mask"] == 0


def test_one_class_and_one_stuff_class(build, make_input):
    model = build({"MODEL.RETINANET.NUM_CLASSES": 1, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 2, **EAGER})
    batch = [make_input(num_classes=1, num_stuff=1)]
    train_step(model, batch)
    result = model.eval()(batch)[0]
    assert set(result["instances"].pred_classes.tolist()) == {0}
    assert result["sem_seg"].shape == (2, 100, 130)


def test_data_of_things_alone(build, make_input):
    model = build({"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 1, **EAGER})
    batch = [make_input(stuff=False)]
    assert train_step(model, batch)["loss_stuff"] == 0
    assert all(segment["isthing"] for segment in model.eval()(batch)[0]["panoptic_seg"][1])


@pytest.mark.parametrize("head", ["RETINANET", "SEM_SEG_HEAD"])
@pytest.mark.parametrize("count", [-1, 0])
def test_numbers_of_classes_must_be_known(build, head, count):
    with pytest.raises(ValueError, match=f"MODEL.{head}.NUM_CLASSES: {count}"):
        build({f"MODEL.{head}.NUM_CLASSES": count})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16, torch.float64])
def test_images_of_any_type_are_the_same(build, make_input, dtype):
    model, item = build(), make_input(64, 96)
    item["image"] = item["image"].round()
    expected = model.preprocess_image([item]).tensor
    images = model.preprocess_image([{**item, "image": item["image"].to(dtype)}]).tensor
    torch.testing.assert_close(images, expected, rtol=0, atol=0)


def test_images_are_normalised_then_padded_with_zeros(build, make_input):
    batch = [make_input(33, 64), make_input(40, 50, seed=1)]
    images = build().preprocess_image(batch)
    assert images.image_sizes == [(33, 64), (40, 50)]
    assert images.tensor.shape == (2, 3, 64, 64)
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    for padded, item in zip(images.tensor, batch, strict=True):
        height, width = item["height"], item["width"]
        expected = torch.zeros(3, 64, 64)
        expected[:, :height, :width] = (item["image"] - mean[:, None, None]) / std[:, None, None]
        torch.testing.assert_close(padded, expected)


def test_losses_are_means_over_the_batch(build, make_input):
    """Check that the same image twice has the loss of one, and that order does not matter."""
    model = build().train()
    small, large = make_input(64, 64), make_input(64, 96, seed=1)
    with EventStorage():
        alone, together = model([small]), model([small, small])
        mixed = model([large, small]), model([small, large])
    for name in LOSSES:
        torch.testing.assert_close(together[name], alone[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mixed[0][name], mixed[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_overfitting_one_batch(tiny_cfg, make_input):
    widths = {"MODEL.RESNETS.STEM_OUT_CHANNELS": 32, "MODEL.RESNETS.RES2_OUT_CHANNELS": 32}
    model = build_model(tiny_cfg({"MODEL.RESNETS.NORM": "GN", **widths})).train()
    batch = [make_input(64, 96, things=2), make_input(64, 65, things=1, seed=1)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    history = []
    with EventStorage():
        for _ in range(50):
            losses = model(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            history.append({name: value.item() for name, value in losses.items()})
    for name in LOSSES:
        assert history[-1][name] < 0.6 * history[0][name], name


def test_loss_weights_are_those_of_the_reference(build, make_input):
    """Check the first losses: 0.25 times the initial cross-entropy, and the prior's focal loss."""
    model = build({"MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 0.25}).train()
    for module in (model.stuff_head.predictor, model.box_head.cls_score):
        torch.nn.init.zeros_(module.weight)
    torch.nn.init.zeros_(model.stuff_head.predictor.bias)
    with EventStorage():
        losses = model([make_input(64, 64)])
    assert losses["loss_stuff"].item() == pytest.approx(0.25 * math.log(4), rel=1e-5)


def test_inference_in_16_bits_leaves_training_alone(build, make_input):
    """Compare the key with autocast around the model; scores and logits are float32."""
    plain = build(EAGER)
    half = build({**EAGER, "TEST.AMP.ENABLED": True})
    half.load_state_dict(plain.state_dict())
    batch = [make_input(64, 96)]
    with EventStorage():
        torch.testing.assert_close(half.train()(batch), plain.train()(batch))
    (given,), (full,) = half.eval()(batch), plain.eval()(batch)
    with torch.autocast("cpu", torch.bfloat16):
        (expected,) = plain(batch)
    assert torch.equal(given["sem_seg"], expected["sem_seg"])
    assert torch.equal(given["instances"].scores, expected["instances"].scores)
    assert given["sem_seg"].dtype == given["instances"].scores.dtype == torch.float32
    assert not torch.equal(given["sem_seg"], full["sem_seg"])
    error = (given["sem_seg"] - full["sem_seg"]).abs().mean()
    assert error < 0.1 * full["sem_seg"].std()


@pytest.mark.parametrize("stuff_from", ["labels", "logits"])
@pytest.mark.parametrize(("height", "width"), [(100, 129), (50, 65), (201, 260)])
def test_results_are_detectron2s_at_the_original_size(build, make_input, stuff_from, height, width):
    model = build({**EAGER, "MODEL.SPATIALFLOW.STUFF_FROM": stuff_from}).eval()
    image = {"image": make_input(100, 129)["image"], "height": height, "width": width}
    plain = {"image": make_input(64, 64)["image"]}
    first, second = model([image, plain])
    assert second["panoptic_seg"][0].shape == (64, 64)
    assert set(first) == {"instances", "sem_seg", "panoptic_seg"}
    instances = first["instances"]
    assert instances.image_size == (height, width)
    assert 0 < len(instances) <= 8
    assert instances.pred_masks.shape == (len(instances), height, width)
    assert instances.pred_masks.dtype == torch.bool
    assert set(instances.get_fields()) == {"pred_boxes", "scores", "pred_classes", "pred_masks"}
    boxes = instances.pred_boxes.tensor
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([width, height, width, height])).all()
    assert (instances.scores[:-1] >= instances.scores[1:]).all()
    assert first["sem_seg"].shape == (4, height, width)
    ids, segments = first["panoptic_seg"]
    assert ids.shape == (height, width)
    assert ids.dtype == torch.int32
    assert {s["id"] for s in segments} == set(ids.unique().tolist()) - {0}
    assert all(s["category_id"] in (range(3) if s["isthing"] else range(1, 4)) for s in segments)


def test_evaluation_repeats_itself_and_needs_no_batch(build, make_input):
    """Check that neither training in between nor the order of a batch changes results."""
    model = build(EAGER).eval()
    batch = [make_input(64, 96), make_input(64, 96, seed=1)]
    first = model(batch)
    train_step(model, batch)
    again = model.eval()(batch[::-1])[::-1]
    for one, other in zip(first, again, strict=True):
        torch.testing.assert_close(one["sem_seg"], other["sem_seg"], rtol=1e-4, atol=1e-4)
        assert torch.equal(one["panoptic_seg"][0], other["panoptic_seg"][0])
    assert torch.equal(model(batch)[0]["sem_seg"], model(batch)[0]["sem_seg"])


@torch.no_grad()
def test_a_batch_gives_what_single_images_give(build, make_input):
    """Group norm sees the padding of an image, which a larger one beside it would change."""
    model = build({**EAGER, "MODEL.RETINANET.NORM": "GN"}).eval()
    sizes = [(64, 96), (100, 130), (60, 90), (40, 200)]
    batch = [make_input(*size, seed=i) for i, size in enumerate(sizes)]
    for item, together in zip(batch, model(batch), strict=True):
        (alone,) = model([item])
        torch.testing.assert_close(together["sem_seg"], alone["sem_seg"], rtol=0, atol=1e-4)
        assert torch.equal(together["panoptic_seg"][0], alone["panoptic_seg"][0])
        boxes = (x["instances"].pred_boxes.tensor for x in (together, alone))
        torch.testing.assert_close(*boxes, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("stuff_from", "resized"), [("labels", "nearest"), ("logits", "bilinear")])
def test_where_the_fusions_stuff_comes_from(build, make_input, stuff_from, resized):
    """Check labels in blocks of 2 × 2 at twice the size, and a finer border from logits."""
    model = build(
        {
            "MODEL.SPATIALFLOW.STUFF_FROM": stuff_from,
            "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": 1,
            "MODEL.RETINANET.SCORE_THRESH_TEST": 1.0,
        }
    ).eval()
    torch.nn.init.normal_(model.stuff_head.predictor.bias, std=0.01)
    result = model([{"image": make_input(64, 64)["image"], "height": 128, "width": 128}])[0]
    ids, segments = result["panoptic_seg"]
    categories = {0: 0, **{s["id"]: s["category_id"] for s in segments}}
    labels = ids.apply_(categories.get).long()
    blocks = labels.unfold(0, 2, 2).unfold(1, 2, 2).flatten(2)
    assert len(labels.unique()) > 1
    assert (blocks == blocks[..., :1]).all() == (resized == "nearest")
    if resized == "bilinear":
        assert torch.equal(labels, result["sem_seg"].argmax(dim=0))


def test_wrong_source_of_stuff(build):
    with pytest.raises(ValueError, match=r"STUFF_FROM.*'pixels'.*labels"):
        build({"MODEL.SPATIALFLOW.STUFF_FROM": "pixels"})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_do_not_stop_inference(build, make_input, value):
    model = build(EAGER).eval()
    for parameter in model.box_head.parameters():
        parameter.data.fill_(value)
    result = model([make_input(64, 64)])[0]
    assert len(result["instances"]) == 0


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_default_predictor_and_visualizer(tiny_cfg, scenes, tmp_path, channels):
    """Run Detectron2's own predictor and visualiser: read, resize, convert from BGR, draw."""
    changes = {
        **EAGER,
        "DATASETS.TEST": (scenes,),
        "MODEL.WEIGHTS": str(tmp_path / "model.pth"),
        "MODEL.RETINANET.NUM_CLASSES": 5,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5,
        "INPUT.FORMAT": channels,
    }
    cfg = tiny_cfg(changes)
    model = build_model(cfg).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    picture = np.random.default_rng(0).integers(0, 256, (64, 90, 3), dtype=np.uint8)
    result = DefaultPredictor(cfg)(picture[:, :, ::-1])
    read = picture if channels == "RGB" else picture[:, :, ::-1]
    with torch.no_grad():
        expected = model([{"image": torch.from_numpy(read.transpose(2, 0, 1).copy())}])[0]
    torch.testing.assert_close(result["sem_seg"], expected["sem_seg"])
    ids, segments = result["panoptic_seg"]
    assert segments
    drawn = Visualizer(picture, MetadataCatalog.get(scenes)).draw_panoptic_seg(ids, segments)
    assert drawn.get_image().shape == picture.shape
    assert (drawn.get_image() != picture).mean() > 0.2
