"""PQ worked out by hand, groups that do not exist, remaps and splits, intervals."""

import json
import math

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils import comm
from PIL import Image

from spatialflow.data import panoptic_ground_truth
from spatialflow.evaluation import (
    RESULTS_FILE,
    PanopticEvaluator,
    bootstrap_pq,
    build_evaluator,
    results_table,
)
from spatialflow.utils.errors import ConfigError, DataError

CAT, DOG, GRASS, SAND, SKY = 7, 3, 9, 12, 15
# Contiguous ids of the categories in conftest.py.
CAT_LABEL, GRASS_LABEL = 1, 1


def strip(*lengths):
    """A (2, n) map with ids 1, 2, … of the given numbers of columns."""
    return np.repeat(np.arange(1, len(lengths) + 1), lengths)[None].repeat(2, axis=0)


def thing(segment_id, label=CAT_LABEL):
    return {"id": segment_id, "isthing": True, "category_id": label}


def stuff(segment_id, label=GRASS_LABEL):
    return {"id": segment_id, "isthing": False, "category_id": label}


def run(name, results, output_dir=None):
    """Evaluate results, one (ids, segments) per image of a data set."""
    evaluator = PanopticEvaluator(name, output_dir)
    evaluator.reset()
    for one, (ids, segments) in zip(DatasetCatalog.get(name), results, strict=True):
        evaluator.process([one], [{"panoptic_seg": (torch.as_tensor(ids), segments)}])
    return evaluator.evaluate()["panoptic_seg"]


def truth_of(name):
    metadata = MetadataCatalog.get(name)
    return [panoptic_ground_truth(one, metadata) for one in DatasetCatalog.get(name)]


@pytest.fixture
def two_images(write_dataset, register_folder):
    """A cat of 8 pixels beside grass of 16, twice."""
    return register_folder(write_dataset([(strip(4, 8), {1: CAT, 2: GRASS})] * 2))


def test_pq_by_hand(two_images, tmp_path):
    # Image 1: the cat is found with 6 of 8 pixels, IoU 3/4; grass gets the rest, IoU 16/18.
    # Image 2: the cat is called a dog (a miss of cat, a false dog); half of the grass is left out,
    # IoU 8/16 is not above one half, so it is both missed and false.
    results = run(
        two_images,
        [
            (strip(3, 9), [thing(1), stuff(2)]),
            (np.where(strip(4, 4, 4) < 3, strip(4, 4, 4), 0), [thing(1, 0), stuff(2)]),
        ],
        tmp_path,
    )
    cat = 0.75 / (1 + 0.5)
    grass = (16 / 18) / (1 + 0.5 + 0.5)
    assert results["PQ"] == pytest.approx(100 * (cat + 0 + grass) / 3)
    assert results["PQ_th"] == pytest.approx(100 * (cat + 0) / 2)
    assert results["PQ_st"] == pytest.approx(100 * grass)
    assert results["SQ_th"] == pytest.approx(100 * 0.75 / 2)
    assert results["RQ_th"] == pytest.approx(100 * (1 / 1.5) / 2)
    assert results["SQ_st"] == pytest.approx(100 * 16 / 18)
    assert results["RQ_st"] == pytest.approx(50)

    written = json.loads((tmp_path / RESULTS_FILE).read_text())
    assert written["summary"] == results
    assert written["images"] == 2
    assert written["classes_counted"] == {"PQ": 3, "PQ_th": 2, "PQ_st": 1}
    by_name = {c["name"]: c for c in written["per_class"]}
    assert [by_name["cat"][k] for k in ("tp", "fp", "fn")] == [1, 0, 1]
    assert [by_name["dog"][k] for k in ("tp", "fp", "fn")] == [0, 1, 0]
    assert by_name["sky"]["PQ"] is None
    assert written["per_image"][0]["classes"][str(CAT)] == {
        "isthing": 1,
        "iou": 0.75,
        "tp": 1,
        "fp": 0,
        "fn": 0,
    }
    assert "| sky " in results_table(written)
    assert "n/a" in results_table(written)


def test_the_truth_gets_one_hundred(two_images):
    results = run(two_images, truth_of(two_images))
    assert all(value == pytest.approx(100) for value in results.values())


def as_labels(ids, segments):
    """A result as category × label_divisor + instance, -1 for void; segments are None."""
    labels = torch.full_like(ids, -1)
    for number, segment in enumerate(segments):
        labels[ids == segment["id"]] = 1000 * segment["category_id"] + number
    return labels, None


def with_dataset_ids(ids, segments):
    """A result whose segments have the categories of the data set and no ``isthing``."""
    return ids, [{"id": s["id"], "category_id": CAT if s["isthing"] else SAND} for s in segments]


@pytest.mark.parametrize("form", [lambda *found: found, with_dataset_ids, as_labels])
def test_every_form_of_a_result_is_that_of_detectron2(
    write_dataset, register_folder, tmp_path, form
):
    # A label of sand is no label of a thing, so that a map of labels has one meaning.
    ids = np.pad(strip(4, 6), ((0, 0), (0, 2)))
    name = register_folder(write_dataset([(ids, {1: CAT, 2: SAND})] * 2))
    found = []
    for evaluator in (PanopticEvaluator(name), COCOPanopticEvaluator(name, str(tmp_path))):
        evaluator.reset()
        for one, (ids, segments) in zip(DatasetCatalog.get(name), truth_of(name), strict=True):
            result = form(torch.roll(ids, 1, 1), segments)
            evaluator.process([one], [{"panoptic_seg": result}])
        found.append(evaluator.evaluate()["panoptic_seg"])
    assert 0 < found[0]["PQ_th"] < 100
    assert 0 < found[0]["PQ_st"] < 100
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_results_are_left_as_they_were(two_images):
    segments = [thing(1), stuff(2)]
    run(two_images, [(strip(4, 8), segments)] * 2)
    assert segments == [thing(1), stuff(2)]
    labels = torch.full((2, 12), -1)
    assert run(two_images, [(labels, None)] * 2)["PQ"] == 0
    assert torch.equal(labels, torch.full((2, 12), -1))


def test_empty_results_are_misses(two_images):
    results = run(two_images, [(np.zeros((2, 12), int), [])] * 2)
    assert results["PQ"] == results["PQ_th"] == results["PQ_st"] == 0


@pytest.mark.parametrize(
    ("ids", "classes", "empty", "full"),
    [
        (strip(6, 6), {1: CAT, 2: DOG}, "_st", "_th"),
        (strip(6, 6), {1: GRASS, 2: SKY}, "_th", "_st"),
    ],
)
@pytest.mark.parametrize("keep", [True, False], ids=["declared", "undeclared"])
def test_a_missing_group_is_not_zero(
    write_dataset, register_folder, tmp_path, ids, classes, empty, full, keep
):
    everything = json.loads((write_dataset([(ids, {})], folder="c") / "panoptic.json").read_text())
    categories = [c for c in everything["categories"] if keep or c["id"] in classes.values()]
    root = write_dataset([(ids, classes)], categories=categories)
    name = register_folder(root)
    results = run(name, truth_of(name), tmp_path)
    assert all(math.isnan(results[key + empty]) for key in ("PQ", "SQ", "RQ"))
    assert results["PQ"] == results["PQ" + full] == pytest.approx(100)
    written = json.loads((tmp_path / RESULTS_FILE).read_text())
    assert written["summary"]["PQ" + empty] is None
    assert written["interval_95"]["PQ" + empty] is None


def test_nothing_at_all_is_not_zero(write_dataset, register_folder):
    name = register_folder(write_dataset([(np.zeros((2, 4), int), {})]))
    results = run(name, truth_of(name))
    assert all(math.isnan(value) for value in results.values())


def test_crowds_are_neither_missed_nor_false(write_dataset, register_folder):
    ids = strip(4, 3, 3, 8)
    root = write_dataset([(ids, {1: CAT, 2: (CAT, 1), 3: (CAT, 1), 4: GRASS})])
    name = register_folder(root)
    # Both crowds are called cats; panopticapi alone would excuse the second only.
    found = [thing(1), thing(2), thing(3), stuff(4)]
    results = run(name, [(ids, found)])
    assert results["PQ"] == pytest.approx(100)


def test_merged_stuff_counts_as_one_segment(write_dataset, register_folder):
    ids = strip(5, 5, 2)
    name = register_folder(
        write_dataset([(ids, {1: GRASS, 2: SAND, 3: CAT})]), remap="supercategories"
    )
    merged = np.where(ids == 2, 1, ids)
    results = run(name, [(merged, [stuff(1), thing(3, 0)])])
    assert results["PQ"] == pytest.approx(100)


def test_a_split_is_evaluated_alone(write_dataset, register_folder):
    root = write_dataset([(strip(4, 8), {1: CAT, 2: GRASS})] * 10)
    name = register_folder(root, split=("val", 0.4, 0))
    assert 0 < len(DatasetCatalog.get(name)) < 10
    assert run(name, truth_of(name))["PQ"] == pytest.approx(100)


def test_images_without_a_result_are_named(two_images):
    evaluator = PanopticEvaluator(two_images)
    evaluator.reset()
    with pytest.raises(ValueError, match="2 of 2 images of data set 'tiny' have no panoptic"):
        evaluator.evaluate()


def test_wrong_inputs_are_named(two_images):
    evaluator = PanopticEvaluator(two_images)
    evaluator.reset()
    one = DatasetCatalog.get(two_images)[0]
    with pytest.raises(ValueError, match="image 77 is not in data set 'tiny'"):
        evaluator.process([{**one, "image_id": 77}], [{"panoptic_seg": (strip(12), [])}])
    with pytest.raises(ValueError, match=r"image 1 is \(2, 5\) .* the image is \(2, 12\)"):
        evaluator.process([one], [{"panoptic_seg": (torch.zeros(2, 5), [])}])
    ids = torch.as_tensor(strip(4, 8))
    for segments, message in (
        ([thing(1)], r"image 1 has 16 pixels of ids that its segments do not list, the first is 2"),
        ([thing(1), stuff(2), stuff(9)], "image 1 lists segment 9, which has no pixel"),
        ([thing(1), stuff(2, 8)], r"segment 2 .* image 1 is stuff of class 8; one of \[1, 2, 3\]"),
        ([thing(1), {"id": 2, "category_id": 8}], "image 1 has segment 2 of category 8, which"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluator.process([one], [{"panoptic_seg": (ids, segments)}])


def test_the_truth_is_read_from_its_png(write_dataset, register_folder):
    ids = strip(4, 8) * 5_000_001
    root = write_dataset([(ids, {5_000_001: CAT, 10_000_002: GRASS})] * 3)
    with_alpha = Image.open(root / "panoptic" / "000.png").convert("RGBA")
    with_alpha.putalpha(7)
    with_alpha.save(root / "panoptic" / "000.png")
    name = register_folder(root)
    truth, images = truth_of(name), DatasetCatalog.get(name)
    assert run(name, truth)["PQ"] == 100
    # The files change while the evaluation runs.
    evaluator = PanopticEvaluator(name)
    evaluator.reset()
    (root / "panoptic" / "001.png").write_bytes(b"no PNG")
    (root / "panoptic" / "002.png").unlink()
    evaluator.process(images[:1], [{"panoptic_seg": truth[0]}])
    for number, one, found in zip((1, 2), images[1:], truth[1:], strict=True):
        with pytest.raises(DataError, match=f"00{number}.png: "):
            evaluator.process([one], [{"panoptic_seg": found}])


def test_ranks_share_the_images(two_images, monkeypatch):
    truth, inputs = truth_of(two_images), DatasetCatalog.get(two_images)
    ranks = [PanopticEvaluator(two_images), PanopticEvaluator(two_images)]
    gathered = []
    for evaluator, one, result in zip(ranks, inputs, truth, strict=True):
        evaluator.reset()
        evaluator.process([one], [{"panoptic_seg": result}])
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    monkeypatch.setattr(comm, "gather", lambda part: gathered.append(part))
    assert ranks[1].evaluate() is None
    monkeypatch.setattr(comm, "is_main_process", lambda: True)
    monkeypatch.setattr(comm, "gather", lambda part: [part, *gathered])
    assert ranks[0].evaluate()["panoptic_seg"]["PQ"] == pytest.approx(100)


def record(quality, isthing=1, category_id="1"):
    counts = {"isthing": isthing, "iou": quality, "tp": 1, "fp": 0, "fn": 0}
    return {"image_id": 0, "file_name": "a", "classes": {category_id: counts}}


def test_intervals_of_equal_images_are_points():
    intervals = bootstrap_pq([record(0.6)] * 5, n=50)
    assert intervals["PQ"] == pytest.approx((60, 60))
    assert intervals["PQ_th"] == pytest.approx((60, 60))
    assert intervals["PQ_st"] is None


def test_intervals_are_those_of_the_mean():
    # With one true positive an image, PQ is the mean IoU: the normal interval is a good guide.
    rng = np.random.default_rng(0)
    qualities = rng.uniform(0.5, 1.0, 400)
    low, high = bootstrap_pq([record(float(q)) for q in qualities], n=4000)["PQ"]
    half = 1.96 * 100 * qualities.std() / 20
    assert low == pytest.approx(100 * qualities.mean() - half, abs=0.15)
    assert high == pytest.approx(100 * qualities.mean() + half, abs=0.15)


def test_intervals_by_hand():
    # False and missed segments weigh one half each.
    halved = record(0.8)
    halved["classes"]["1"] |= {"fp": 1, "fn": 2}
    assert bootstrap_pq([halved], n=10)["PQ"] == pytest.approx((32, 32))
    # Two images: drawn twice, the first one has PQ 80, since the class of the other is not there;
    # the second one alone has (0 + 60) / 2.
    second = record(0.6, 0, "2")
    second["classes"]["1"] = {"isthing": 1, "iou": 0.0, "tp": 0, "fp": 0, "fn": 1}
    intervals = bootstrap_pq([record(0.8), second], n=500)
    assert intervals["PQ"] == pytest.approx((30, 80))
    assert intervals["PQ_th"] == pytest.approx((0, 80))
    assert intervals["PQ_st"] == pytest.approx((60, 60))


def test_intervals_depend_on_the_seed_alone():
    records = [record(q) for q in (0.5, 0.7, 0.9)] + [record(0.8, 0, "2")]
    assert bootstrap_pq(records, n=100, seed=1) == bootstrap_pq(records, n=100, seed=1)
    assert bootstrap_pq(records, n=100, seed=1) != bootstrap_pq(records, n=100, seed=2)
    with pytest.raises(ValueError, match="0 images"):
        bootstrap_pq([])


def perfect_outputs(name):
    """What a model that knows the truth would return."""
    outputs = []
    for ids, segments in truth_of(name):
        things = [s for s in segments if s["isthing"]]
        instances = Instances(tuple(ids.shape))
        masks = (
            torch.stack([ids == s["id"] for s in things]) if things else torch.zeros(0, *ids.shape)
        )
        instances.pred_masks = masks.bool()
        boxes = BitMasks(masks.bool()).get_bounding_boxes() if things else Boxes(torch.zeros(0, 4))
        instances.pred_boxes = boxes
        instances.scores = torch.ones(len(things))
        instances.pred_classes = torch.tensor([s["category_id"] for s in things], dtype=torch.int64)
        outputs.append({"panoptic_seg": (ids, segments), "instances": instances})
    return outputs


@pytest.mark.parametrize("detections", [100, 150])
def test_box_and_mask_ap_beside_pq(two_images, tmp_path, detections):
    cfg = get_cfg()
    cfg.TEST.DETECTIONS_PER_IMAGE = detections
    evaluator = build_evaluator(cfg, two_images, tmp_path)
    evaluator.reset()
    evaluator.process(DatasetCatalog.get(two_images), perfect_outputs(two_images))
    results = evaluator.evaluate()
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100)
    for task in ("bbox", "segm"):
        assert results[task]["AP"] == pytest.approx(100)
        assert results[task]["APs"] == pytest.approx(100)
        assert math.isnan(results[task]["APl"])


def test_without_things_there_is_no_ap(write_dataset, register_folder, tmp_path):
    categories = [{"id": 1, "name": "grass", "isthing": 0}]
    name = register_folder(write_dataset([(strip(8), {1: 1})], categories=categories))
    evaluator = build_evaluator(get_cfg(), name, tmp_path)
    evaluator.reset()
    evaluator.process(DatasetCatalog.get(name), perfect_outputs(name))
    assert set(evaluator.evaluate()) == {"panoptic_seg"}


def test_a_model_without_panoptic_results_is_one_line(two_images):
    evaluator = PanopticEvaluator(two_images)
    with pytest.raises(ConfigError, match="META_ARCHITECTURE: the model gives instances for"):
        evaluator.process(
            [{"image_id": DatasetCatalog.get(two_images)[0]["image_id"]}], [{"instances": None}]
        )
