"""``spatialflow predict``, and what it writes."""

import errno
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import Checkpointer
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from darts.genotype import Genotype, GenotypeError
from spatialflow.cli.results import ResultWriter
from spatialflow.data import register_panoptic
from spatialflow.data.validation.file_rules import read_panoptic_png
from spatialflow.engine import Predictor
from spatialflow.utils.errors import NonFiniteError
from spatialflow_cli.main import main


@pytest.fixture
def run(tmp_path, tiny_cfg, scenes):
    """A config file of a tiny model with random weights that finds something everywhere."""
    changes = {
        "DATASETS.TRAIN": (scenes,),
        "DATASETS.TEST": (scenes,),
        "MODEL.RETINANET.NUM_CLASSES": 5,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5,
        "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": 0.0,
        "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": 1,
        "TEST.DETECTIONS_PER_IMAGE": 4,
        # Group norm needs more than the one pixel that such a small image has on P7.
        "MODEL.RETINANET.NORM": "",
    }
    cfg = tiny_cfg(changes)
    model = build_model(cfg)
    with torch.no_grad():
        model.box_head.cls_score.bias.fill_(-1.0)
        model.stuff_head.predictor.bias.copy_(torch.tensor([0.0, 0, 9, 0, 0]))
    Checkpointer(model, str(tmp_path)).save("weights")
    config = tmp_path / "config.yaml"
    config.write_text(cfg.dump())
    return config, tmp_path / "weights.pth"


@pytest.fixture
def predict(run, tmp_path):
    """Returns a function that runs the command; it returns exit code and output folder."""

    def call(*inputs, opts=()):
        config, weights = run
        output = tmp_path / "predictions"
        arguments = ["--config-file", str(config), "--input", *map(str, inputs)]
        arguments += ["--output", str(output), "MODEL.WEIGHTS", str(weights), *opts]
        return main(["predict", *arguments]), output

    return call


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, size in (("odd.jpg", (75, 101, 3)), ("grey.png", (60, 90))):
        Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes((folder / "odd.jpg").read_bytes()[:700])
    (folder / "notes.txt").write_text("not looked at")
    return folder


@pytest.mark.parametrize("name", ["overlays", "panoptic.json"])
def test_the_places_of_results_are_tried_first(predict, folder, tmp_path, monkeypatch, name):
    monkeypatch.setattr("spatialflow.cli.predict.Predictor", None)
    place = tmp_path / "predictions" / name
    if place.suffix:
        place.mkdir(parents=True)
    else:
        place.parent.mkdir()
        place.touch()
    with pytest.raises(SystemExit, match=f"{name}: .* and it is a"):
        predict(folder)


def test_two_predictions_do_not_share_a_folder(predict, folder, tmp_path, other_run):
    first = other_run(tmp_path / "predictions")
    with pytest.raises(SystemExit, match="--output: .* given, which other_run"):
        predict(folder)
    first.communicate()
    assert predict(folder / "odd.jpg")[0] == 0


def test_good_images_are_written_and_bad_inputs_named_and_counted(
    predict, folder, tmp_path, capsys
):
    code, output = predict(folder, tmp_path / "absent.jpg")
    printed = capsys.readouterr()
    assert code == 1
    assert "absent.jpg: no such file or folder" in printed.err
    assert "broken.jpg: cannot be decoded: image file is truncated" in printed.err
    assert "2 input(s) failed" in printed.err
    assert "2 image(s)" in printed.out
    assert "notes.txt" not in printed.err
    for kind in ("overlays", "panoptic"):
        assert sorted(p.name for p in (output / kind).iterdir()) == ["grey.png", "odd.png"]
    with Image.open(output / "overlays" / "odd.png") as overlay:
        assert overlay.size == (640, 475)


def add_odd_files(folder):
    """Put files of all kinds into a folder; return what is said of those that are no images."""
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "odd.gif")
    Image.fromarray(pixels[:, :1].repeat(50, axis=0)).save(folder / "thin.png")  # 3000 × 1
    Image.fromarray(pixels[:1, :1]).save(folder / "dot.png")
    Image.fromarray(pixels).save(folder / ("x" * 251 + ".png"))
    Image.fromarray(pixels).save(folder / ("x" * 251 + ".jpg"))
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(pixels[..., 0].astype(np.float32)).save(folder / "float.tif")
    os.mkfifo(folder / "fifo.png")
    (folder / "folder.png").mkdir()
    (folder / "link.png").symlink_to("absent.png")
    return {
        "deep.png": "has channels of 16 bits (integers); 8 bits are expected",
        "float.tif": "has channels of 32 bits (floats); 8 bits are expected",
        "fifo.png": "is a FIFO, not a file",
        "folder.png": "is a folder, not a file",
        "link.png": "is a link to no file",
        "broken.jpg": "cannot be decoded: image file is truncated",
        # Its name with the number of the second image of that name is too long.
        "x" * 251 + ".png": "its result is not written: [Errno 36] File name too long",
    }


def test_no_file_of_a_folder_ends_the_work_on_the_others(predict, folder, capsys):
    messages = add_odd_files(folder)
    code, output = predict(folder)
    printed = capsys.readouterr()
    assert code == 1
    *lines, last = printed.err.splitlines()
    assert last == f"spatialflow predict: {len(messages)} input(s) failed"
    for name, text in messages.items():
        (line,) = [line for line in lines if f"{folder / name}: " in line]
        assert line.startswith(f"spatialflow predict: {folder / name}: {text}")
    content = json.loads((output / "panoptic.json").read_text())
    names = {Path(i["file_name"]).name for i in content["images"]}
    assert names == {"odd.jpg", "odd.gif", "grey.png", "thin.png", "dot.png", "x" * 251 + ".jpg"}
    for kind in ("overlays", "panoptic"):
        written = {p.name for p in (output / kind).iterdir()}
        assert written == {a["file_name"] for a in content["annotations"]}
        assert {"odd.png", "odd-2.png"} <= written


def test_deep_images_are_predicted_with_a_white_level(predict, folder):
    pixels = np.asarray(Image.open(folder / "grey.png"))
    Image.fromarray(pixels.astype(np.uint16) * 257).save(folder / "deep.png")
    code, output = predict(
        folder / "deep.png", folder / "grey.png", opts=["INPUT.WHITE_LEVEL", "65535"]
    )
    assert code == 0
    first, second = (read_panoptic_png(output / "panoptic" / n) for n in ("deep.png", "grey.png"))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), "is too large for the memory of this machine"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "is too large for the memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), "is too large for the memory"),
        (NonFiniteError("the image holds NaN"), "the image holds NaN"),
        (TypeError("a bug"), None),
        (RuntimeError("a bug"), None),
        (KeyboardInterrupt(), None),
        (OSError(errno.ENOSPC, "No space left on device"), None),
    ],
)
def test_a_bug_ends_the_work_and_what_was_done_is_kept(
    predict, folder, tmp_path, monkeypatch, capsys, error, text
):
    """`grey.png` is done, `odd.jpg` meets the error, and `z.png` is done where that is allowed."""
    (folder / "z.png").write_bytes((folder / "grey.png").read_bytes())
    original = Predictor.__call__

    def fail_on_colours(self, image):
        if image.shape[:2] == (75, 101):
            raise error
        return original(self, image)

    monkeypatch.setattr(Predictor, "__call__", fail_on_colours)
    done = ["grey.png", "z.png"]
    if text is not None:
        assert predict(folder)[0] == 1
        assert f"{folder / 'odd.jpg'}: {text}" in capsys.readouterr().err
    else:
        done = ["grey.png"]
        of_user = isinstance(error, OSError | KeyboardInterrupt)
        with pytest.raises(SystemExit if of_user else type(error)):
            predict(folder)
        printed = capsys.readouterr()
        assert "1 image(s)" in printed.out
        assert "broken.jpg: cannot be decoded" in printed.err
    content = json.loads((tmp_path / "predictions" / "panoptic.json").read_text())
    assert [Path(i["file_name"]).name for i in content["images"]] == done
    assert sorted(p.name for p in (tmp_path / "predictions" / "panoptic").iterdir()) == done


def test_a_result_is_written_whole_or_not_at_all(predict, folder, tmp_path, capsys):
    taken = tmp_path / "predictions" / "panoptic" / "grey.png"
    taken.mkdir(parents=True)
    code, output = predict(folder / "grey.png", folder / "odd.jpg")
    assert code == 1
    assert (
        "grey.png: its result is not written: [Errno 21] Is a directory" in capsys.readouterr().err
    )
    assert [p.name for p in (output / "overlays").iterdir()] == ["odd.png"]


def test_a_closed_output_does_not_end_the_work(predict, folder, monkeypatch):
    def closed(*_):
        raise BrokenPipeError

    monkeypatch.setattr("spatialflow.cli.predict.print_line", closed)
    monkeypatch.setattr("spatialflow.cli.predict.divert", lambda _: None)
    code, output = predict(folder / "grey.png", folder / "odd.jpg")
    assert code == 0
    assert len(list((output / "panoptic").iterdir())) == 2


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 9, 3)),
        np.zeros((8, 9, 3), np.uint16),
        np.zeros((8, 9), np.uint8),
        np.zeros((8, 9, 4), np.uint8),
        np.zeros((0, 9, 3), np.uint8),
        torch.zeros(8, 9, 3, dtype=torch.uint8),
        None,
    ],
)
def test_the_predictor_refuses_other_arrays(image):
    predictor = Predictor.__new__(Predictor)  # nothing of it is needed
    with pytest.raises(
        ValueError, match=r"an image of \(H, W, 3\) uint8 .* given; spatialflow"
    ) as e:
        predictor(image)
    assert "\n" not in str(e.value)


def test_result_is_a_coco_panoptic_data_set_with_the_categories_of_the_data(
    predict, folder, tmp_path, scenes, scenes_root
):
    code, output = predict(folder / "odd.jpg", folder / "grey.png")
    assert code == 0
    content = json.loads((output / "panoptic.json").read_text())
    truth = json.loads((scenes_root / "panoptic.json").read_text())
    wanted = [{k: c[k] for k in ("id", "name", "isthing", "color")} for c in truth["categories"]]
    assert content["categories"] == wanted
    assert [(i["height"], i["width"]) for i in content["images"]] == [(75, 101), (60, 90)]
    kinds = set()
    is_thing = {c["id"]: c["isthing"] for c in wanted}
    for annotation in content["annotations"]:
        ids = read_panoptic_png(output / "panoptic" / annotation["file_name"])
        present, areas = np.unique(ids[ids > 0], return_counts=True)
        segments = {s["id"]: s for s in annotation["segments_info"]}
        assert sorted(segments) == present.tolist()
        assert [segments[i]["area"] for i in present] == areas.tolist()
        kinds |= {is_thing[s["category_id"]] for s in segments.values()}
    assert kinds == {0, 1}
    # Stuff label 2 is the second stuff class, brick.
    stuff = {s["category_id"] for a in content["annotations"] for s in a["segments_info"]} - {
        c["id"] for c in wanted if c["isthing"]
    }
    assert [c["name"] for c in wanted if c["id"] in stuff] == ["brick"]
    register_panoptic("predicted", tmp_path, output / "panoptic.json", output / "panoptic")
    metadata = MetadataCatalog.get("predicted")
    assert metadata.thing_classes == MetadataCatalog.get(scenes).thing_classes


def test_images_of_one_name_in_two_folders_do_not_overwrite_each_other(tmp_path, scenes):
    writer = ResultWriter(tmp_path, MetadataCatalog.get(scenes))
    result = (torch.zeros(8, 8, dtype=torch.int32), [])
    for folder in ("a", "b", "c"):
        writer.add(Path(folder) / "same.jpg", np.zeros((8, 8, 3), np.uint8), result)
    names = [a["file_name"] for _, a in writer.results]
    assert names == ["same.png", "same-2.png", "same-3.png"]
    assert sorted(p.name for p in (tmp_path / "panoptic").iterdir()) == sorted(names)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([], "MODEL.WEIGHTS is empty"),
        (["MODEL.WEIGHTS", "absent.pth"], "MODEL.WEIGHTS: no such file: '/.*/absent.pth'"),
    ],
)
def test_missing_weights_are_reported(run, folder, tmp_path, weights, message):
    arguments = ["--config-file", str(run[0]), "--input", str(folder), "--output", str(tmp_path)]
    with pytest.raises(SystemExit, match=f"spatialflow predict: {message}"):
        main(["predict", *arguments, *weights])


@pytest.mark.parametrize("what", ["weights", "config", "genotype"])
def test_a_fifo_in_place_of_a_file_is_refused(run, folder, tmp_path, what):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    config = fifo if what == "config" else run[0]
    opts = ["MODEL.WEIGHTS", str(fifo if what == "weights" else run[1])]
    opts += ["MODEL.SPATIALFLOW.GENOTYPE", str(fifo)] if what == "genotype" else []
    arguments = ["--config-file", str(config), "--input", str(folder), "--output", str(tmp_path)]
    with pytest.raises(SystemExit, match=f"spatialflow predict: .*{fifo}"):
        main(["predict", *arguments, *opts])
    with pytest.raises(GenotypeError, match="fifo: is no file"):
        Genotype.load(fifo)


def test_classes_that_do_not_fit_the_data_are_reported(run, folder, tmp_path):
    arguments = ["--config-file", str(run[0]), "--input", str(folder), "--output", str(tmp_path)]
    opts = ["MODEL.WEIGHTS", str(run[1]), "MODEL.RETINANET.NUM_CLASSES", "7"]
    with pytest.raises(SystemExit, match="MODEL.RETINANET.NUM_CLASSES: 7 given"):
        main(["predict", *arguments, *opts])


def test_sigterm_keeps_what_was_done(predict, folder, tmp_path, monkeypatch, capsys):
    original = Predictor.__call__

    def end_on_colours(self, image):
        if image.shape[:2] == (75, 101):
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, image)

    monkeypatch.setattr(Predictor, "__call__", end_on_colours)
    with pytest.raises(SystemExit) as end:
        predict(folder)
    assert end.value.code == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err
    content = json.loads((tmp_path / "predictions" / "panoptic.json").read_text())
    assert [Path(i["file_name"]).name for i in content["images"]] == ["grey.png"]
