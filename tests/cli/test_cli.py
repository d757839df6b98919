"""Training and evaluation as a user starts them."""

import functools
import json
import os
import subprocess
import sys

import pytest

from darts.genotype import Flow, Genotype
from spatialflow.cli.train import prepare
from spatialflow.config import load_genotype
from spatialflow.config.options import SUPERNET
from spatialflow.engine import setup
from spatialflow.search.trainer import SearchTrainer
from tests.conftest import PYTHON_PATH, ROOT, parse

CONFIG = "generated/spatialflow.yaml"


@pytest.fixture
def train_net(program):
    """Returns a function that runs train_net.py."""
    return functools.partial(program, "train_net.py")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--config-file", CONFIG, "SOLVER.MAX_ITERS", "3"], "SOLVER.MAX_ITERS"),
        (["--config-file", "absent.yaml"], "absent.yaml"),
    ],
    ids=["key", "file"],
)
def test_a_mistake_gives_one_clear_line(train_net, arguments, problem):
    result = train_net(*arguments)
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("train_net.py: ")
    assert problem in line


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--eval-only", "MODEL.WEIGHTS", "absent.pth"], "MODEL.WEIGHTS.*absent.pth"),
        (["--eval-only"], "MODEL.WEIGHTS is empty"),
        (["DATASETS.FOLDER.PATH", "absent"], "DATASETS.FOLDER.PATH.*absent"),
        (["MODEL.RETINANET.NUM_CLASSES", "7"], "MODEL.RETINANET.NUM_CLASSES.*7"),
    ],
    ids=["weights", "no weights", "folder", "classes"],
)
def test_mistakes_found_before_anything_is_written(
    monkeypatch, tmp_path, scenes, arguments, problem
):
    monkeypatch.chdir(tmp_path)
    data = ["DATASETS.TRAIN", (scenes,), "DATASETS.TEST", (scenes,)]
    parsed = parse("train", ["--config-file", CONFIG, *arguments])
    parsed.opts = [*parsed.opts, *data]
    with pytest.raises(ValueError, match=problem):
        prepare(parsed)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("typo_val", "'typo_val' given, a registered data set expected"),
        ("spatialflow_ade20k_val", "'spatialflow_ade20k_val': .*no such f.*DETECTRON2_DATASETS"),
    ],
)
@pytest.mark.parametrize("evaluation", [True, False])
def test_data_that_are_not_there_are_missed_at_once(
    tmp_path, monkeypatch, name, problem, evaluation
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "absent"))
    (tmp_path / "model.pth").touch()
    words = ["--config-file", "coco/spatialflow_r50_20e.yaml"]
    words += ["--eval-only"] if evaluation else []
    words += ["OUTPUT_DIR", str(tmp_path / "output"), "MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    words += ["MODEL.DEVICE", "cpu", "DATASETS.TRAIN", "()", "DATASETS.TEST", f"('{name}',)"]
    with pytest.raises(ValueError, match=f"DATASETS.TEST: {problem}"):
        setup(parse("train", words))
    assert not (tmp_path / "output").exists()


@pytest.mark.usefixtures("scenes")
def test_a_run_goes_on_with_its_own_genotype(tiny_options, tmp_path):
    def words(genotype, *flags):
        start = ["--config-file", CONFIG, *flags]
        return parse("train", [*start, *tiny_options, "MODEL.SPATIALFLOW.GENOTYPE", genotype])

    setup(words("thing_guided"))
    # Nothing has been trained yet.
    setup(words("spatialflow", "--resume"))
    (tmp_path / "output" / "last_checkpoint").write_text("model_0000002.pth")
    before = {path: path.read_bytes() for path in (tmp_path / "output").glob("*.*")}
    problem = "MODEL.SPATIALFLOW.GENOTYPE: 'parallel' .* 'spatialflow' .*genotype.json"
    with pytest.raises(ValueError, match=problem):
        setup(words("parallel", "--resume"))
    assert {path: path.read_bytes() for path in (tmp_path / "output").glob("*.*")} == before
    setup(words(str(tmp_path / "output" / "genotype.json"), "--resume"))


def test_the_config_of_a_search_is_refused_and_its_folder_stays(train_net, tiny_options, tmp_path):
    output = tmp_path / "output"
    words = ["--config-file", "search/demo.yaml", *tiny_options]
    arguments = parse("search", words)
    arguments.opts = ["MODEL.META_ARCHITECTURE", SUPERNET, *arguments.opts]
    setup(arguments, trainer=SearchTrainer)
    (output / "genotype.json").write_text("what the search has found")
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    result = train_net("--config-file", output / "config.yaml")
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("train_net.py: MODEL.META_ARCHITECTURE: 'SpatialFlowSupernet' given")
    assert "`spatialflow search` searches" in line
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


@pytest.fixture
def tiny_options(tmp_path):
    """KEY VALUE pairs that make training a matter of seconds."""
    keys = {
        "OUTPUT_DIR": tmp_path / "output",
        "MODEL.DEVICE": "cpu",
        "MODEL.SPATIALFLOW.TRUNK": "resnet",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.NORM": "GN",
        # The refined configs read res2.
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 32,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
        "DATASETS.SCENES.TRAIN": 4,
        "DATASETS.SCENES.VAL": 2,
        "DATASETS.SCENES.SIZE": 96,
        "INPUT.MIN_SIZE_TRAIN": "(64,)",
        "INPUT.MIN_SIZE_TEST": 64,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 4,
    }
    return [str(item) for pair in keys.items() for item in pair]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_train_evaluate_and_resume(train_net, tiny_options, tmp_path):
    config = ["--config-file", CONFIG]
    output = tmp_path / "output"
    trained = train_net(*config, *tiny_options, "SOLVER.CHECKPOINT_PERIOD", 2)
    assert trained.returncode == 0, trained.stderr[-2000:]
    for name in ("config.yaml", "genotype.json", "metrics.json", "model_final.pth", "log.txt"):
        assert (output / name).is_file(), name
    assert "PQ" in trained.stdout
    results = json.loads((output / "results.json").read_text())

    weights = ["MODEL.WEIGHTS", output / "model_final.pth"]
    saved = (output / "config.yaml").read_text()
    again = train_net("--config-file", output / "config.yaml", "--eval-only", *weights)
    assert again.returncode == 0, again.stderr[-2000:]
    assert (output / "config.yaml").read_text() == saved
    assert json.loads((output / "results.json").read_text()) == results

    (output / "model_final.pth").unlink()
    (output / "last_checkpoint").write_text("model_0000001.pth")
    resumed = train_net(*config, "--resume", *tiny_options)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert ", after 2 iterations" in resumed.stdout
    assert (output / "model_final.pth").is_file()


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(600)
def test_two_processes_train_and_evaluate(train_net, tiny_options, tmp_path):
    options = [*tiny_options, "MODEL.SPATIALFLOW.LOSS_NORMALIZER", "global"]
    trained = train_net("--config-file", CONFIG, "--num-gpus", 2, *options)
    assert trained.returncode == 0, trained.stderr[-2000:]
    assert "panoptic_seg" in json.loads((tmp_path / "output" / "results.json").read_text())


def test_a_genotype_given_by_path_travels_with_the_run(tmp_path, monkeypatch, scenes):
    monkeypatch.chdir(tmp_path)
    Genotype("mine", (Flow("box.4", "mask.1"),)).save(tmp_path / "mine.json")
    data = ["DATASETS.TRAIN", (scenes,), "DATASETS.TEST", (scenes,), "OUTPUT_DIR", "run"]
    parsed = parse("train", ["--config-file", CONFIG])
    parsed.opts = [*data, "MODEL.SPATIALFLOW.GENOTYPE", "mine.json"]
    cfg = setup(parsed)
    (tmp_path / "mine.json").unlink()
    monkeypatch.chdir("/")
    assert load_genotype(cfg.MODEL.SPATIALFLOW.GENOTYPE).name == "mine"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_quickstart_on_a_folder(scenes_root, tiny_options, tmp_path):
    options = [item for item in tiny_options if "output" not in item and item != "OUTPUT_DIR"]
    run = subprocess.run(
        [
            sys.executable,
            ROOT / "demo" / "quickstart.py",
            "--data",
            scenes_root,
            "--output",
            tmp_path / "demo",
            "--pictures",
            "1",
            *options,
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": PYTHON_PATH, "SPATIALFLOW_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert "colour classifier" in run.stdout
    assert (tmp_path / "demo" / "predictions.png").is_file()


def test_quickstart_names_a_folder_that_is_not_there(tmp_path):
    run = subprocess.run(
        [sys.executable, ROOT / "demo" / "quickstart.py", "--data", "absent"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": PYTHON_PATH, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert f"DATASETS.FOLDER.PATH: '{tmp_path}/absent' is not a folder" in run.stderr
