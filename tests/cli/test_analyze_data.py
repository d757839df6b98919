"""``spatialflow analyze data`` as a user starts it."""

import json
import os
import shutil

import pytest

from spatialflow.config import get_cfg
from spatialflow_cli.main import main

HALF = ["DATASETS.FOLDER.VAL_FRACTION", "0.5"]


pytestmark = pytest.mark.usefixtures("own_data")


@pytest.fixture
def analyze(capsys):
    """Return a function that runs the command and returns its page."""

    def run(*words):
        assert main(["analyze", "data", *map(str, words)]) == 0
        return capsys.readouterr().out

    return run


def test_the_page_fits_and_repeats(analyze, scenes_root):
    page = analyze(scenes_root, *HALF)
    lines = page.splitlines()
    assert max(map(len, lines)) <= 100
    assert any("training images of" in line and "8 bits" in line for line in lines)
    assert "Proposal" in lines
    assert "--output FILE.yaml writes" in lines[-1]
    rest = [line for line in lines if not line.startswith("anchors ")]
    again = [line for line in analyze(scenes_root, *HALF).splitlines() if line[:8] != "anchors "]
    assert again == rest


@pytest.mark.slow
def test_the_config_trains_from_any_folder(analyze, program, scenes_root, tmp_path):
    file = tmp_path / "new" / "own.yaml"
    page = analyze(scenes_root, "--output", file, *HALF)
    assert f"Next: spatialflow train --config-file {file}" in page
    text = file.read_text()
    assert 10 <= len(text.splitlines()) <= 40
    cfg = get_cfg(file)
    assert str(scenes_root) == cfg.DATASETS.FOLDER.PATH
    assert cfg.DATASETS.FOLDER.VAL_FRACTION == 0.5
    assert cfg.MODEL.SPATIALFLOW.REGIONS.ENABLED
    small = {
        "MODEL.SPATIALFLOW.TRUNK_PRETRAINED": False,
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "SOLVER.MAX_ITER": 2,
        "SOLVER.IMS_PER_BATCH": 1,
        "DATALOADER.NUM_WORKERS": 0,
        "OUTPUT_DIR": tmp_path / "run",
    }
    pairs = [word for pair in small.items() for word in pair]
    done = program("spatialflow", "train", "--config-file", file, *pairs)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "run" / "results.json").read_text())


def test_a_file_that_exists_stays(scenes_root, tmp_path, capsys):
    file = tmp_path / "own.yaml"
    file.write_text("mine")
    with pytest.raises(SystemExit) as ended:
        main(["analyze", "data", str(scenes_root), "--output", str(file)])
    assert str(ended.value) == (
        f"spatialflow analyze data: --output: {file} exists already; the name of a new file "
        "expected"
    )
    assert file.read_text() == "mine"
    assert os.listdir(tmp_path) == ["own.yaml"]
    assert capsys.readouterr().out == ""


def break_json(root):
    (root / "panoptic.json").write_text("{")


def drop_an_image(root):
    next((root / "images").iterdir()).unlink()


def drop_a_folder(root):
    shutil.rmtree(root / "panoptic")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (break_json, "panoptic.json: is not valid JSON"),
        (drop_an_image, "no such file"),
        (drop_a_folder, "no such folder"),
    ],
)
def test_data_that_the_checker_refuses_are_the_same_line(
    change, problem, scenes_root, tmp_path, capsys
):
    root = tmp_path / "data"
    shutil.copytree(scenes_root, root)
    change(root)
    assert main(["check", str(root)]) == 1
    checked = capsys.readouterr().out.splitlines()[0]
    assert problem in checked
    words = [str(root), "--output", str(tmp_path / "own.yaml")]
    with pytest.raises(SystemExit) as ended:
        main(["analyze", "data", *words, "DATASETS.FOLDER.VAL_FRACTION", "1e-9"])
    assert str(ended.value).startswith(f"spatialflow analyze data: {checked}")
    assert not (tmp_path / "own.yaml").exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["absent"], "'absent' is no folder; one with images/, panoptic/ and panoptic.json"),
        (["DATA", "SEED", "3"], "SEED given, keys of DATASETS expected; the file that --output"),
        (["DATA", "DATASETS.FOLDER.REMAP", "x"], "DATASETS.FOLDER.REMAP: 'x' given"),
        (["DATA", "DATASETS.FOLDER.PATH", "x"], "DATASETS.FOLDER.PATH given, but FOLDER is it"),
        (["DATA", "more"], "more given, keys of DATASETS expected"),
    ],
)
def test_mistakes_are_one_line(words, problem, scenes_root):
    words = [str(scenes_root) if word == "DATA" else word for word in words]
    with pytest.raises(SystemExit) as ended:
        main(["analyze", "data", *words])
    assert str(ended.value).startswith(f"spatialflow analyze data: {problem}")


@pytest.mark.slow
def test_real_nuclei(analyze, real_data, tmp_path):
    file = tmp_path / "nuclei.yaml"
    page = analyze(real_data / "nuclei_train433", "--output", file)
    assert "357 training images" in page
    cfg = get_cfg(file)
    hand = get_cfg("nuclei/refined.yaml")
    assert cfg.INPUT.MIN_SIZE_TEST == hand.INPUT.MIN_SIZE_TEST == 640
    assert cfg.INPUT.CROP.SIZE == hand.INPUT.CROP.SIZE == [144, 144]
    assert cfg.INPUT.MIN_SIZE_TRAIN == hand.INPUT.MIN_SIZE_TRAIN
    assert 151 <= cfg.TEST.DETECTIONS_PER_IMAGE <= 300
    before, after = (
        line.split()
        for line in page.splitlines()
        if line.startswith(("Base-Small.yaml ", "the proposal "))
    )
    # Mean positive anchors of the smallest quarter.
    assert float(after[-3]) > 2 * float(before[-3])
    assert float(after[-1].rstrip("%")) < 10 < 50 < float(before[-1].rstrip("%"))


@pytest.mark.slow
def test_the_config_of_facades_is_what_the_command_writes(analyze, real_data, tmp_path):
    file = tmp_path / "facades.yaml"
    analyze(real_data / "facades_train278", "--output", file)
    found, shipped = get_cfg(file), get_cfg("facades/refined.yaml")
    for cfg in (found, shipped):
        cfg.DATASETS.FOLDER.PATH = cfg.OUTPUT_DIR = ""
    assert found == shipped
