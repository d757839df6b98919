"""What is counted in a data set."""

import json

import cv2
import numpy as np
import pytest

from spatialflow.analysis import data_statistics
from spatialflow.analysis.data_proposal import propose
from spatialflow.analysis.data_statistics import count, evenly, training_statistics
from spatialflow.config import get_cfg
from spatialflow.data.panoptic_png import write_panoptic_png
from spatialflow.data.selection import in_validation_split
from spatialflow.engine import prepare_config
from spatialflow.utils.errors import DataError

CATEGORIES = [
    {"id": 1, "name": "cat", "isthing": 1},
    {"id": 2, "name": "sky", "isthing": 0},
    {"id": 3, "name": "sea", "isthing": 0},
]


pytestmark = pytest.mark.usefixtures("own_data")


@pytest.fixture
def write_folder(tmp_path):
    """Return a function that writes images of (segments, pixels) and returns their folder.

    A segment is (category, left, top, width, height) or the same with iscrowd.
    """

    def write(images, *, measured=True, categories=CATEGORIES):
        root = tmp_path / "data"
        content = {"images": [], "annotations": [], "categories": categories}
        for folder in ("images", "panoptic"):
            (root / folder).mkdir(parents=True)
        for number, (segments, pixels) in enumerate(images):
            name = f"{number}.png"
            ids = np.zeros(pixels.shape[:2], np.int32)
            infos = []
            for i, (category, left, top, width, height, *crowd) in enumerate(segments, 1):
                ids[top : top + height, left : left + width] = i
                info = {"id": i, "category_id": category, "iscrowd": int(any(crowd))}
                if measured:
                    info |= {"area": width * height, "bbox": [left, top, width, height]}
                infos.append(info)
            cv2.imwrite(str(root / "images" / name), pixels)
            write_panoptic_png(root / "panoptic" / name, ids)
            size = {"height": ids.shape[0], "width": ids.shape[1]}
            content["images"].append({"id": number, "file_name": name, **size})
            annotation = {"image_id": number, "file_name": name, "segments_info": infos}
            content["annotations"].append(annotation)
        (root / "panoptic.json").write_text(json.dumps(content))
        return root

    return write


def picture(height=40, width=60, dtype=np.uint8):
    return np.zeros((height, width, 3), dtype)


def statistics_of(root, **folder):
    keys = {"PATH": str(root), **folder}
    pairs = [item for k, v in keys.items() for item in (f"DATASETS.FOLDER.{k}", v)]
    cfg = get_cfg("Base-Refined-Small.yaml", pairs)
    prepare_config(cfg)
    return training_statistics(cfg)


TWO = [(1, 0, 0, 10, 20), (1, 20, 0, 8, 4), (2, 0, 30, 60, 10), (2, 50, 0, 5, 5), (3, 0, 25, 4, 4)]


@pytest.mark.parametrize("measured", [True, False], ids=["of the JSON", "of the PNGs"])
def test_sizes_and_counts(write_folder, measured):
    images = [(TWO, picture()), (TWO[:1], picture(50, 30)), (TWO[:1], picture())]
    found = statistics_of(write_folder(images, measured=measured), VAL_FRACTION=1e-9, LIMIT=2)
    assert found.image_sizes.tolist() == [[40, 60], [50, 30]]
    assert (found.thing_classes, found.stuff_classes) == (("cat",), ("sky", "sea"))
    assert found.things_per_image.tolist() == [2, 1]
    assert found.segments_per_image.tolist() == [5, 1]
    assert found.thing_sizes == pytest.approx(np.sqrt([200, 32, 200]))
    assert found.thing_boxes[:, 2:].tolist() == [[10, 20], [8, 4], [10, 20]]
    # Segments of one stuff class in an image are one.
    assert found.stuff_areas(0).tolist() == [625]
    assert found.stuff_areas(1).tolist() == [16]
    assert (found.bits, found.largest_value) == ({8: 2}, None)


def test_images_for_evaluation_are_not_counted(write_folder):
    names = [f"{i}.png" for i in range(12)]
    held_out = [in_validation_split(name, 0.5, 3) for name in names]
    assert 0 < sum(held_out) < len(names)
    # Those held out have another size, things of another size, and a file that cannot be read.
    images = [
        ([(1, 0, 0, 30, 30)], picture(90, 90)) if held else ([(1, 0, 0, 5, 5)], picture())
        for held in held_out
    ]
    root = write_folder(images)
    for name, held in zip(names, held_out, strict=True):
        if held:
            (root / "images" / name).write_bytes(b"broken")
    found = statistics_of(root, VAL_FRACTION=0.5, SPLIT_SEED=3)
    assert len(found.image_sizes) == held_out.count(False)
    assert set(found.thing_sizes) == {5.0}
    assert found.image_sizes.max() == 60


def test_crowds_are_no_things(write_folder):
    images = [([(1, 0, 0, 10, 10), (1, 20, 0, 30, 30, True)], picture())] * 2
    found = statistics_of(write_folder(images), VAL_FRACTION=1e-9, LIMIT=1)
    assert found.thing_sizes.tolist() == [10]
    assert found.things_per_image.tolist() == [1]
    assert found.segments_per_image.tolist() == [2]


def test_crowds_alone_are_refused_as_the_checker_refuses_them(write_folder):
    root = write_folder([([(1, 0, 0, 10, 10, True)], picture())] * 12)
    with pytest.raises(DataError, match="has no image with a thing that is not crowd") as error:
        statistics_of(root, VAL_FRACTION=0.5)
    assert str(error.value).startswith(str(root / "panoptic.json"))


def test_data_without_a_thing_class_are_refused(write_folder):
    root = write_folder([([(2, 0, 0, 10, 10)], picture())] * 12, categories=CATEGORIES[1:])
    with pytest.raises(ValueError, match="has no thing classes"):
        statistics_of(root, VAL_FRACTION=0.5)


def test_one_image(write_folder):
    found = statistics_of(write_folder([(TWO, picture())]), VAL_FRACTION=1e-9)
    assert found.image_sizes.tolist() == [[40, 60]]
    assert {choice.key for choice in propose(found, get_cfg("Base-Refined-Small.yaml"))}


def test_deep_images_tell_their_largest_value(write_folder):
    pixels = picture(dtype=np.uint16)
    pixels[3, 4] = 3000
    root = write_folder([(TWO, pixels), (TWO, picture()), (TWO, picture(dtype=np.uint16))])
    found = count(
        [
            {"file_name": str(root / "images" / f"{i}.png"), "height": 40, "width": 60}
            | {"segments_info": []}
            for i in range(3)
        ],
        ["cat"],
        [],
    )
    assert (found.bits, found.largest_value) == ({8: 1, 16: 2}, 3000)
    assert found.thing_sizes.size == 0


def test_a_part_of_many_deep_images_is_decoded(write_folder, monkeypatch):
    read = []
    monkeypatch.setattr(data_statistics, "MOST_DECODED", 2)
    monkeypatch.setattr(data_statistics, "largest_value", lambda path: read.append(path) or 7.0)
    root = write_folder([(TWO, picture(dtype=np.uint16))] * 5)
    found = statistics_of(root, VAL_FRACTION=1e-9, LIMIT=4)
    assert found.largest_value == 7
    assert [path[-5:] for path in read] == ["0.png", "2.png"]


def test_numbers_that_are_evenly_spaced():
    assert evenly(3, 5) == [0, 1, 2]
    assert evenly(10, 4) == [0, 2, 5, 7]
