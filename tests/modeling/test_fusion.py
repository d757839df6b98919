"""Panoptic fusion, compared with an independent version of the published steps, pixel by pixel."""

import json

import numpy as np
import pytest
import torch
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import BitMasks, Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from panopticapi.utils import rgb2id
from PIL import Image

from spatialflow.modeling.fusion import PanopticFusion

HEIGHT, WIDTH = 12, 15


def detections(masks, scores, classes, boxes=None):
    if isinstance(masks, list):
        masks = torch.stack(masks) if masks else torch.zeros(0, HEIGHT, WIDTH)
    masks = torch.as_tensor(masks, dtype=torch.bool)
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_masks = masks
    instances.scores = torch.tensor(scores, dtype=torch.float32)
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    if boxes is None:
        boxes = torch.zeros(len(masks), 4)
    instances.pred_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    return instances


def fusion(**changes):
    options = {
        "score_threshold": 0.37,
        "overlap_threshold": 0.37,
        "stuff_area_limit": 4,
        "box_fill": False,
        "box_fill_threshold": 0.5,
    }
    return PanopticFusion(**{**options, **changes})


def fuse_slowly(rule, instances, stuff):
    """Return the owner of each pixel (H, W), None or a key, and key → (is thing, category)."""
    owner = np.full(stuff.shape, None, dtype=object)
    categories = {}
    scores = instances.scores.tolist()
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    order = [i for i in order if scores[i] >= rule.score_threshold]
    accepted = np.zeros(stuff.shape, dtype=bool)
    pixels = [(y, x) for y in range(stuff.shape[0]) for x in range(stuff.shape[1])]
    for i in order:
        mask = instances.pred_masks[i].numpy()
        area = sum(bool(mask[p]) for p in pixels)
        overlap = sum(bool(mask[p] and accepted[p]) for p in pixels)
        if area == 0 or overlap / area > rule.overlap_threshold:
            continue
        for p in pixels:
            if mask[p] and owner[p] is None:
                owner[p] = ("thing", i)
                categories["thing", i] = (True, int(instances.pred_classes[i]))
        accepted |= mask
    for label in sorted(set(stuff.reshape(-1).tolist()) - {0}):
        free = [p for p in pixels if owner[p] is None and stuff[p] == label]
        if free and len(free) >= rule.stuff_area_limit:
            categories["stuff", label] = (False, label)
            for p in free:
                owner[p] = ("stuff", label)
    for i in order if rule.box_fill else ():
        left, top, right, bottom = (int(v) for v in instances.pred_boxes.tensor[i].tolist())
        inside = [(y, x) for y, x in pixels if top <= y < bottom and left <= x < right]
        free = [p for p in inside if owner[p] is None]
        if free and len(free) / len(inside) >= rule.box_fill_threshold:
            categories["thing", i] = (True, int(instances.pred_classes[i]))
            for p in free:
                owner[p] = ("thing", i)
    return owner, categories


@st.composite
def images(draw):
    """Draw rectangular masks, unrelated boxes (some empty), blocks of stuff and distinct scores."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    count = draw(st.integers(0, 6))
    masks = np.zeros((count, HEIGHT, WIDTH), dtype=bool)
    boxes = np.zeros((count, 4))
    for i in range(count):
        ys, xs = np.sort(rng.integers(0, HEIGHT + 1, 2)), np.sort(rng.integers(0, WIDTH + 1, 2))
        masks[i, ys[0] : ys[1], xs[0] : xs[1]] = rng.random() < 0.9
        by, bx = np.sort(rng.uniform(0, HEIGHT, 2)), np.sort(rng.uniform(0, WIDTH, 2))
        boxes[i] = bx[0], by[0], bx[1], by[1]
        if rng.random() < 0.2:
            boxes[i, 2] = boxes[i, 0] + 0.3
    scores = rng.permutation(np.linspace(0.2, 0.95, count))
    blocks = rng.integers(0, 4, (3, 3))
    stuff = np.kron(blocks, np.ones((HEIGHT // 3, WIDTH // 3), dtype=np.int64))
    return detections(masks, scores, rng.integers(0, 3, count), boxes), torch.from_numpy(stuff)


rules = st.builds(
    fusion,
    score_threshold=st.sampled_from([0.0, 0.37, 0.5, 0.7]),
    overlap_threshold=st.sampled_from([0.0, 0.37, 0.5, 1.0]),
    stuff_area_limit=st.sampled_from([0, 1, 20, 41]),
    box_fill=st.booleans(),
    box_fill_threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)


@settings(max_examples=150)
@given(images(), rules)
def test_fusion_equals_the_slow_version(image, rule):
    ids, segments = rule(*image)
    owner, categories = fuse_slowly(rule, *image)
    by_id = {info["id"]: (info["isthing"], info["category_id"]) for info in segments}
    pairs = {(int(i), key) for i, key in zip(ids.flatten(), owner.flatten(), strict=True)}
    # Each owner has one id, and pixels without an owner have id 0: the partitions are equal.
    assert len({i for i, _ in pairs}) == len({key for _, key in pairs}) == len(pairs)
    assert all((i == 0) == (key is None) for i, key in pairs)
    assert {i: categories[key] for i, key in pairs if key is not None} == {
        i: by_id[i] for i, key in pairs if key is not None
    }


def fuse_by_detectron2(rule, instances, stuff):
    """Return Detectron2's ids and segments, then fill boxes one after another, best score first."""
    ids, segments = combine_semantic_and_instance_outputs(
        instances, stuff, rule.overlap_threshold, rule.stuff_area_limit, rule.score_threshold
    )
    scores, classes = instances.scores.tolist(), instances.pred_classes.tolist()
    of_instance = {info["instance_id"]: info["id"] for info in segments if info["isthing"]}
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    for i in order if rule.box_fill else ():
        if scores[i] < rule.score_threshold:
            continue
        left, top, right, bottom = instances.pred_boxes.tensor[i].long().clamp(min=0).tolist()
        window = ids[top:bottom, left:right]
        empty = window == 0
        if not empty.any() or empty.sum() / empty.numel() < rule.box_fill_threshold:
            continue
        if i not in of_instance:
            of_instance[i] = len(segments) + 1
            new = {"id": of_instance[i], "isthing": True, "score": scores[i]}
            segments.append({**new, "category_id": classes[i], "instance_id": i})
        window[empty] = of_instance[i]
    # Detectron2 also lists segments without pixels.
    return ids, [info for info in segments if (ids == info["id"]).any()]


def assert_equal_to_detectron2(rule, instances, stuff):
    ids, segments = fuse_by_detectron2(rule, instances, stuff)
    mine = rule(instances, stuff)
    assert torch.equal(mine[0], ids)
    assert mine[1] == segments


@pytest.mark.parametrize("cases", [200, pytest.param(10_000, marks=pytest.mark.soak)])
def test_it_is_detectron2s(cases):
    """Compare ids, order and entries."""

    @settings(max_examples=cases)
    @given(images(), rules)
    def compare(image, rule):
        instances, stuff = image
        if len(instances):
            # In single precision the threshold is lower than in double precision: neither takes it.
            instances.scores[0] = rule.score_threshold
        assert_equal_to_detectron2(rule, instances, stuff)

    compare()


@pytest.mark.parametrize("images", [3, pytest.param(None, marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    "folder", ["coco_panoptic_train100", "nuclei_train433", "facades_train278"]
)
def test_it_is_detectron2s_on_real_images(real_data, folder, images):
    """Detect each thing of the ground truth twice, moved, between moved labels of stuff."""
    content = json.loads((real_data / folder / "panoptic.json").read_text())
    kinds = {c["id"]: (bool(c["isthing"]), i + 1) for i, c in enumerate(content["categories"])}
    rng = np.random.default_rng(0)
    for entry in content["annotations"][:images]:
        ids = rgb2id(
            np.asarray(
                Image.open(real_data / folder / "panoptic" / entry["file_name"]).convert("RGB")
            )
        )
        stuff = np.zeros(ids.shape, dtype=np.int64)
        masks, classes = [], []
        for segment in entry["segments_info"]:
            isthing, number = kinds[segment["category_id"]]
            mask = np.roll(ids == segment["id"], rng.integers(-4, 5, 2), axis=(0, 1))
            if isthing:
                masks += [mask, np.roll(mask, rng.integers(-9, 10, 2), axis=(0, 1))]
                classes += [number] * 2
            else:
                stuff[mask] = number
        pred_masks = torch.from_numpy(np.stack(masks or [np.zeros(ids.shape, dtype=bool)]))
        instances = Instances(
            ids.shape,
            pred_masks=pred_masks,
            pred_boxes=BitMasks(pred_masks).get_bounding_boxes(),
            scores=torch.from_numpy(rng.permutation(np.linspace(0.2, 1, len(pred_masks)))).float(),
            pred_classes=torch.tensor(classes or [0]),
        )
        rule = fusion(stuff_area_limit=100, box_fill=bool(rng.integers(2)))
        assert_equal_to_detectron2(rule, instances, torch.from_numpy(stuff))


def test_equal_scores_stay_in_the_order_of_the_detections():
    masks = torch.ones(3, HEIGHT, WIDTH)
    masks[1:, :, 4:] = 0
    found = detections(masks, [0.9, 0.9, 0.9], [0, 1, 2])
    ids, segments = fusion()(found, torch.zeros(HEIGHT, WIDTH, dtype=torch.int64))
    assert bool((ids == 1).all())
    assert [info["instance_id"] for info in segments] == [0]


@settings(max_examples=150)
@given(images(), rules)
def test_segments_and_pixels_agree(image, rule):
    """Check that every id has pixels and an entry; the evaluator refuses others."""
    instances, stuff = image
    before = stuff.clone()
    ids, segments = rule(instances, stuff)
    assert ids.dtype == torch.int32
    assert ids.shape == stuff.shape
    listed = [info["id"] for info in segments]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(ids.unique().tolist()) - {0}
    assert torch.equal(stuff, before), "the labels were changed"
    for info in segments:
        if info["isthing"]:
            i = info["instance_id"]
            assert info["category_id"] == instances.pred_classes[i]
            assert info["score"] == pytest.approx(instances.scores[i].item())
        else:
            assert info["category_id"] in stuff


def rectangle(top, bottom, left, right):
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


NO_STUFF = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)


def test_the_better_score_is_painted_first_and_keeps_its_pixels():
    image = detections([rectangle(0, 4, 0, 10), rectangle(0, 4, 7, 15)], [0.5, 0.9], [1, 2])
    ids, segments = fusion()(image, NO_STUFF)
    assert [(s["category_id"], s["instance_id"]) for s in segments] == [(2, 1), (1, 0)]
    assert ids[0].tolist() == [2] * 7 + [1] * 8


@pytest.mark.parametrize(("columns", "kept"), [(3, True), (4, False)])
def test_overlap_threshold(columns, kept):
    """Cover three or four of ten columns: 0.3 or 0.4 of the mask, where 0.37 is allowed."""
    image = detections([rectangle(0, 4, 0, columns), rectangle(0, 4, 0, 10)], [0.9, 0.5], [0, 1])
    assert len(fusion()(image, NO_STUFF)[1]) == 1 + kept


@pytest.mark.parametrize(("score", "kept"), [(0.5, True), (0.4999, False)])
def test_score_threshold(score, kept):
    image = detections([rectangle(0, 4, 0, 4)], [score], [0])
    assert len(fusion(score_threshold=0.5)(image, NO_STUFF)[1]) == kept


@pytest.mark.parametrize(("limit", "kept"), [(20, True), (21, False)])
def test_stuff_area_counts_what_is_left(limit, kept):
    stuff = NO_STUFF.clone()
    stuff[:4, :10] = 3
    image = detections([rectangle(0, 4, 0, 5)], [0.9], [0])
    _, segments = fusion(stuff_area_limit=limit)(image, stuff)
    assert [s["category_id"] for s in segments if not s["isthing"]] == [3] * kept


@pytest.mark.parametrize(("columns", "filled"), [(5, True), (6, False)])
def test_box_filling_threshold(columns, filled):
    """Fill a box of ten columns, of which five or six are stuff."""
    stuff = NO_STUFF.clone()
    stuff[:4, :columns] = 1
    image = detections([rectangle(0, 0, 0, 0)], [0.9], [2], [[0, 0, 10.9, 4.9]])
    ids, segments = fusion(box_fill=True)(image, stuff)
    assert [s["category_id"] for s in segments if s["isthing"]] == [2] * filled
    assert (ids[:4, columns:10] > 0).all() == filled
    assert (ids[:4, :columns] == 1).all()
    assert not ids[4:].any()
    assert not ids[:, 10:].any()


def test_box_filling_keeps_the_id_of_a_painted_mask():
    image = detections([rectangle(0, 4, 0, 4)], [0.9], [2], [[0, 0, 10, 4]])
    ids, segments = fusion(box_fill=True)(image, NO_STUFF)
    assert len(segments) == 1
    assert (ids[:4, :10] == segments[0]["id"]).all()


@pytest.mark.parametrize("box", [[3.2, 3.1, 3.9, 8.0], [5, 5, 5, 5], [WIDTH, 0, WIDTH, HEIGHT]])
def test_boxes_without_pixels_fill_nothing(box):
    image = detections([rectangle(0, 0, 0, 0)], [0.9], [2], [box])
    ids, segments = fusion(box_fill=True, box_fill_threshold=0.0)(image, NO_STUFF)
    assert segments == []
    assert not ids.any()


def test_no_detections_at_all():
    ids, segments = fusion(box_fill=True)(detections([], [], []), NO_STUFF + 2)
    assert segments == [{"id": 1, "isthing": False, "category_id": 2, "area": HEIGHT * WIDTH}]
    assert (ids == 1).all()
