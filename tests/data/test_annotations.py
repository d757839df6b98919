"""A process parses and checks a JSON once, and callers cannot change what others read."""

import copy
import json
import os

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from spatialflow.data import annotations, ensure_metadata, instances_json, panoptic_json
from spatialflow.data.annotations import KEPT_JSONS, read_panoptic_json
from spatialflow.utils.errors import DataError

TWO_HALVES = np.repeat([[5, 70000]], 4, axis=0).repeat([3, 5], axis=1)  # (4, 8)
CLASSES = {5: 7, 70000: 15}


@pytest.fixture
def parses(monkeypatch):
    """Return the counts of parsed and of checked JSONs; they grow during the test."""
    counts = {"parsed": 0, "checked": 0}

    def counting(name, function):
        def count(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return count

    monkeypatch.setattr(annotations.json, "loads", counting("parsed", json.loads))
    monkeypatch.setattr(annotations, "list_images", counting("checked", annotations.list_images))
    return counts


@pytest.fixture
def root(write_dataset):
    return write_dataset([(TWO_HALVES, CLASSES)] * 2)


def edit(root, old, new):
    path = root / "panoptic.json"
    path.write_text(path.read_text().replace(old, new))


def test_all_that_is_made_of_a_json_needs_one_parse(root, register_folder, parses):
    name = register_folder(root)
    assert parses == {"parsed": 1, "checked": 1}
    DatasetCatalog.get(name)
    panoptic_json(name)
    instances_json(name)
    ensure_metadata(name)
    register_folder(root, "part", limit=1, remap={"cat": "pet"})
    DatasetCatalog.get("part")
    assert parses == {"parsed": 1, "checked": 1}


def test_a_changed_json_is_read_again(root, register_folder, parses):
    name = register_folder(root)
    path = root / "panoptic.json"
    status = path.stat()
    edit(root, '"id": 70000', '"id": 70001')  # of the same size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert [s["id"] for s in DatasetCatalog.get(name)[0]["segments_info"]] == [5, 70001]
    assert parses["parsed"] == 2
    edit(root, '"category_id": 15', '"category_id": 9')
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # of another size
    assert DatasetCatalog.get(name)[0]["segments_info"][1]["category_id"] == 1


def test_a_json_that_became_wrong_or_whole_again_is_noticed(root, register_folder):
    name = register_folder(root)
    path = root / "panoptic.json"
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    for _ in range(2):
        with pytest.raises(DataError, match="is not valid JSON"):
            DatasetCatalog.get(name)
    path.write_bytes(content)
    assert len(DatasetCatalog.get(name)) == 2


def scramble(value):
    """Change everything that can be changed."""
    for child in list(value.values() if isinstance(value, dict) else value):
        if isinstance(child, (dict, list)):
            scramble(child)
    if isinstance(value, dict):
        value.update(dict.fromkeys(value, "changed"))
    else:
        value[:] = ["changed"]


@pytest.mark.parametrize("fields", [("area", "bbox", "iscrowd"), ()])
def test_callers_cannot_change_what_others_read(write_dataset, register_folder, fields):
    name = register_folder(write_dataset([(TWO_HALVES, CLASSES)] * 2, fields=fields))
    metadata = MetadataCatalog.get(name)
    before = copy.deepcopy((DatasetCatalog.get(name), metadata.as_dict()))
    truth = json.loads(panoptic_json(name).read_text())
    scramble(DatasetCatalog.get(name))
    for value in vars(metadata).values():
        if isinstance(value, (dict, list)):
            scramble(value)
    assert (DatasetCatalog.get(name), metadata.as_dict()) == before
    register_folder(metadata.image_root.removesuffix("/images"), "again")
    assert json.loads(panoptic_json("again").read_text()) == truth


def test_few_jsons_are_kept(write_dataset):
    files = [
        str(write_dataset([(TWO_HALVES, CLASSES)], folder=f"set{i}") / "panoptic.json")
        for i in range(KEPT_JSONS + 2)
    ]
    first = read_panoptic_json(files[0])
    assert read_panoptic_json(files[0]) is first
    for file in files:
        read_panoptic_json(file)
    assert annotations._parse.cache_info().currsize == KEPT_JSONS
    assert read_panoptic_json(files[0]) is not first
