"""The check command: every rule, its message, and the exit status."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from PIL import Image

from spatialflow.data import PanopticMapper, panoptic_json
from spatialflow.data.panoptic_png import write_panoptic_png
from spatialflow.data.validation import decoding
from spatialflow.utils.errors import DataError
from spatialflow_cli.main import main

IDS = np.repeat([[1, 2, 3]], 6, axis=0).repeat(4, axis=1)  # (6, 12)
CLASSES = {1: 9, 2: 7, 3: (7, 1)}


@pytest.fixture
def root(write_dataset):
    return write_dataset([(IDS, CLASSES)] * 3)


@pytest.fixture
def run(capsys):
    """Return a function that runs the checker; it returns exit status, problems and summary."""

    def run_checker(*arguments):
        status = main(["check", *map(str, arguments)])
        *problems, summary = capsys.readouterr().out.splitlines()
        return status, problems, summary

    return run_checker


def edit(root, change):
    content = json.loads((root / "panoptic.json").read_text())
    change(content)
    (root / "panoptic.json").write_text(json.dumps(content))


def test_a_clean_set_has_no_problem(root, run):
    assert run(root) == (0, [], "3 images, 9 segments, 5 classes: no problem")
    edit(root, lambda c: c["annotations"].pop())
    summary = "2 images, 6 segments, 5 classes: no problem; 1 image without annotation left out"
    assert run(root) == (0, [], summary)


def segment(content, number=0):
    return content["annotations"][1]["segments_info"][number]


# (change of the content, message after the JSON's name, number of affected images).
WRONG_JSON = [
    (lambda c: c["images"][1].pop("height"), "001.png: has no height", 1),
    (lambda c: c["images"][1].update(width=0), "001.png: width is 0; a positive integer", 1),
    (lambda c: c["images"][1].update(width=12.0), "001.png: width is 12.0; a positive", 1),
    (lambda c: c["images"][1].update(file_name=5), "images[1]: file_name is 5; the name", 1),
    (lambda c: c["images"][1].pop("file_name"), "images[1]: has no file_name", 1),
    (lambda c: c["images"][1].update(file_name="../a"), "images[1]: file_name is '../a', which", 1),
    (lambda c: c["images"][1].update(file_name="/a"), "images[1]: file_name is '/a', which is", 1),
    (
        lambda c: c["images"][1].update(file_name="a\0"),
        "images[1]: file_name is 'a\\x00', which",
        1,
    ),
    (lambda c: c["images"][1].update(file_name="\ud800"), "images[1]: file_name is '\\ud800'", 1),
    (lambda c: c["images"].append(None), "images[3]: None is no object", 1),
    (lambda c: c["annotations"].append([]), "annotations[3]: [] is no object", 1),
    (lambda c: c["annotations"][1].pop("file_name"), "001.png: annotations[1] has no file_name", 1),
    (lambda c: c["annotations"][1].pop("segments_info"), "001.png: annotations[1] has no segm", 1),
    (
        lambda c: c["annotations"][1].update(segments_info={}),
        "001.png: annotations[1] segments_i",
        1,
    ),
    (
        lambda c: c["annotations"].append(c["annotations"][1] | {"file_name": "b.png"}),
        "001.png: h",
        1,
    ),
    (lambda c: c["annotations"][1].update(image_id=77), "annotations[1]: image_id is 77, which", 1),
    (lambda c: c["annotations"][1].update(image_id=[]), "annotations[1]: image_id is [], which", 1),
    (lambda c: c["annotations"][1].update(file_name="000.png"), "000.png: its panoptic PNG", 2),
    (lambda c: c["images"][1].update(file_name="./000.png"), "000.png: file_name is that of 2", 2),
    (lambda c: segment(c).update(id="1"), "segments_info[0]: id is '1'; an integer from 1 to", 1),
    (lambda c: segment(c).update(id=0), "segments_info[0]: id is 0; an integer from 1 to", 1),
    (lambda c: segment(c).update(id=2**24), "segments_info[0]: id is 16777216; an integer", 1),
    (lambda c: segment(c).update(id=True), "segments_info[0]: id is True; an integer", 1),
    (lambda c: segment(c).update(id=2), "annotations[1] several segments have the same id: 2", 1),
    (lambda c: segment(c).update(category_id=99), "category_id is 99, which 'categories' do", 1),
    (lambda c: segment(c).update(category_id=9.0), "category_id is 9.0, which 'categories'", 1),
    (lambda c: segment(c).update(iscrowd=2), "segments_info[0]: iscrowd is 2; 0 or 1 expected", 1),
    (lambda c: segment(c).update(area=-1), "segments_info[0]: area is -1; a number of pixels", 1),
    (lambda c: segment(c).update(area=1e300), "segments_info[0]: area is 1e+300; a number", 1),
    (
        lambda c: segment(c).update(bbox=[0, 0, -4, 6]),
        "segments_info[0]: bbox is [0, 0, -4, 6];",
        1,
    ),
    (lambda c: segment(c).update(bbox=None), "segments_info[0]: bbox is None; [x, y, width,", 1),
    (lambda c: segment(c).pop("category_id"), "segments_info[0]: has no category_id", 1),
    (lambda c: c["categories"].append(c["categories"][0] | {"id": 1}), "same name: 'cat'", 0),
    (lambda c: c["categories"].append(c["categories"][0] | {"name": "x"}), "same id: 7", 0),
    (lambda c: c["categories"][4].update(id="7"), "categories[4]: id is '7'; an integer, 0 or", 0),
    (lambda c: c["categories"][4].update(name=""), "categories[4]: name is ''; a string", 0),
    (lambda c: c["categories"][4].update(isthing=2), "categories[4]: isthing is 2; 0 or 1", 0),
    (lambda c: c["categories"][4].update(color="red"), "categories[4]: color is 'red'; three", 0),
    (lambda c: c["categories"][4].update(supercategory=3), "categories[4]: supercategory is 3;", 0),
    (lambda c: c["categories"][4].pop("isthing"), "categories[4]: has no isthing", 0),
    (lambda c: c.update(categories=[]), "'categories' is empty", 3),
    (lambda c: c.update(annotations=[]), "has no annotated image", 0),
    (lambda c: c.update(images=None), "'images' is None, which is no list", 0),
    (lambda c: c.pop("annotations"), "has no 'annotations': a COCO panoptic JSON is expected", 0),
    (lambda c: segment(c).update(area=float("nan")), "is not valid JSON: it holds NaN at anno", 0),
]


@pytest.mark.parametrize(("change", "text", "affected"), WRONG_JSON)
def test_a_wrong_json_is_told(root, run, change, text, affected):
    edit(root, change)
    status, problems, summary = run(root)
    assert status == 1
    told = [p for p in problems if p.startswith(f"{root / 'panoptic.json'}: ") and text in p]
    assert told, problems
    images = {1: "1 image affected", 2: "2 images affected", 3: "3 images affected"}
    assert summary.partition(";")[0].endswith(images.get(affected, "problem")), summary


def test_files_that_are_no_json_are_told(root, run):
    path = root / "panoptic.json"
    for content, text in (
        (b"", "is not valid JSON: Expecting value"),
        (b'{"images": [', "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b"[1, 2]", "holds [1, 2], which is no object: a COCO panoptic JSON is expected"),
        (b"[" * 100000, "is nested too deeply"),
        (b"9" * 5000, "is not valid JSON"),
    ):
        path.write_bytes(content)
        status, problems, summary = run(root)
        assert status == 1
        assert problems[0].startswith(f"{path}: {text}")
        assert summary == "0 images, 0 segments, 0 classes: 1 problem"
    path.unlink()
    assert run(root)[1] == [f"{path}: no such file"]
    path.mkdir()
    assert run(root)[1] == [f"{path}: is not a file; a COCO panoptic JSON is expected"]


def break_image(change):
    return lambda root: change(root / "images" / "001.png")


def break_png(change):
    return lambda root: change(root / "panoptic" / "001.png")


def cut(path, end=45):
    path.write_bytes(path.read_bytes()[:end])


def cut_the_end(path):
    cut(path, -13)


def spoil(path, position=50):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def spoil_the_end(path):
    spoil(path, -14)


def deep(path):
    Image.fromarray(np.full(IDS.shape, 999, dtype=np.uint16)).save(path)


def as_jpeg(path):
    Image.open(path).save(path, format="JPEG")


def ids(value):
    return lambda path: write_panoptic_png(path, value)


ONE_MORE = np.where(np.arange(72).reshape(6, 12) == 70, 9, IDS)
MOVED = np.where(np.isin(IDS, (1, 3)), 4 - IDS, IDS)
WRONG_FILES = [
    (break_image(cut), "images/001.png: is truncated: the file ends inside its IDAT chunk"),
    (break_image(spoil), "images/001.png: is damaged: the checksum of its IDAT chunk at byte"),
    (break_image(lambda p: p.unlink()), "images/001.png: no such file; "),
    (break_image(lambda p: p.write_bytes(b"")), "images/001.png: is empty"),
    (break_image(lambda p: p.write_bytes(b"x")), "images/001.png: is not a picture of a known"),
    (break_image(deep), "images/001.png: has channels of 16 bits (integers); 8 bits are"),
    (break_image(ids(IDS[:5])), "images/001.png: is 12 x 5 px, but "),
    (break_png(cut), "panoptic/001.png: is truncated: the file ends inside its IDAT chunk"),
    (break_png(spoil), "panoptic/001.png: is damaged: the checksum of its IDAT chunk at byte"),
    (break_png(lambda p: p.unlink()), "panoptic/001.png: no such file; "),
    (break_png(lambda p: p.write_bytes(b"")), "panoptic/001.png: is empty"),
    (break_png(as_jpeg), "panoptic/001.png: is not a PNG"),
    (break_png(deep), "panoptic/001.png: is a PNG of 16 bits, grey; 8 bits, RGB are expected"),
    (break_png(ids(IDS[:5])), "panoptic/001.png: is 12 x 5 px, but "),
    (break_png(ids(ONE_MORE)), "panoptic/001.png: has segment ids that {}"),
    (break_png(ids(np.where(IDS == 3, 2, IDS))), "panoptic/001.png: has no pixel of segments {}"),
    (break_png(ids(np.where(IDS == 3, 0, IDS))), "panoptic/001.png: has no pixel of segments {}"),
]
# Training uses these files: it compares neither checksums nor areas and boxes.
ONLY_CHECKED = [
    (break_image(cut_the_end), "images/001.png: is truncated: the file ends inside its IDAT chunk"),
    (break_image(spoil_the_end), "images/001.png: is damaged: the checksum of its IDAT chunk at"),
    (break_png(cut_the_end), "panoptic/001.png: is truncated: the file ends inside its IDAT chunk"),
    (break_png(spoil_the_end), "panoptic/001.png: is damaged: the checksum of its IDAT chunk at"),
    (break_png(ids(np.where(ONE_MORE == 9, 2, IDS))), "panoptic/001.png: has other areas than {}"),
    (break_png(ids(MOVED)), "panoptic/001.png: has other boxes than {}"),
]


def make_mapper(name):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (name,)
    return PanopticMapper(cfg, True, augmentations=[])


@pytest.mark.parametrize(("change", "text"), WRONG_FILES)
def test_checker_and_training_say_the_same_of_wrong_files(root, run, register_folder, change, text):
    name = register_folder(root)
    dicts = DatasetCatalog.get(name)
    change(root)
    status, problems, summary = run(root)
    assert status == 1
    assert problems[0].startswith(f"{root}/{text.removesuffix('{}')}")
    assert summary.endswith("1 image affected")
    if "no such file" in text:  # found before anything is read
        with pytest.raises(DataError) as error:
            DatasetCatalog.get(name)
    else:
        mapper = make_mapper(name)
        mapper(dicts[0])
        with pytest.raises(DataError) as error:
            mapper(dicts[1])
    assert str(error.value) == problems[0]


@pytest.mark.parametrize(("change", "text"), ONLY_CHECKED)
def test_the_checker_and_evaluations_notice_what_training_does_not(
    root, run, register_folder, change, text
):
    name = register_folder(root)
    one = DatasetCatalog.get(name)[1]
    mapper = make_mapper(name)
    clean = mapper(one)
    change(root)
    status, (problem,), summary = run(root)
    assert status == 1
    assert problem.startswith(f"{root}/{text.removesuffix('{}')}")
    assert summary.endswith("1 problem, 1 image affected")
    mapped = mapper(one)
    # Only another area or box means other labels.
    (masks, labels), others = (
        (sample["instances"].gt_masks.tensor, sample["sem_seg"]) for sample in (mapped, clean)
    )
    same = torch.equal(masks, others[0]) and torch.equal(labels, others[1])
    assert same == ("other" not in text)
    if text.startswith("panoptic"):
        with pytest.raises(DataError) as error:
            panoptic_json(name)
        assert str(error.value) == problem


def test_training_computes_no_checksum(root, register_folder, monkeypatch):
    name = register_folder(root)
    (one, *_), mapper = DatasetCatalog.get(name), make_mapper(name)
    monkeypatch.setattr(decoding, "png_damage", lambda data: pytest.fail("a checksum"))
    mapper(one)


def test_deep_images_are_checked_with_the_white_level_of_the_training(root, run):
    deep(root / "images" / "001.png")
    assert run(root)[0] == 1
    assert run(root, "--white-level", "4095")[0] == 0


def test_what_no_training_can_use_is_a_problem(root, run):
    edit(root, lambda c: [x.update(isthing=0) for x in c["categories"]])
    assert run(root)[1] == [
        f"{root}/panoptic.json: has no thing classes; SpatialFlow needs at least one"
    ]
    edit(root, lambda c: c["categories"][0].update(isthing=1))
    assert run(root)[0] == 0
    things = lambda c: [a["segments_info"][1].update(iscrowd=1) for a in c["annotations"]]  # noqa: E731
    edit(root, things)
    (problem,) = run(root)[1]
    assert problem.startswith(f"{root}/panoptic.json: has no image with a thing that is not crowd")


def test_annotations_of_pixels_that_exif_turns_are_named(root, run):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", IDS.shape[::-1]).save(root / "images" / "001.png", exif=exif)
    (problem,) = run(root)[1]
    assert problem.startswith(
        f"{root}/images/001.png: is 6 x 12 px after the turn that its EXIF orientation asks for, "
        f"but {root}/panoptic.json says 12 x 6, as before the turn: turn the annotations, or remove"
    )


def test_turns_that_keep_the_size_are_counted(root, run):
    exif = Image.Exif()
    exif[274] = 3
    path = root / "images" / "001.png"
    Image.open(path).save(path, exif=exif)
    summary = "3 images, 9 segments, 5 classes: no problem; EXIF data turn 1 image: see that"
    status, problems, line = run(root)
    assert (status, problems) == (0, [])
    assert line.startswith(summary)


@pytest.mark.parametrize("place", ["images/001.png", "panoptic/001.png", "panoptic.json"])
def test_a_fifo_in_a_set_never_blocks(root, run, register_folder, place):
    (root / place).unlink()
    os.mkfifo(root / place)
    (problem,) = run(root)[1]
    assert problem.startswith(f"{root / place}: is ")
    with pytest.raises(DataError) as error:
        DatasetCatalog.get(register_folder(root))
    assert str(error.value) == problem


def test_boxes_may_count_the_last_pixel_or_not(root, run):
    edit(root, lambda c: segment(c).update(bbox=[0, 0, 3, 5]))
    assert run(root)[0] == 0
    edit(root, lambda c: segment(c).update(bbox=[0, 0, 2, 6]))
    (problem,) = run(root)[1]
    assert problem.endswith("segments: 1 (has [0, 0, 4, 6], listed [0, 0, 2, 6])")


def test_wrong_segments_are_compared_as_far_as_that_goes(root, run):
    edit(root, lambda c: segment(c).update(category_id=99, area="x"))
    write_panoptic_png(root / "panoptic" / "001.png", ONE_MORE)
    first, *others = run(root)[1]
    assert "category_id is 99" in first
    assert [p.partition(" that ")[0] for p in others] == [
        f"{root}/panoptic/001.png: has segment ids",
        f"{root}/panoptic/001.png: has other areas than {root}/panoptic.json lists for its "
        "segments: 3 (has 23, listed 24)",
    ]


def test_lines_stay_lines(root, run):
    edit(root, lambda c: c["images"][1].update(file_name="two\nlines \u2028.png"))
    (problem,) = run(root)[1]
    assert problem.startswith(f"{root}/images/two\\nlines \\u2028.png: no such file; ")


def test_parts_may_lie_elsewhere(root, run):
    for new, old in (("a", "images"), ("b.json", "panoptic.json"), ("c", "panoptic")):
        (root / old).rename(root / new)
    places = ("--images", root / "a", "--json", root / "b.json", "--panoptic", root / "c")
    assert run(*places)[0] == run(root, *places)[0] == 0
    status, problems, _ = run(root, *places[2:])
    assert (status, problems) == (1, [f"{root}/images: no such folder"])


def test_registered_names_are_checked_as_they_are_registered(root, run, register_folder):
    (root / "images" / "001.png").unlink()
    edit(root, lambda c: c["categories"].append(c["categories"][0] | {"id": 1}))
    name = register_folder(root, remap={7: "cat", 1: "cat"}, limit=1)
    assert run(name) == (0, [], "1 image, 3 segments, 5 classes: no problem")
    assert run(root)[0] == 1
    edit(root, lambda c: c["categories"][5].update(isthing=0))
    status, problems, _ = run(name)
    assert status == 1
    assert problems[0].startswith(f"{root}/panoptic.json: remap puts things")


@pytest.mark.parametrize("arguments", [[], ["absent\n"], ["--bad"], ["--images", "a"], ["a", "b"]])
def test_wrong_commands_are_one_line(arguments, capsys):
    try:
        status = main(["check", *arguments])
    except SystemExit as left:  # from the parser
        status = left.code
    assert status == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("spatialflow check: ")
    assert printed.err.count("\n") == 1


def test_the_command_ends_with_the_status(root):
    (root / "images" / "001.png").write_bytes(b"x")
    command = [sys.executable, "-m", "spatialflow_cli", "check", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].endswith("1 problem, 1 image affected")
    assert "Traceback" not in done.stderr
