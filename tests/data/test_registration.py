"""Registration: dicts, metadata, remaps, splits and errors."""

import json
import shutil

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from spatialflow.data import ensure_metadata, register_builtin, unregister
from spatialflow.data.dataset_spec import palette_color, read_categories
from spatialflow.data.selection import in_validation_split
from spatialflow.utils.errors import DataError

TWO_HALVES = np.repeat([[5, 70000]], 4, axis=0).repeat([3, 5], axis=1)  # (4, 8)


def test_dicts_hold_the_files_and_the_segments(write_dataset, register_folder):
    root = write_dataset([(TWO_HALVES, {5: 7, 70000: 15})])
    (one,) = DatasetCatalog.get(register_folder(root))
    assert one["file_name"] == str(root / "images" / "000.png")
    assert one["pan_seg_file_name"] == str(root / "panoptic" / "000.png")
    assert (one["image_id"], one["height"], one["width"]) == (1, 4, 8)
    assert one["segments_info"] == [
        {
            "id": 5,
            "category_id": 1,
            "iscrowd": 0,
            "area": 12,
            "bbox": [0, 0, 3, 4],
            "isthing": True,
        },
        {
            "id": 70000,
            "category_id": 3,
            "iscrowd": 0,
            "area": 20,
            "bbox": [3, 0, 5, 4],
            "isthing": False,
        },
    ]
    # Ids in order: dog 3, cat 7, so a cat is class 1.
    assert [(a["category_id"], a["bbox"]) for a in one["annotations"]] == [(1, [0, 0, 3, 4])]


def test_metadata_follows_the_separated_convention(write_dataset, register_folder):
    metadata = MetadataCatalog.get(register_folder(write_dataset([(TWO_HALVES, {5: 7})])))
    assert metadata.thing_classes == ["dog", "cat"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
    assert metadata.stuff_classes == ["things", "grass", "sand", "sky"]
    assert metadata.stuff_dataset_id_to_contiguous_id == {9: 1, 12: 2, 15: 3, 0: 0}
    assert metadata.thing_colors == [[10, 200, 10], [200, 10, 10]]
    assert metadata.stuff_colors[3] == [90, 150, 250]
    assert metadata.evaluator_type == "coco_panoptic_seg"
    assert metadata.ignore_label == 255


def test_missing_fields_are_measured_in_the_png(write_dataset, register_folder):
    root = write_dataset([(TWO_HALVES, {5: 7, 70000: 15})], fields=())
    (one,) = DatasetCatalog.get(register_folder(root))
    assert [(s["area"], s["bbox"], s["iscrowd"]) for s in one["segments_info"]] == [
        (12, [0, 0, 3, 4], 0),
        (20, [3, 0, 5, 4], 0),
    ]


def test_classes_without_colours_get_the_palette():
    bare = [{"id": i, "name": f"class {i}", "isthing": i % 2} for i in range(60)]
    classes, _ = read_categories(bare)
    assert [c.color for c in classes] == [palette_color(i) for i in range(60)]
    assert len({c.color for c in classes}) == 60


def test_the_same_registration_twice_is_one(write_dataset, register_folder):
    root = write_dataset([(TWO_HALVES, {5: 7})])
    register_folder(root, split=("val", 0.99, 0), remap={"cat": "pet"})
    register_folder(root, split=("val", 0.99, 0), remap={"cat": "pet"})
    with pytest.raises(ValueError, match="'tiny' is taken"):
        register_folder(root)
    unregister("tiny")
    register_folder(root)
    assert MetadataCatalog.get("tiny").thing_classes == ["dog", "cat"]


def test_names_of_other_code_are_not_taken_over(write_dataset, register_folder):
    DatasetCatalog.register("theirs", list)
    with pytest.raises(ValueError, match="taken by a data set of other code"):
        register_folder(write_dataset([(TWO_HALVES, {5: 7})]), name="theirs")


def test_supercategories_become_classes(write_dataset, register_folder):
    root = write_dataset([(TWO_HALVES, {5: 7, 70000: 12})])
    name = register_folder(root, remap="supercategories")
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["animal"]
    assert metadata.stuff_classes == ["things", "ground", "air"]
    assert metadata.thing_colors == [[10, 200, 10]]
    (one,) = DatasetCatalog.get(name)
    assert [s["category_id"] for s in one["segments_info"]] == [0, 1]


def test_a_remap_may_name_categories_by_name_or_id(write_dataset, register_folder):
    root = write_dataset([(TWO_HALVES, {5: 7})])
    metadata = MetadataCatalog.get(register_folder(root, remap={"grass": "earth", 12: "earth"}))
    assert metadata.stuff_classes == ["things", "earth", "sky"]
    assert metadata.thing_classes == ["dog", "cat"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remap": {"cat": "x", "sky": "x"}}, r"things \['cat'\] and stuff \['sky'\]"),
        ({"remap": {"horse": "x"}}, "panoptic.json: .* not in it: .'horse'"),
        ({"remap": "by colour"}, "remap of data set 'tiny' is 'by colour'"),
        ({"split": ("test", 0.5, 0)}, "split of data set 'tiny'"),
        ({"split": ("val", 1.5, 0)}, "split of data set 'tiny'"),
        ({"limit": 0}, "limit of data set 'tiny' is 0"),
    ],
)
def test_wrong_options_are_named(write_dataset, register_folder, options, message):
    root = write_dataset([(TWO_HALVES, {5: 7})])
    with pytest.raises(ValueError, match=message):
        register_folder(root, **options)
    assert "tiny" not in DatasetCatalog


def test_missing_files_are_named(write_dataset, register_folder):
    root = write_dataset([(TWO_HALVES, {5: 7})])
    (root / "panoptic.json").rename(root / "else.json")
    with pytest.raises(DataError, match=r"panoptic\.json: no such file"):
        register_folder(root)
    (root / "else.json").rename(root / "panoptic.json")
    shutil.rmtree(root / "panoptic")
    with pytest.raises(DataError, match=r"set/panoptic: no such folder"):
        register_folder(root)
    (root / "panoptic").mkdir()
    register_folder(root)
    with pytest.raises(DataError, match=r"panoptic/000\.png: no such file"):
        DatasetCatalog.get("tiny")


def test_an_instances_json_is_not_taken_for_a_panoptic_one(write_dataset, register_folder):
    root = write_dataset([(TWO_HALVES, {5: 7})])
    content = json.loads((root / "panoptic.json").read_text())
    content["annotations"] = [{"image_id": 1, "category_id": 7, "segmentation": []}]
    (root / "panoptic.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="is it a COCO instances JSON"):
        register_folder(root)


def test_unknown_categories_of_segments_are_named(write_dataset, register_folder):
    root = write_dataset([(TWO_HALVES, {5: 7, 70000: 99})])
    register_folder(root)
    with pytest.raises(DataError, match=r"json: 000\.png: .* category_id is 99, which"):
        DatasetCatalog.get("tiny")


def test_what_is_wrong_with_images_is_told_or_left_out(write_dataset, register_folder, caplog):
    root = write_dataset([(TWO_HALVES, {5: 7, 70000: 15})] * 6, fields=("area",))
    content = json.loads((root / "panoptic.json").read_text())
    content["images"][1]["width"] = "8"
    content["annotations"][2]["segments_info"][0]["id"] = 0
    del content["annotations"][5]
    (root / "panoptic.json").write_text(json.dumps(content))
    (root / "images" / "003.png").unlink()
    (root / "panoptic" / "004.png").write_bytes(b"")  # read, as the boxes are not in the JSON
    name = register_folder(root)
    dicts, problems = DatasetCatalog[name].load()
    assert [d["file_name"][-7:] for d in dicts] == ["000.png"]
    where = root / "panoptic.json"
    assert [str(p) for p in problems] == [
        f"{where}: 001.png: width is '8'; a positive integer expected",
        f"{where}: 002.png: annotations[2] segments_info[0]: id is 0; an integer from 1 to 16777215"
        " expected",
        f"{root}/images/003.png: no such file; {where} lists it",
        f"{root}/panoptic/004.png: is empty",
    ]
    assert [p.image for p in problems] == ["001.png", "002.png", "003.png", "004.png"]
    with pytest.raises(DataError) as error:
        DatasetCatalog.get(name)
    command = f"spatialflow check {root}"
    assert str(error.value) == f"{problems[0]} … and 3 more; `{command}` lists them"


def test_other_sides_of_a_split_are_not_blamed(write_dataset, register_folder):
    root = write_dataset([(TWO_HALVES, {5: 7, 70000: 15})] * 8)
    sides = {n: in_validation_split(f"{n:03d}.png", 0.5, 0) for n in range(8)}
    bad = next(n for n, validation in sides.items() if validation)
    (root / "images" / f"{bad:03d}.png").unlink()
    content = json.loads((root / "panoptic.json").read_text())
    content["annotations"][bad]["segments_info"] = None
    (root / "panoptic.json").write_text(json.dumps(content))
    train = DatasetCatalog.get(register_folder(root, "train", split=("train", 0.5, 0)))
    assert len(train) == sum(not validation for validation in sides.values())
    with pytest.raises(DataError, match=rf"{bad:03d}\.png: .* segments_info is None"):
        DatasetCatalog.get(register_folder(root, "val", split=("val", 0.5, 0)))


def test_a_set_of_bad_images_alone_is_an_error(write_dataset, register_folder):
    root = write_dataset([(TWO_HALVES, {5: 7, 70000: 15})] * 2)
    for file in (root / "images").iterdir():
        file.unlink()
    name = register_folder(root)
    with pytest.raises(DataError, match=r"images/000\.png: no such file; .* lists it … and 1 more"):
        DatasetCatalog[name].load()


def test_splits_are_disjoint_and_complete(write_dataset, register_folder):
    root = write_dataset([(TWO_HALVES, {5: 7})] * 40)
    register_folder(root, "train", split=("train", 0.25, 3))
    register_folder(root, "val", split=("val", 0.25, 3))
    train, val = ({d["file_name"] for d in DatasetCatalog.get(n)} for n in ("train", "val"))
    assert not train & val
    assert len(train | val) == 40
    assert 4 <= len(val) <= 18


def test_a_split_depends_on_the_seed_and_the_name_alone():
    names = [f"{i:03d}.png" for i in range(1000)]
    first, second = ([n for n in names if in_validation_split(n, 0.2, s)] for s in (0, 1))
    assert first != second
    assert 150 < len(first) < 250
    # These must not change: images would move between all users' training and validation sets.
    assert first[:5] == ["000.png", "002.png", "003.png", "008.png", "012.png"]


def test_limit_keeps_the_first_names(write_dataset, register_folder):
    root = write_dataset([(TWO_HALVES, {5: 7})] * 4)
    content = json.loads((root / "panoptic.json").read_text())
    content["annotations"].reverse()
    content["images"].reverse()
    (root / "panoptic.json").write_text(json.dumps(content))
    dicts = DatasetCatalog.get(register_folder(root, limit=2))
    assert [d["file_name"][-7:] for d in dicts] == ["000.png", "001.png"]


def test_an_empty_split_is_an_error(write_dataset, register_folder):
    root = write_dataset([(TWO_HALVES, {5: 7})])
    register_folder(root, split=("val", 1e-9, 0))
    with pytest.raises(DataError, match="'val' part of a split, has none of the 1 annotated"):
        DatasetCatalog.get("tiny")


BUILTIN = [
    f"spatialflow_{name}_{part}"
    for name in ("coco_2017", "cityscapes_fine", "ade20k")
    for part in ("train", "val")
]


def test_builtin_sets_need_no_data_to_be_registered(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    register_builtin()
    register_builtin()
    for name in BUILTIN:
        with pytest.raises(ValueError, match=r"nowhere/.*\.json.*DETECTRON2_DATASETS"):
            ensure_metadata(name)


def test_builtin_coco_reads_its_classes_from_the_json(write_dataset, monkeypatch, tmp_path):
    root = write_dataset([(TWO_HALVES, {5: 7, 70000: 15})])
    coco = tmp_path / "datasets" / "coco"
    (coco / "annotations").mkdir(parents=True)
    shutil.copy(root / "panoptic.json", coco / "annotations" / "panoptic_val2017.json")
    shutil.copytree(root / "images", coco / "val2017")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    register_builtin()
    with pytest.raises(DataError, match=r"panoptic_val2017: no such folder.*DETECTRON2_DATASETS"):
        ensure_metadata("spatialflow_coco_2017_val")
    shutil.copytree(root / "panoptic", coco / "panoptic_val2017")
    assert ensure_metadata("spatialflow_coco_2017_val").thing_classes == ["dog", "cat"]
    assert len(DatasetCatalog.get("spatialflow_coco_2017_val")) == 1


def test_builtin_cityscapes_finds_images_in_city_folders(write_dataset, monkeypatch, tmp_path):
    root = write_dataset([(TWO_HALVES, {5: 7, 70000: 15})])
    city = "aachen_000000_000019"
    content = json.loads((root / "panoptic.json").read_text())
    content["images"][0] |= {"id": city, "file_name": f"{city}_gtFine_leftImg8bit.png"}
    content["annotations"][0] |= {"image_id": city, "file_name": f"{city}_gtFine_panoptic.png"}
    images = tmp_path / "datasets/cityscapes/leftImg8bit/train/aachen"
    truth = tmp_path / "datasets/cityscapes/gtFine"
    images.mkdir(parents=True)
    (truth / "cityscapes_panoptic_train").mkdir(parents=True)
    shutil.copy(root / "images/000.png", images / f"{city}_leftImg8bit.png")
    shutil.copy(
        root / "panoptic/000.png", truth / f"cityscapes_panoptic_train/{city}_gtFine_panoptic.png"
    )
    (truth / "cityscapes_panoptic_train.json").write_text(json.dumps(content))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    register_builtin()
    (one,) = DatasetCatalog.get("spatialflow_cityscapes_fine_train")
    assert one["file_name"] == str(images / f"{city}_leftImg8bit.png")
    assert one["image_id"] == city
