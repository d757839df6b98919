"""Generated scenes are repeatable, labelled consistently, and not classifiable by colour."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from spatialflow.analysis.colour_classifier import evaluate_colour_classifier
from spatialflow.data import generate_scenes
from spatialflow.data.synthetic.scenes import SCENE_CATEGORIES, generate_scene
from spatialflow.data.synthetic.textures import SHAPES
from spatialflow.data.validation.file_rules import read_panoptic_png

NAMES = {c["id"]: c["name"] for c in SCENE_CATEGORIES}


def test_a_scene_depends_on_seed_and_index_alone():
    first, again = generate_scene(5, 3), generate_scene(5, 3)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.ids, again.ids)
    assert first.segments == again.segments
    assert (generate_scene(5, 4).image != first.image).any()
    assert (generate_scene(6, 3).image != first.image).any()


@pytest.mark.parametrize("size", [(192, 192), (128, 160), (320, 256)])
def test_scenes_are_labelled_consistently(size):
    smallest = {"thing": 60, "stuff": 400}  # at 192 px; a resized outline loses a few pixels
    scale = (min(size) / 192) ** 2
    for index in range(12):
        scene = generate_scene(1, index, size)
        assert scene.image.shape == (*size, 3)
        listed = {s["id"] for s in scene.segments}
        assert set(np.unique(scene.ids).tolist()) == listed
        stuff_names = []
        for segment in scene.segments:
            mask = scene.ids == segment["id"]
            rows, columns = np.nonzero(mask)
            assert segment["area"] == mask.sum()
            x, y, width, height = segment["bbox"]
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
            isthing = NAMES[segment["category_id"]] in SHAPES
            assert segment["area"] >= scale * smallest["thing" if isthing else "stuff"]
            if not isthing:
                stuff_names.append(NAMES[segment["category_id"]])
        assert len(stuff_names) == len(set(stuff_names)) >= 2


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_have_the_area_they_claim(name):
    distance, area = SHAPES[name]
    y, x = np.mgrid[-1.5:1.5:600j, -1.5:1.5:600j]
    assert (distance(y, x) < 0).mean() * 9 == pytest.approx(area, rel=0.02)


def test_a_larger_set_begins_with_the_smaller_one(tmp_path, register_folder):
    generate_scenes(tmp_path / "few", count=2, seed=4, size=(96, 96))
    generate_scenes(tmp_path / "more", count=3, seed=4, size=(96, 96))
    for folder in ("images", "panoptic"):
        for file in (tmp_path / "few" / folder).iterdir():
            assert file.read_bytes() == (tmp_path / "more" / folder / file.name).read_bytes()
    few, more = (json.loads((tmp_path / f / "panoptic.json").read_text()) for f in ("few", "more"))
    assert few["annotations"] == more["annotations"][:2]
    assert len(DatasetCatalog.get(register_folder(tmp_path / "more"))) == 3


def test_all_classes_occur_and_things_hide_one_another():
    scenes = [generate_scene(0, i) for i in range(30)]
    counts = np.bincount([s["category_id"] for scene in scenes for s in scene.segments])
    assert (counts[1:] >= 8).all()
    areas = [
        s["area"] for scene in scenes for s in scene.segments if NAMES[s["category_id"]] in SHAPES
    ]
    assert min(areas) < 300
    assert max(areas) > 2500


def test_wrong_sizes_are_named(tmp_path):
    with pytest.raises(ValueError, match="count is 0"):
        generate_scenes(tmp_path, count=0)
    with pytest.raises(ValueError, match=r"size is \(32, 200\)"):
        generate_scenes(tmp_path, count=1, size=(32, 200))


def test_colours_do_not_tell_the_classes(tmp_path, register_folder):
    for seed, (name, count) in enumerate({"train": 40, "test": 12}.items()):
        generate_scenes(tmp_path / name, count=count, seed=seed)
        register_folder(tmp_path / name, name)
    assert evaluate_colour_classifier("train", "test")["PQ"] < 5


def test_the_colour_classifier_finds_classes_that_have_a_colour(tmp_path, register_folder):
    root = tmp_path / "painted"
    generate_scenes(root, count=6, seed=0)
    content = json.loads((root / "panoptic.json").read_text())
    for annotation in content["annotations"]:
        ids = read_panoptic_png(root / "panoptic" / annotation["file_name"])
        painted = np.zeros((*ids.shape, 3), dtype=np.uint8)
        for segment in annotation["segments_info"]:
            color = SCENE_CATEGORIES[segment["category_id"] - 1]["color"]
            painted[ids == segment["id"]] = color
        Image.fromarray(painted).save(root / "images" / annotation["file_name"])
    name = register_folder(root)
    results = evaluate_colour_classifier(name, name, tmp_path)
    assert results["PQ_st"] == pytest.approx(100)
    assert results["PQ_th"] > 60  # touching things of one class still become one
