"""Extreme inputs in training and inference: sizes, counts, boxes and numbers.

The tests follow Detectron2's end-to-end tests. Finite inputs must give finite losses and gradients.
Every learning parameter must get a gradient, because distributed training waits for each of them.
"""

import dataclasses
import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from spatialflow.utils.errors import NonFiniteError

KINDS = [("spatialflow", "GN"), ("parallel", ""), ("spatialflow", ""), ("parallel", "GN")]
SIZES = [(1, 1), (1, 7), (33, 1), (64, 64), (200, 250), (200, 249), (1, 4000), (4000, 16)]
VOID = 255


@pytest.fixture
def build(tiny_cfg):
    """Return a function that builds a tiny model without score thresholds."""

    def make(genotype="spatialflow", norm="GN", **changes):
        keys = {
            "MODEL.SPATIALFLOW.GENOTYPE": genotype,
            "MODEL.RETINANET.NORM": norm,
            "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
            "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": 0.0,
            "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": 0,
            "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH": 1.0,
            "TEST.DETECTIONS_PER_IMAGE": 20,
        }
        model = build_model(tiny_cfg({**keys, **changes}))
        torch.nn.init.normal_(model.box_head.cls_score.weight, std=0.1)
        return model

    return make


def scene(height, width, boxes=(), *, stuff=1, num_classes=3, image=None):
    """Return an image with things that fill the given boxes, in front of one class of stuff."""
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    instances = Instances((height, width))
    instances.gt_masks = BitMasks(masks)
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    instances.gt_classes = torch.arange(len(boxes)) % num_classes
    sem_seg = torch.full((height, width), stuff)
    sem_seg[masks.any(dim=0)] = 0
    if image is None:
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return {"image": image, "instances": instances, "sem_seg": sem_seg}


def scattered(height, width, count):
    """Return boxes with sides of one to five pixels, spread over an image."""
    corners = [(i * 37 % width, i * 23 % height) for i in range(count)]
    return [(x, y, min(x + 1 + i % 5, width), y + 1) for i, (x, y) in enumerate(corners)]


def crowds_only(height, width):
    """Return an image as the mapper returns crowds: no instance, but pixels of things."""
    item = scene(height, width)
    item["sem_seg"][: height // 2] = 0
    return item


def step(model, batch):
    """Return the losses of a batch after the backward pass, which must reach all parameters."""
    model.train().zero_grad()
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, f"unused: {name}"
    return losses


def assert_trains(model, batch):
    losses = step(model, batch)
    for name, value in losses.items():
        assert torch.isfinite(value), name
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    return losses


def assert_predicts(model, batch):
    """Run inference and check that the results agree with each other and with their size."""
    results = model.eval()(batch)
    assert len(results) == len(batch)
    for item, result in zip(batch, results, strict=True):
        size = (
            item.get("height", item["image"].shape[1]),
            item.get("width", item["image"].shape[2]),
        )
        instances, (ids, segments) = result["instances"], result["panoptic_seg"]
        assert instances.image_size == size
        assert instances.pred_masks.shape == (len(instances), *size)
        assert len(instances) <= model.box_head.selection.detections
        assert instances.pred_boxes.tensor.isfinite().all()
        assert result["sem_seg"].shape[1:] == ids.shape == size
        listed = [segment["id"] for segment in segments]
        assert len(set(listed)) == len(listed)
        assert set(listed) == set(ids.unique().tolist()) - {0}
    return results


@pytest.mark.parametrize(("genotype", "norm"), KINDS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_sizes(build, genotype, norm, height, width):
    model = build(genotype, norm)
    third = (0, 0, math.ceil(width / 3), math.ceil(height / 3))
    assert_trains(model, [scene(height, width, [third])])
    assert_trains(model, [scene(height, width)])
    assert_predicts(model, [scene(height, width)])


@pytest.mark.parametrize("norm", ["", "GN", "LN", "FrozenBN"])
def test_one_pixel_with_every_norm(build, norm):
    keys = ("RETINANET", "FPN", "SEM_SEG_HEAD", "ROI_MASK_HEAD")
    model = build(norm=norm, **{f"MODEL.{key}.NORM": norm for key in keys})
    assert_trains(model, [scene(1, 1, [(0, 0, 1, 1)])])
    assert_predicts(model, [scene(1, 1)])


@pytest.mark.parametrize(("genotype", "norm"), KINDS[:2])
@pytest.mark.parametrize("count", [0, 1, 2, 100, 300])
def test_counts(build, genotype, norm, count):
    keys = {"TEST.DETECTIONS_PER_IMAGE": count or 1, "MODEL.RETINANET.NMS_THRESH_TEST": 1.0}
    model = build(genotype, norm, **keys)
    batch = [scene(96, 80, scattered(96, 80, count))]
    assert_trains(model, batch)
    assert len(assert_predicts(model, batch)[0]["instances"]) == (count or 1)
    head = model.box_head
    head.selection = dataclasses.replace(head.selection, score_threshold=1.0)
    assert len(assert_predicts(model, batch)[0]["instances"]) == 0


BATCHES = {
    "mixed sizes": lambda: [
        scene(1, 1, [(0, 0, 1, 1)]),
        scene(64, 100, scattered(64, 100, 5)),
        scene(33, 2, stuff=VOID),
    ],
    "empty": lambda: [scene(40, 50), scene(50, 40)],
    "half empty": lambda: [scene(40, 50), scene(50, 40, scattered(50, 40, 3))],
    "crowds only": lambda: [crowds_only(40, 50), crowds_only(50, 40)],
    "all void": lambda: [scene(40, 50, stuff=VOID)] * 2,
    "nothing but void and a crowd": lambda: [scene(40, 50, stuff=VOID), crowds_only(40, 50)],
    "no stuff": lambda: [scene(40, 50, scattered(40, 50, 3), stuff=VOID)] * 2,
    "a thing that fills the image": lambda: [scene(40, 50, [(0, 0, 50, 40)])],
    "things that fill the image": lambda: [
        scene(40, 50, [(0, 0, 50, 40)] * 3),
        scene(1, 1, [(0, 0, 1, 1)]),
    ],
    "single pixels": lambda: [scene(40, 50, [(x, x, x + 1, x + 1) for x in range(0, 40, 3)])],
    "pixels in corners": lambda: [scene(40, 50, [(0, 0, 1, 1), (49, 0, 50, 1), (49, 39, 50, 40)])],
    "lines": lambda: [scene(40, 50, [(0, 3, 50, 4), (7, 0, 8, 40)])],
}


@pytest.mark.parametrize(("genotype", "norm"), KINDS[:2])
@pytest.mark.parametrize("name", BATCHES)
def test_batches(build, genotype, norm, name):
    model = build(genotype, norm)
    batch = BATCHES[name]()
    losses = assert_trains(model, batch)
    things = sum(len(item["instances"]) for item in batch)
    assert (losses["loss_mask"] > 0) == (losses["loss_box"] > 0) == (things > 0)
    labelled = any((item["sem_seg"] != VOID).any() for item in batch)
    assert (losses["loss_stuff"] > 0) == labelled
    assert_predicts(model, batch)


@pytest.mark.parametrize(
    "box", [(5, 5, 5, 9), (5, 5, 9, 5), (5, 5, 5, 5), (0, 0, 0, 0), (50, 40, 50, 40)]
)
def test_boxes_without_area(build, box):
    """Check that a box without area teaches no box. The mapper makes none; other code may."""
    item = scene(40, 50, [(5, 5, 6, 6), (20, 20, 40, 35)])
    item["instances"].gt_boxes.tensor[0] = torch.tensor(box)
    assert_trains(build(), [item, scene(40, 50)])
    item["instances"] = item["instances"][:1]
    losses = assert_trains(build(), [item])
    assert losses["loss_box"] == losses["loss_mask"] == 0


def test_boxes_far_outside_the_image(build):
    item = scene(40, 50, [(5, 5, 6, 6), (20, 20, 40, 35)])
    item["instances"].gt_boxes = Boxes(
        torch.tensor([[-99.0, -99.0, 199.0, 199.0], [900.0, 900.0, 999.0, 999.0]])
    )
    assert_trains(build(), [item])


@pytest.mark.parametrize("mask_levels", [["p4"], ["p3", "p4", "p5"]])
@pytest.mark.parametrize("things", [0, 3])
def test_one_class_and_one_kind_of_stuff(build, mask_levels, things):
    keys = {
        "MODEL.RETINANET.NUM_CLASSES": 1,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 2,
        "MODEL.SPATIALFLOW.MASK_IN_FEATURES": mask_levels,
    }
    model = build(**keys)
    batch = [scene(40, 50, scattered(40, 50, things), num_classes=1)]
    assert_trains(model, batch)
    assert_predicts(model, batch)


@pytest.mark.parametrize("stuff_from", ["labels", "logits"])
@pytest.mark.parametrize("fill", [False, True])
def test_results_of_any_size(build, stuff_from, fill):
    keys = {"MODEL.SPATIALFLOW.STUFF_FROM": stuff_from, "MODEL.SPATIALFLOW.BOX_FILL.ENABLED": fill}
    model = build(**keys)
    for height, width in [(1, 1), (1, 3), (777, 3), (2, 500), (63, 95), (65, 97), (640, 960)]:
        item = {**scene(64, 96), "height": height, "width": width}
        small = {**scene(1, 2), "height": width, "width": height}
        assert_predicts(model, [item, small])


@pytest.mark.slow
def test_a_large_image(build):
    model = build(**{"TEST.DETECTIONS_PER_IMAGE": 100})
    assert_predicts(model, [{**scene(2000, 2000), "height": 3000, "width": 1500}])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_image_that_is_not_finite_is_named_in_inference(build, value):
    model = build().eval()
    batch = [scene(40, 50), scene(40, 50, image=torch.rand(3, 40, 50) * 255)]
    assert_predicts(model, batch)
    batch[1]["image"][2, 7, 9] = value
    with pytest.raises(NonFiniteError, match="image 1 of the batch: .*NaN or infinity"):
        model(batch)
    batch[1]["file_name"] = "folder/broken.tif"
    with pytest.raises(NonFiniteError, match="folder/broken.tif: .*NaN or infinity"):
        model(batch)
    batch[1]["image"] = batch[1]["image"].half()
    with pytest.raises(NonFiniteError, match="folder/broken.tif"):
        model(batch)


@pytest.mark.parametrize(("genotype", "norm"), KINDS[:2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("things", [0, 3])
def test_an_image_that_is_not_finite_gives_losses_of_nan(build, genotype, norm, value, things):
    """Check that no assertion fails before the trainer can report the loss."""
    model = build(genotype, norm)
    batch = [scene(40, 50, scattered(40, 50, things)), scene(40, 50)]
    batch[0]["image"] = torch.full((3, 40, 50), value)
    losses = step(model, batch)
    assert losses["loss_cls"].isnan()
    assert losses["loss_stuff"].isnan()
    assert losses["loss_mask"].isnan() == (things > 0)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e6, 1e30, 3e38])
def test_numbers_that_are_huge_or_tiny(build, scale):
    model = build()
    images = [torch.rand(3, 40, 50) * scale for _ in range(2)]
    batch = [scene(40, 50, scattered(40, 50, 3), image=image) for image in images]
    losses = step(model, batch)
    if scale <= 1e6:
        assert all(value.isfinite() for value in losses.values())
    assert_predicts(model, batch)


PARTS = ["backbone", "flow_graph", "box_head", "mask_head", "stuff_head"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(build, part, value):
    """Fill one part at a time with NaN or infinity; no assertion may fail."""
    model = build()
    things = scene(40, 50, scattered(40, 50, 3))
    for parameter in getattr(model, part).parameters():
        parameter.data.fill_(value)
    losses = step(model, [things, scene(40, 50)])
    assert any(not loss.isfinite() for loss in losses.values())
    step(model, [scene(40, 50)])
    assert_predicts(model, [things])


@pytest.mark.parametrize("part", PARTS)
def test_one_weight_that_is_not_finite(build, part):
    model = build()
    for parameter in list(getattr(model, part).parameters())[-3:]:
        parameter.data.view(-1)[0] = math.nan
    batch = [scene(40, 50, scattered(40, 50, 3)), scene(40, 50)]
    losses = step(model, batch)
    assert any(not loss.isfinite() for loss in losses.values())
    assert_predicts(model, batch)


def test_nothing_to_see(build):
    model = build()
    with pytest.raises(ValueError, match="one or more images expected, none given"):
        model([])
    for shape in [(3, 0, 5), (3, 5, 0)]:
        with pytest.raises(ValueError, match="image 0 of the batch: .*no pixels"):
            model([{"image": torch.zeros(shape)}])
