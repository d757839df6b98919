"""Evaluation JSONs: merged stuff, instances, the cache."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager

from spatialflow.data import cache_root, evaluation_json, instances_json, panoptic_json
from spatialflow.data.panoptic_png import index_map, write_panoptic_png
from spatialflow.data.validation.file_rules import read_panoptic_png
from spatialflow.utils.errors import DataError

# Grass 1, sand 2, a cat 3, two crowds of cats 4 and 5, a grass crowd 6.
STRIPS = np.repeat([[1, 2, 3, 4, 5, 6]], 4, axis=0).repeat(2, axis=1)  # (4, 12)
CLASSES = {1: 9, 2: 12, 3: 7, 4: (7, 1), 5: (7, 1), 6: (9, 1)}


def _files(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def test_merged_stuff_is_one_segment_in_a_rewritten_png(write_dataset, register_folder):
    other = np.where(np.isin(STRIPS, (1, 3, 4)), STRIPS, 0)
    root = write_dataset([(STRIPS, CLASSES), (other, {3: 7, 1: 9, 4: 15})])
    before = _files(root)
    name = register_folder(root, remap="supercategories")
    derived_truth = json.loads(panoptic_json(name).read_text())
    first, second = derived_truth["annotations"]
    assert [(s["id"], s["category_id"], s["iscrowd"]) for s in first["segments_info"]] == [
        (1, 2, 0),
        (3, 1, 0),
        (4, 1, 1),
        (6, 2, 1),
    ]
    assert first["segments_info"][0]["area"] == 16
    assert first["segments_info"][0]["bbox"] == [0, 0, 4, 4]
    rewritten = read_panoptic_png(first["file_name"])
    expected = np.repeat([[1, 1, 3, 4, 4, 6]], 4, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(rewritten, expected)
    # The image without merged segments keeps the user's PNG; the user's folder is unchanged.
    assert second["file_name"] == "001.png"
    assert _files(root) == before
    assert str(cache_root()) in first["file_name"]
    assert [c["name"] for c in derived_truth["categories"]] == ["animal", "ground", "air"]


def test_a_split_holds_its_own_images(write_dataset, register_folder):
    root = write_dataset([(STRIPS, CLASSES)] * 12)
    parts = [
        json.loads(panoptic_json(register_folder(root, p, split=(p, 0.5, 0))).read_text())
        for p in ("train", "val")
    ]
    names = [{i["file_name"] for i in part["images"]} for part in parts]
    assert all(names)
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 12
    assert [len(p["annotations"]) for p in parts] == [len(n) for n in names]


def test_instances_are_the_masks_of_the_png(write_dataset, register_folder):
    root = write_dataset([(STRIPS, CLASSES)])
    instances = json.loads(instances_json(register_folder(root)).read_text())
    assert [c["id"] for c in instances["categories"]] == [3, 7]
    assert [a["id"] for a in instances["annotations"]] == [1, 2, 3]
    for annotation, segment_id in zip(instances["annotations"], (3, 4, 5), strict=True):
        mask = mask_util.decode(annotation["segmentation"])
        np.testing.assert_array_equal(mask, segment_id == STRIPS)
        assert annotation["area"] == 8
        assert annotation["bbox"] == [2 * (segment_id - 1), 0, 2, 4]
        assert annotation["iscrowd"] == int(segment_id > 3)
        assert annotation["category_id"] == 7


def test_masks_are_encoded_in_parts(write_dataset, register_folder):
    ids = np.arange(1, 101).reshape(10, 10)
    root = write_dataset([(ids, dict.fromkeys(range(1, 101), 7))])
    annotations = json.loads(instances_json(register_folder(root)).read_text())["annotations"]
    assert [a["bbox"] for a in annotations] == [[i % 10, i // 10, 1, 1] for i in range(100)]


def test_detectron2_opens_derived_files_by_name(write_dataset, register_folder):
    metadata = MetadataCatalog.get(register_folder(write_dataset([(STRIPS, CLASSES)])))
    assert PathManager.get_local_path(metadata.panoptic_json) == str(panoptic_json("tiny"))
    with PathManager.open(metadata.json_file) as file:
        assert len(json.load(file)["annotations"]) == 3
    assert PathManager.isfile(metadata.json_file)
    with pytest.raises(ValueError, match="not an evaluation JSON"):
        PathManager.get_local_path("spatialflow://tiny/depth.json")


def test_a_changed_png_or_option_makes_new_files(write_dataset, register_folder):
    root = write_dataset([(STRIPS, CLASSES)], fields=("iscrowd",))
    path = instances_json(register_folder(root))
    assert instances_json("tiny") == path
    other = instances_json(register_folder(root, "other", remap={"cat": "pet"}))
    assert other != path
    write_panoptic_png(root / "panoptic" / "000.png", np.fliplr(STRIPS))
    changed = instances_json("tiny")
    assert changed != path
    assert [a["bbox"][0] for a in json.loads(changed.read_text())["annotations"]] == [6, 4, 2]


def test_an_interrupted_write_leaves_nothing(write_dataset, register_folder, monkeypatch):
    name = register_folder(write_dataset([(STRIPS, CLASSES)]))

    def interrupted(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(evaluation_json.os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            panoptic_json(name)
    assert not [p for p in cache_root().rglob("*") if p.is_file()]
    assert panoptic_json(name).is_file()


def test_index_map_places_ids_that_the_json_does_not_know_last():
    ids = np.array([[9, 4, 70000, 5, 0]])
    np.testing.assert_array_equal(index_map(ids, [70000, 4, 9]), [[2, 1, 0, 3, 3]])
    np.testing.assert_array_equal(index_map(ids, []), [[0] * 5])


@pytest.mark.parametrize("derive", [instances_json, panoptic_json])
def test_truth_that_is_not_sound_is_not_evaluated(write_dataset, register_folder, derive):
    root = write_dataset([(STRIPS, CLASSES)])
    name = register_folder(root)
    png = root / "panoptic" / "000.png"
    for ids, message in (
        (np.where(STRIPS == 3, 0, STRIPS), "has no pixel of segments that .*json lists: 3$"),
        (np.where(STRIPS == 0, 8, STRIPS + 1), "has segment ids that .*json does not list: 7"),
        (np.where(STRIPS == 4, 3, STRIPS), "has no pixel of segments that .*json lists: 4$"),
        (STRIPS[:, :-1], "is 11 x 4 px, but .*json says 12 x 4$"),
    ):
        write_panoptic_png(png, ids)
        with pytest.raises(DataError, match=rf"000\.png: {message}"):
            derive(name)
    png.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"000\.png: is not a PNG"):
        derive(name)
    png.unlink()
    with pytest.raises(DataError, match=r"000\.png: no such file"):
        derive(name)
    write_panoptic_png(png, STRIPS)
    assert derive(name).is_file()


def test_a_wrong_json_is_not_evaluated(write_dataset, register_folder):
    root = write_dataset([(STRIPS, CLASSES)])
    name = register_folder(root)
    content = json.loads((root / "panoptic.json").read_text())
    content["annotations"][0]["segments_info"][2]["category_id"] = 99
    (root / "panoptic.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"json: 000\.png: .* category_id is 99"):
        panoptic_json(name)
