"""Panoptic data of other code have the images that the registered function returns."""

import json
from functools import partial

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json

from spatialflow.data.evaluation_json import instances_json, panoptic_json
from spatialflow.data.loader import EvaluationLoader, build_train_loader
from spatialflow.data.registration import view_of
from spatialflow.engine import prepare_config
from spatialflow.utils.errors import ConfigError, DataError
from tests.data.test_detectron2 import PICTURES, config, standard


@pytest.fixture
def root(write_dataset):
    return write_dataset([*PICTURES, *PICTURES[:1]])


def dicts(root):
    """All images as Detectron2's function returns them, which expects JPEGs, with sizes."""
    content = json.loads((root / "panoptic.json").read_text())
    return [
        {
            "file_name": str(root / "images" / image["file_name"]),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            "pan_seg_file_name": str(root / "panoptic" / one["file_name"]),
            "segments_info": one["segments_info"],
        }
        for image, one in zip(content["images"], content["annotations"], strict=True)
    ]


def register(name, root, load):
    MetadataCatalog.get(name).set(
        **standard(),
        image_root=str(root / "images"),
        panoptic_root=str(root / "panoptic"),
        panoptic_json=str(root / "panoptic.json"),
    )
    DatasetCatalog.register(name, load)
    return name


def trained_on(cfg):
    return [one["file_name"][-7:] for one in build_train_loader(cfg, 0)._images.dicts]


@pytest.mark.parametrize(
    "keys", [("image_id", "pan_seg_file_name", "file_name"), ("image_id",), ("file_name",)]
)
def test_a_subset_is_trained_and_evaluated_on(root, keys):
    """Its function is called once, and defects of other images do not matter."""
    calls = []

    def load():
        calls.append(1)
        some = [dicts(root)[3], dicts(root)[1]]
        return [{k: one[k] for k in keys} for one in some]

    cfg = config(register("theirs", root, load), **{"SOLVER.IMS_PER_BATCH": 1})
    (root / "images" / "000.png").unlink()
    prepare_config(cfg)
    assert trained_on(cfg) == ["001.png", "003.png"]
    (name,) = cfg.DATASETS.TEST
    assert len(EvaluationLoader(cfg, name)) == 2
    for path in (panoptic_json(name), instances_json(name)):
        content = json.loads(path.read_text())
        assert [image["file_name"] for image in content["images"]] == ["001.png", "003.png"]
        assert {one["image_id"] for one in content["annotations"]} == {2, 4}
    assert len(calls) == 1


def test_two_splits_of_one_json_are_disjoint(root):
    names = [
        register(f"part{side}", root, lambda side=side: dicts(root)[side::2]) for side in (0, 1)
    ]
    cfg = config(names[0], **{"DATASETS.TEST": names[1:]})
    prepare_config(cfg)
    assert trained_on(cfg) == ["000.png", "002.png"]
    images = json.loads(panoptic_json(cfg.DATASETS.TEST[0]).read_text())["images"]
    assert [image["file_name"] for image in images] == ["001.png", "003.png"]


def test_another_function_under_the_same_name_counts(root):
    register("theirs", root, lambda: dicts(root)[:1])
    assert len(DatasetCatalog.get(view_of("theirs"))) == 1
    DatasetCatalog.remove("theirs")
    DatasetCatalog.register("theirs", lambda: dicts(root)[:3])
    assert len(DatasetCatalog.get(view_of("theirs"))) == 3


def test_what_the_json_cannot_give_is_named(root):
    more = [{**dicts(root)[0], "pan_seg_file_name": str(root / "panoptic" / "more.png")}]
    cases = {
        "more": (lambda: dicts(root) + more, r"panoptic.json: lists no sound entry of .*000\.png"),
        "twice": (lambda: dicts(root) * 2, r"'twice': its function returns .*000.png more than"),
        "none": (list, "'none@spatialflow' has none of the 4 annotated images"),
    }
    missing = partial(load_coco_panoptic_json, root / "a.json", root, root, {})
    cases["fails"] = (lambda: missing(), r"'fails': its function fails: .*a\.json")
    for name, (load, message) in cases.items():
        register(name, root, load)
        with pytest.raises((ConfigError, DataError), match=message):
            DatasetCatalog.get(view_of(name))
