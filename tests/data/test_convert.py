"""Labels of other formats become data sets that train: the command `spatialflow convert`."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from spatialflow.cli import convert
from spatialflow.data import PanopticMapper
from spatialflow.data.convert import writer
from spatialflow.engine import prepare_config
from spatialflow_cli.data_arguments import FORMATS
from spatialflow_cli.main import main
from tests.data.test_detectron2 import config

HEIGHT, WIDTH = 60, 100
# Number of each class, as label_names.txt of the database has it.
NUMBERS = {
    **{"background": 1, "facade": 2, "window": 3, "door": 4, "cornice": 5, "sill": 6},
    **{"balcony": 7, "blind": 8, "deco": 9, "molding": 10, "pillar": 11, "shop": 12},
}
THINGS = {3, 4, 7, 12}
PAINTED = (
    *("background", "facade", "sill", "balcony", "door", "blind"),
    *("molding", "deco", "shop", "window", "cornice", "pillar"),
)
# Label, top, bottom, left, right in pixels. The order is neither that of the classes nor of the
# painting, and most overlap others.
RECTANGLES = [
    ("pillar", 5, 60, 70, 75),
    ("window", 10, 20, 20, 30),
    ("window", 12, 24, 60, 72),
    ("balcony", 18, 26, 15, 45),
    ("facade", 5, 60, 10, 90),
    ("sill", 19, 22, 18, 50),
    ("sill", 50, 53, 12, 20),
    ("door", 40, 60, 40, 50),
    ("shop", 30, 60, 25, 45),
    ("door", 40, 42, 28, 30),
]
SMALL = [("facade", 0, 60, 0, 100), ("window", 10, 50, 20, 40)]


def element(label, x, y, name=None):
    """Write a rectangle as the database does, with line breaks inside of elements."""
    points = "".join(f"<x>\n{v}\n</x>\n" for v in x) + "".join(f"<y>\n{v}\n</y>\n" for v in y)
    number = NUMBERS.get(label, 0)
    return (
        f"<object>\n<points>\n{points}</points>\n<label>\n{number}\n</label>\n"
        f"<labelname>\n{name or label}\n</labelname>\n<flag>\n0\n</flag>\n</object>\n"
    )


def painted():
    """Paint `RECTANGLES` by hand; return classes, and which thing a pixel is of."""
    classes = np.ones((HEIGHT, WIDTH), dtype=int)
    classes[5:60, 10:90] = 2
    classes[19:22, 18:50] = 6
    classes[50:53, 12:20] = 6
    classes[18:26, 15:45] = 7
    classes[40:60, 40:50] = 4
    classes[30:60, 25:45] = 12  # over both doors, and all of the second
    classes[10:20, 20:30] = 3
    classes[12:24, 60:72] = 3
    classes[5:60, 70:75] = 11
    things = np.where(np.isin(classes, list(THINGS)), classes, 0)
    things[12:24, 60:70] = 33  # the other window
    return classes, things


@pytest.fixture
def write(tmp_path):
    """Return a function that writes the three files of an image, and returns their folder."""

    def write_facade(name="cmp_b0001", rectangles=RECTANGLES, folder="base", side=1):
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        height, width = HEIGHT * side, WIDTH * side
        # Lines of one pixel: reduced by a half, they are grey.
        lines = np.tile(np.array([[0], [255]], dtype=np.uint8), (height // 2, width))
        Image.fromarray(lines).convert("RGB").save(root / f"{name}.jpg", quality=100)
        labels = np.ones((height, width), dtype=np.uint8)
        for label, *box in sorted(rectangles, key=lambda one: PAINTED.index(one[0])):
            top, bottom, left, right = (side * value for value in box)
            labels[top:bottom, left:right] = NUMBERS[label]
        picture = Image.fromarray(labels)
        picture.putpalette(bytes(range(36)))
        picture.save(root / f"{name}.png")
        text = "".join(
            element(label, (top / HEIGHT, bottom / HEIGHT), (left / WIDTH, right / WIDTH))
            for label, top, bottom, left, right in rectangles
        )
        (root / f"{name}.xml").write_text(text)
        return root

    return write_facade


@pytest.fixture
def run(tmp_path, capsys):
    """Return a function that converts; it returns exit status, output folder, lines, errors."""

    def run_convert(*words, output="out"):
        output = tmp_path / output
        status = main(["convert", "cmp", *map(str, words), "--output", str(output)])
        printed = capsys.readouterr()
        return status, output, printed.out.splitlines(), printed.err.splitlines()

    return run_convert


def read(output, position=0):
    """Return the entry of an image, its segments, and its ids (H, W)."""
    content = json.loads((output / "panoptic.json").read_text())
    image, annotation = content["images"][position], content["annotations"][position]
    assert annotation["image_id"] == image["id"]
    channels = np.asarray(Image.open(output / "panoptic" / annotation["file_name"])).astype(int)
    ids = channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2]
    return image, annotation["segments_info"], ids


def files(folder):
    """Return the bytes of all files in a folder but the lock."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_rectangles_become_segments(write, run):
    status, output, lines, errors = run(write())
    assert (status, errors) == (0, [])
    assert lines[-3:] == [
        f"1 of 1 image(s) in {output}",
        "1 segment(s) lie under others and are left out",
        "1 image, 9 segments, 12 classes: no problem",
    ]
    image, segments, ids = read(output)
    assert image == {"id": 1, "file_name": "cmp_b0001.jpg", "height": HEIGHT, "width": WIDTH}
    classes, things = painted()
    found = np.zeros_like(classes)
    for segment in segments:
        found[ids == segment["id"]] = segment["category_id"]
    np.testing.assert_array_equal(found, classes)
    # Stuff of one class is one segment, and each visible thing is one.
    pairs = set(zip(ids.ravel(), classes.ravel(), things.ravel(), strict=True))
    assert len(pairs) == len({pair[0] for pair in pairs}) == len(segments) == 9


def test_a_class_lies_over_all_those_that_are_painted_before(write, run):
    # Each one lies inside of the one before; the XML has the last one first.
    boxes = [(label, 2 * n, 60 - 2 * n, 3 * n, 100 - 3 * n) for n, label in enumerate(PAINTED)]
    _, output, *_ = run(write(rectangles=boxes[::-1]))
    _, segments, ids = read(output)
    classes = {segment["id"]: segment["category_id"] for segment in segments}
    found = [classes[value] for value in ids[: 2 * len(PAINTED) : 2, WIDTH // 2]]
    assert found == [NUMBERS[label] for label in PAINTED]


def test_areas_and_boxes_are_those_of_the_pixels(write, run):
    _, output, *_ = run(write())
    _, segments, ids = read(output)
    for segment in segments:
        rows, columns = np.nonzero(ids == segment["id"])
        left, top = columns.min(), rows.min()
        box = [left, top, columns.max() + 1 - left, rows.max() + 1 - top]
        assert (segment["area"], segment["bbox"]) == (rows.size, box)
        assert segment["iscrowd"] == 0


def test_categories_are_the_twelve_of_the_database(write, run):
    _, output, *_ = run(write())
    categories = json.loads((output / "panoptic.json").read_text())["categories"]
    names = {c["name"].replace("wall", "facade"): c["id"] for c in categories}
    assert names == NUMBERS
    assert {c["id"] for c in categories if c["isthing"]} == THINGS
    kinds = {(c["supercategory"], c["isthing"]) for c in categories}
    assert len(kinds) == len({name for name, _ in kinds})  # REMAP needs it


def test_ids_do_not_depend_on_the_order_nor_on_images_that_fail(write, run):
    first = write("cmp_b0001", SMALL)
    write("cmp_b0002")
    second = write("cmp_x0001", SMALL, folder="extended")
    _, output, *_ = run(first, second, output="a")
    assert files(output) == files(run(second, first, output="b")[1])
    (first / "cmp_b0001.png").unlink()
    status, failed, *_ = run(second, first, first, output="c")
    assert status == 1
    assert [read(failed, n)[0] for n in (0, 1)] == [read(output, n)[0] for n in (1, 2)]
    assert [read(output, n)[0]["id"] for n in (0, 1, 2)] == [1, 2, 3]


def test_a_folder_above_is_enough(write, run, tmp_path):
    write("cmp_b0001")
    write("cmp_x0001", folder="extended")
    (tmp_path / "label_names.txt").touch()
    assert run(tmp_path)[2][-3].startswith("2 of 2 image(s)")


def test_the_result_trains(write, run, tmp_path, monkeypatch):
    monkeypatch.setenv("SPATIALFLOW_CACHE", str(tmp_path / "cache"))
    _, output, *_ = run(write())
    changes = {"DATASETS.FOLDER.PATH": str(output)}
    cfg = config("folder_all", **changes)
    prepare_config(cfg)
    (name,) = cfg.DATASETS.TRAIN
    assert MetadataCatalog.get(name).thing_classes == ["window", "door", "balcony", "shop"]
    (one,) = DatasetCatalog.get(name)
    mapped = PanopticMapper(cfg, is_train=True)(one)
    assert sorted(mapped["instances"].gt_classes.tolist()) == [0, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("words", "side", "size"),
    [
        ([], 1, (60, 100)),
        (["--max-size", 100], 2, (60, 100)),
        (["--max-size", 77], 1, (46, 77)),
        (["--max-size", 101], 1, (60, 100)),
        (["--max-size", 0], 8, (480, 800)),
        ([], 8, (384, 640)),
    ],
)
def test_large_images_are_reduced(write, run, words, side, size):
    root = write(side=side)
    status, output, *_ = run(root, *words)
    image, segments, ids = read(output)
    assert (status, image["height"], image["width"], ids.shape) == (0, *size, size)
    picture = output / "images" / image["file_name"]
    assert Image.open(picture).size == size[::-1]
    if size == (HEIGHT * side, WIDTH * side):
        assert picture.read_bytes() == (root / "cmp_b0001.jpg").read_bytes()
        return
    # Antialiased: the lines of one pixel are grey, which a chosen pixel would not be.
    assert abs(np.asarray(Image.open(picture)).astype(int)[3:-3, 3:-3] - 128).max() < 64
    (pillar,) = (s for s in segments if s["category_id"] == NUMBERS["pillar"])
    rows, columns = size[0] / HEIGHT, size[1] / WIDTH
    edges = [round(part) for part in (70 * columns, 5 * rows, 75 * columns, 60 * rows)]
    box = [edges[0], edges[1], edges[2] - edges[0], edges[3] - edges[1]]
    assert (pillar["bbox"], pillar["area"]) == (box, box[2] * box[3])


def change(text):
    """Return a function that writes a text into an image's XML."""
    return lambda path: path.with_suffix(".xml").write_text(text)


def replace(suffix, save):
    return lambda path: save(path.with_suffix(suffix))


GOOD = element("facade", (0, 1), (0, 1))
BOMB = '<!DOCTYPE a [<!ENTITY b "c">]>' + GOOD.replace("facade", "&b;")


def wrong(x, label="window", name=None):
    return change(GOOD + element(label, x, (0.2, 0.4), name))


CORNICE = Image.new("L", (WIDTH, HEIGHT), 5)
BROKEN = {
    "no jpg": (replace(".jpg", lambda p: p.unlink()), "cmp_b0002.jpg: no such file"),
    "broken jpg": (replace(".jpg", lambda p: p.write_bytes(b"\xff\xd8")), "cmp_b0002.jpg: "),
    "no png": (replace(".png", lambda p: p.unlink()), "cmp_b0002.png: no such file"),
    "broken png": (replace(".png", lambda p: p.write_bytes(b"x")), "cmp_b0002.png: is not a pict"),
    "png in colours": (
        replace(".png", Image.new("RGB", (WIDTH, HEIGHT)).save),
        "cmp_b0002.png: has pixels of mode RGB; a palette image expected",
    ),
    "size of the png": (
        replace(".png", CORNICE.transpose(Image.Transpose.ROTATE_90).save),
        "cmp_b0002.png: is 60 x 100 px, but cmp_b0002.jpg is 100 x 60; files of the same",
    ),
    "png of another image": (
        replace(".png", CORNICE.save),
        "cmp_b0002.xml: its rectangles, painted, are not the classes in cmp_b0002.png",
    ),
    "no xml": (replace(".xml", lambda p: p.unlink()), "cmp_b0002.xml: no such file; each image"),
    "no object": (change(""), "cmp_b0002.xml: has no <object>"),
    "half an xml": (change(GOOD[:-20]), "cmp_b0002.xml: is not XML: "),
    "another encoding": (
        replace(".xml", lambda p: p.write_bytes(GOOD.encode("utf-16"))),
        "cmp_b0002.xml: cannot be read as UTF-8",
    ),
    "entities": (change(BOMB), "cmp_b0002.xml: has a document type"),
    "unknown label": (
        wrong((0.1, 0.2), name="roof"),
        "cmp_b0002.xml: object 2: labelname 'roof' given, one of background, facade, ",
    ),
    "nan": (wrong(("nan", 0.2)), "cmp_b0002.xml: object 2: x ['nan', '0.2'] given, two finite"),
    "infinity": (wrong((0.1, "1e999")), "cmp_b0002.xml: object 2: x ['0.1', '1e999'] given"),
    "no number": (wrong(("a", 0.2)), "cmp_b0002.xml: object 2: x ['a', '0.2'] given, two fin"),
    "one corner": (wrong((0.1,)), "cmp_b0002.xml: object 2: x ['0.1'] given, two finite"),
    "below 0": (wrong((-0.1, 0.2)), "cmp_b0002.xml: object 2 (window): x is -0.1, a number fr"),
    "above 1": (wrong((0.1, 1.1)), "cmp_b0002.xml: object 2 (window): x is 1.1, a number from 0"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_image_that_fails_is_listed_and_the_others_are_converted(write, run, kind):
    for name in ("cmp_b0001", "cmp_b0002", "cmp_b0003"):
        root = write(name, SMALL)
    spoil, message = BROKEN[kind]
    spoil(root / "cmp_b0002")
    status, output, lines, (failure, count) = run(root)
    assert status == 1
    assert failure.startswith(f"spatialflow convert: {root}/{message}")
    assert count == "spatialflow convert: 1 problem(s) of the input"
    assert lines[-2:] == [
        f"2 of 3 image(s) in {output}",
        "2 images, 4 segments, 12 classes: no problem",
    ]
    assert [read(output, n)[0]["id"] for n in (0, 1)] == [1, 3]


def test_a_rectangle_without_a_pixel_is_listed_and_the_rest_is_converted(write, run):
    root = write(rectangles=SMALL)
    with open(root / "cmp_b0001.xml", "a") as file:
        file.write(element("door", (0.5, 0.501), (0.2, 0.4)))
    status, output, lines, errors = run(root)
    assert status == 1
    assert errors[0] == (
        f"spatialflow convert: {root}/cmp_b0001.xml: object 3 (door) has no pixel in 100 x 60 px "
        "and is left out; a larger --max-size expected"
    )
    assert [s["category_id"] for s in read(output)[1]] == [2, 3]
    assert lines[-1] == "1 image, 2 segments, 12 classes: no problem"


def test_a_rectangle_may_exceed_its_image_by_rounding(write, run):
    root = write(rectangles=SMALL)
    xml = root / "cmp_b0001.xml"
    xml.write_text('<?xml version="1.0" encoding="utf-8"?>\n' + xml.read_text())
    with open(xml, "a") as file:
        file.write(element("cornice", (-0.01, 0.1), (0.5, 1.005)))
    status, output, *_ = run(root)
    assert status == 0
    (cornice,) = (s for s in read(output)[1] if s["category_id"] == NUMBERS["cornice"])
    assert cornice["bbox"] == [50, 0, 50, 6]


def test_an_xml_with_swapped_axes_is_refused(write, run):
    root = write()
    xml = root / "cmp_b0001.xml"
    swapped = xml.read_text().replace("x>", "z>").replace("y>", "x>").replace("z>", "y>")
    xml.write_text(swapped)
    status, output, lines, errors = run(root)
    assert (status, len(errors)) == (1, 2)
    assert "its rectangles, painted, are not the classes in cmp_b0001.png" in errors[0]
    assert lines[-1] == f"0 of 1 image(s) in {output}"
    assert files(output) == {}


def stops(run, *words):
    with pytest.raises(SystemExit) as ended:
        run(*words)
    assert "\n" not in ended.value.code
    return ended.value.code


def test_folders_without_images_are_refused(write, run, tmp_path):
    root = write()
    assert stops(run, root, tmp_path / "none").endswith(
        "such folder; that of an unzipped archive expected"
    )
    (tmp_path / "empty").mkdir()
    line = stops(run, root, tmp_path / "empty")
    assert line.startswith(f"spatialflow convert: {tmp_path}/empty: no file cmp_*.xml in it")
    line = stops(run, root, write(folder="copy"))
    assert f"{root}/cmp_b0001 has the same name" in line
    assert not (tmp_path / "out").exists()


def test_the_users_files_stay(write, run, tmp_path):
    root, output = write(), tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    line = stops(run, root)
    assert line == (
        f"spatialflow convert: --output: {str(output)!r} given, which is not empty; a new folder "
        "expected"
    )
    assert files(output) == {"notes.txt": b"mine"}
    assert not (output / ".lock").exists()
    (output / "notes.txt").rename(output.with_suffix(".txt"))
    assert run(root)[0] == 0
    before = files(output)
    assert "not empty" in stops(run, root)
    assert files(output) == before
    output.with_suffix(".txt").rename(tmp_path / "file")
    with pytest.raises(SystemExit, match="which is a file or lies below one"):
        run(root, output="file")


@pytest.mark.parametrize("name", ["write_panoptic_png", "write_json"])
def test_an_interruption_leaves_nothing(write, run, tmp_path, monkeypatch, name):
    write("cmp_b0001", SMALL)
    root = write("cmp_b0002", SMALL)
    calls = []

    def fail(*args, **keys):
        calls.append(args)
        if name == "write_json" or len(calls) == 2:
            raise OSError(28, "No space left on device", "a file")
        return written(*args, **keys)

    written = getattr(writer, name)
    with monkeypatch.context() as patched:
        patched.setattr(writer, name, fail)
        assert stops(run, root).endswith("No space left on device")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    # What a killed conversion has left is not the user's.
    left = tmp_path / "out" / writer.WORK_FOLDER / "images"
    left.mkdir(parents=True)
    (left / "half.jpg").touch()
    status, output, *_ = run(root)
    assert status == 0
    assert len(files(output)) == 5


def test_the_command_line_names_the_formats_there_are():
    assert tuple(convert.FORMATS) == FORMATS
