"""AP by hotcoco and by pycocotools: the same numbers, files and messages as Detectron2's."""

import json
import logging
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils import logger as detectron2_logger

from spatialflow.data import panoptic_ground_truth
from spatialflow.evaluation import InstanceEvaluator, average_precision, build_evaluator


def detections_of(one, metadata, rng, copies):
    """Several detections of each thing, moved, some of another class, with many equal scores."""
    ids, segments = panoptic_ground_truth(one, metadata)
    masks, classes = [], []
    for segment in segments:
        if not segment["isthing"]:
            continue
        for copy in range(copies):
            moved = tuple((rng.integers(-4, 5, 2) * copy).tolist())
            masks.append(torch.roll(ids == segment["id"], moved, (0, 1)))
            wrong = rng.random() < 0.1
            known = len(metadata.thing_classes)
            classes.append(int(rng.integers(known)) if wrong else segment["category_id"])
    found = Instances(tuple(ids.shape))
    found.pred_masks = torch.stack(masks) if masks else torch.zeros(0, *ids.shape).bool()
    boxes = BitMasks(found.pred_masks).get_bounding_boxes().tensor if masks else torch.zeros(0, 4)
    found.pred_boxes = Boxes(boxes + torch.as_tensor(rng.normal(0, 1, boxes.shape)).float())
    found.scores = torch.as_tensor(rng.integers(0, 100, len(masks)) / 100).float()
    found.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return {"instances": found}


def outputs_of(name, copies=2, every=1):
    """Detections on the images of a data set, nothing on all but each n-th."""
    rng = np.random.default_rng(0)
    metadata, outputs = MetadataCatalog.get(name), []
    for number, one in enumerate(DatasetCatalog.get(name)):
        outputs.append(detections_of(one, metadata, rng, 0 if number % every else copies))
    return outputs


@pytest.fixture
def evaluate(tmp_path, monkeypatch, capsys, caplog):
    """Return a function that evaluates outputs and returns all that can be seen of it."""
    arrays = []
    derive = COCOEvaluator._derive_coco_results

    def recorded(self, evaluation, *args, **kwargs):
        if evaluation is not None:
            counted = {k: evaluation.eval[k].copy() for k in ("precision", "recall", "scores")}
            arrays.append({**counted, "stats": np.array(evaluation.stats)})
        return derive(self, evaluation, *args, **kwargs)

    monkeypatch.setattr(COCOEvaluator, "_derive_coco_results", recorded)

    def run(evaluator, name, outputs):
        arrays.clear()
        caplog.clear()
        capsys.readouterr()
        folder = tmp_path / "found"
        evaluator._output_dir = str(folder)
        evaluator.reset()
        with caplog.at_level(logging.INFO), caplog.at_level(logging.DEBUG, logger="spatialflow"):
            evaluator.process(DatasetCatalog.get(name), outputs)
            results = evaluator.evaluate()
        messages = [r.getMessage().replace("unofficial", "official") for r in caplog.records]
        # Theirs prints the tables, ours logs them.
        logged = [message for message in messages if "@[" in message]
        messages = [message for message in messages if message not in logged]
        printed = "\n".join([capsys.readouterr().out, *logged])
        tables = [line for line in printed.splitlines() if "@[" in line]
        written = {
            "json": json.loads((folder / "coco_instances_results.json").read_text()),
            "pth": torch.load(folder / "instances_predictions.pth"),
        }
        return [list(results.items()), tables, messages, written], list(arrays)

    return run


def check_equal(evaluate, name, detections, copies=2, every=1):
    outputs = outputs_of(name, copies, every)
    most = max(len(o["instances"]) for o in outputs)
    theirs = COCOEvaluator(
        name,
        tasks=("bbox", "segm"),
        output_dir="",
        use_fast_impl=False,
        max_dets_per_image=detections,
    )
    mine = InstanceEvaluator(name, "", detections)
    expected, their_arrays = evaluate(theirs, name, outputs)
    seen, arrays = evaluate(mine, name, outputs)
    np.testing.assert_equal(seen, expected)
    np.testing.assert_equal(arrays, their_arrays)
    assert [len(seen[1]), len(arrays)] == [24, 2]
    assert {"precision", "recall", "scores", "stats"} == set(arrays[0])
    assert 0 < arrays[0]["stats"][0] < 1
    return most


def test_ap_of_coco_is_that_of_detectron2(real_data, register_folder, evaluate):
    name = register_folder(real_data / "coco_panoptic_train100", "coco")
    check_equal(evaluate, name, 100, every=2)


@pytest.mark.parametrize("detections", [100, 150])
@pytest.mark.parametrize("folder", ["nuclei_train433", "facades_train278"])
def test_ap_of_crowded_images_is_that_of_detectron2(
    real_data, register_folder, evaluate, folder, detections
):
    name = register_folder(real_data / folder, folder, limit=12)
    assert check_equal(evaluate, name, detections, copies=4) > 150


def test_names_as_image_ids(scenes_root, tmp_path, register_folder, evaluate):
    content = json.loads((scenes_root / "panoptic.json").read_text())
    for image in content["images"]:
        image["id"] = f"image {image['id']}"
    for annotation in content["annotations"]:
        annotation["image_id"] = f"image {annotation['image_id']}"
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    for folder in ("images", "panoptic"):
        (tmp_path / folder).symlink_to(scenes_root / folder)
    check_equal(evaluate, register_folder(tmp_path, "named"), 100)


@pytest.mark.parametrize("core", ["hotcoco", "pycocotools"])
def test_nothing_found_at_all_is_an_ap_of_zero(scenes, tmp_path, monkeypatch, core):
    if core == "pycocotools":
        monkeypatch.setattr(average_precision, "hotcoco", None)
    evaluator = InstanceEvaluator(scenes, str(tmp_path))
    evaluator.reset()
    evaluator.process(DatasetCatalog.get(scenes), outputs_of(scenes, copies=0))
    found = evaluator.evaluate()
    assert [list(r) for r in found.values()] == 2 * [list(found["bbox"])]
    truth = evaluator._coco_api.dataset["annotations"]
    for result in found.values():
        assert result["AP"] == result["AP50"] == result["AP75"] == 0
        ends = {"APs": (0, 32**2), "APm": (32**2, 96**2), "APl": (96**2, 1e10)}
        for key, (low, high) in ends.items():
            there = any(low <= a["area"] <= high for a in truth if not a["iscrowd"])
            assert there == (result[key] == 0)
            assert there != np.isnan(result[key])
        classes = {a["category_id"] for a in truth}
        ids = evaluator._metadata.thing_dataset_id_to_contiguous_id
        for category_id, index in ids.items():
            ap = result[f"AP-{evaluator._metadata.thing_classes[index]}"]
            assert ap == 0 if category_id in classes else np.isnan(ap)


@pytest.mark.parametrize("things", [{3: (7, 1)}, {}])
def test_without_a_thing_to_find_ap_is_not_a_number(
    write_dataset, register_folder, tmp_path, things
):
    """Only crowds, or no thing at all."""
    ids = np.ones((8, 8))
    ids[4:] = 3 if things else 1
    name = register_folder(write_dataset([(ids, {1: 9, **things})]))
    evaluator = InstanceEvaluator(name, str(tmp_path))
    evaluator.reset()
    evaluator.process(DatasetCatalog.get(name), outputs_of(name, copies=0))
    found = evaluator.evaluate()
    assert all(np.isnan(v) for result in found.values() for v in result.values())


def test_without_hotcoco_pycocotools_computes_the_same(scenes, evaluate, monkeypatch):
    outputs = outputs_of(scenes)
    expected = evaluate(InstanceEvaluator(scenes, ""), scenes, outputs)
    monkeypatch.setattr(average_precision, "hotcoco", None)
    np.testing.assert_equal(evaluate(InstanceEvaluator(scenes, ""), scenes, outputs), expected)


def test_the_log_names_once_what_computes(scenes, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(detectron2_logger, "_LOG_COUNTER", Counter())
    caplog.set_level(logging.INFO)
    build_evaluator(get_cfg(), scenes, tmp_path)
    build_evaluator(get_cfg(), scenes, tmp_path)
    monkeypatch.setattr(average_precision, "hotcoco", None)
    build_evaluator(get_cfg(), scenes, tmp_path)
    told = [r.getMessage() for r in caplog.records if "computed by" in r.getMessage()]
    assert [text.split()[4].strip(",") for text in told] == ["hotcoco", "pycocotools"]
