"""Real COCO images and nuclei, in the folder that SPATIALFLOW_TEST_DATA names."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T

from spatialflow.data import (
    PanopticMapper,
    instances_json,
    panoptic_ground_truth,
    panoptic_json,
    register_panoptic,
)
from spatialflow.evaluation import PanopticEvaluator
from spatialflow_cli.main import main

COCO, NUCLEI = "coco_panoptic_train100", "nuclei_train433"


@pytest.fixture
def register_real(real_data, register_folder):
    def register(folder, **options):
        return register_folder(real_data / folder, folder, **options)

    return register


def check_loads(name, count, things, stuff):
    dicts = DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    assert len(dicts) == count
    assert len(metadata.thing_classes) == things
    assert len(metadata.stuff_classes) == stuff + 1
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (name,)
    mapper = PanopticMapper(cfg, is_train=True)
    for one in dicts[:3]:
        mapped = mapper(one)
        labelled = [a for a in one["annotations"] if not a["iscrowd"]]
        assert len(mapped["instances"]) == len(labelled)
        assert mapped["sem_seg"].shape == mapped["image"].shape[1:]


def test_coco_loads(register_real):
    check_loads(register_real(COCO), 100, 80, 53)


def test_nuclei_load(register_real):
    check_loads(register_real(NUCLEI), 433, 1, 1)


def test_the_two_image_sample_loads(real_data):
    sample = real_data / "coco_panoptic_sample2" / "sample_data"
    register_panoptic(
        "sample",
        sample / "input_images",
        sample / "panoptic_examples.json",
        sample / "panoptic_examples",
    )
    check_loads("sample", 2, 80, 53)
    # This JSON has colours; the other one of COCO has none.
    assert MetadataCatalog.get("sample").thing_colors[0] == [220, 20, 60]


def test_real_data_have_no_problem(real_data, capsys):
    sample = real_data / "coco_panoptic_sample2" / "sample_data"
    places = ("input_images", "panoptic_examples.json", "panoptic_examples")
    options = zip(("--images", "--json", "--panoptic"), places, strict=True)
    assert main(["check", str(real_data / COCO)]) == 0
    assert main(["check", str(real_data / NUCLEI)]) == 0
    assert main(["check", *(text for k, v in options for text in (k, str(sample / v)))]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "100 images, 1111 segments, 133 classes: no problem",
        "433 images, 13926 segments, 2 classes: no problem",
        "2 images, 50 segments, 133 classes: no problem",
    ]


def test_coco_has_27_supercategories(register_real):
    name = register_real(COCO, remap="supercategories")
    metadata = MetadataCatalog.get(name)
    assert len(metadata.thing_classes) == 12
    assert len(metadata.stuff_classes) == 1 + 15
    segments = [s for d in DatasetCatalog.get(name) for s in d["segments_info"]]
    used = {(s["isthing"], s["category_id"]) for s in segments}
    assert used == {(True, i) for i in range(12)} | {(False, i) for i in range(1, 16)}


@pytest.mark.parametrize(("folder", "count", "crowds"), [(COCO, 746, 6), (NUCLEI, 13493, 0)])
def test_instances_agree_with_those_derived_elsewhere(
    real_data, register_real, folder, count, crowds
):
    derived = json.loads(instances_json(register_real(folder)).read_text())["annotations"]
    theirs = json.loads((real_data / folder / "instances_things.json").read_text())["annotations"]
    assert len(derived) == len(theirs) == count
    assert sum(a["iscrowd"] for a in derived) == sum(a["iscrowd"] for a in theirs) == crowds

    def described(annotation):
        rle = annotation["segmentation"]
        return (
            annotation["image_id"],
            annotation["category_id"],
            annotation["iscrowd"],
            annotation["area"],
            tuple(annotation["bbox"]),
            tuple(rle["size"]),
            rle["counts"],
        )

    assert sorted(map(described, derived)) == sorted(map(described, theirs))


def test_dicts_count_the_things_of_the_json(register_real):
    annotations = [a for d in DatasetCatalog.get(register_real(COCO)) for a in d["annotations"]]
    assert len(annotations) == 746
    assert sum(a["iscrowd"] for a in annotations) == 6


def test_the_truth_of_a_remapped_split_gets_one_hundred(register_real):
    name = register_real(COCO, remap="supercategories", split=("val", 0.2, 0))
    dicts, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
    evaluator = PanopticEvaluator(name)
    evaluator.reset()
    for one in dicts:
        ids, segments = panoptic_ground_truth(one, metadata)
        first: dict = {}
        for segment in segments:  # one segment for each stuff class, as PQ needs
            if not segment["isthing"]:
                kept = first.setdefault(segment["category_id"], segment["id"])
                ids[ids == segment["id"]] = kept
        segments = [s for s in segments if s["isthing"] or first[s["category_id"]] == s["id"]]
        evaluator.process([one], [{"panoptic_seg": (ids, segments)}])
    results = evaluator.evaluate()["panoptic_seg"]
    assert results["PQ"] == results["PQ_th"] == results["PQ_st"] == pytest.approx(100)
    truth = json.loads(panoptic_json(name).read_text())
    for annotation in truth["annotations"]:
        stuff = [
            s["category_id"]
            for s in annotation["segments_info"]
            if s["category_id"] in metadata.stuff_dataset_id_to_contiguous_id
        ]
        assert len(stuff) == len(set(stuff))


def test_mapped_masks_are_those_of_the_instances_json(real_data, register_real):
    name = register_real(NUCLEI, limit=5)
    theirs = json.loads((real_data / NUCLEI / "instances_things.json").read_text())["annotations"]
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (name,)
    mapper = PanopticMapper(cfg, True, augmentations=[T.RandomFlip(prob=1.0)])
    for one in DatasetCatalog.get(name):
        instances = mapper(one)["instances"]
        mine = [a for a in theirs if a["image_id"] == one["image_id"]]
        assert len(instances) == len(mine) > 0
        flipped = np.stack([mask_util.decode(a["segmentation"])[:, ::-1] for a in mine])
        np.testing.assert_array_equal(instances.gt_masks.tensor.numpy(), flipped)
        boxes = np.array([a["bbox"] for a in mine], dtype=float)
        right = one["width"] - boxes[:, 0]
        expected = np.stack(
            [right - boxes[:, 2], boxes[:, 1], right, boxes[:, 1] + boxes[:, 3]], axis=1
        )
        np.testing.assert_allclose(instances.gt_boxes.tensor.numpy(), expected)
