"""The wheel, installed without the repository, does what the README shows."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY_RUN

pytestmark = pytest.mark.slow


def call(command, *, folder, environment=None):
    done = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment with the wheel: its folder, and the variables of its processes.

    Other packages are those of the environment that runs the tests. A path in a ``.pth`` file is
    added without the ``.pth`` files in it, hence without an editable installation of the project.
    """
    root = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", root]
    call(build, folder=ROOT)
    (wheel,) = root.glob("*.whl")
    venv.create(root / "env", with_pip=False, symlinks=True)
    python = root / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps"]
    call([*pip, wheel], folder=root)
    (packages,) = (root / "env" / "lib").glob("python*/site-packages")
    others = {str(Path(sys.modules[name].__file__).parents[1]) for name in ("torch", "detectron2")}
    (packages / "others.pth").write_text("\n".join(sorted(others)) + "\n")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"PYTHONWARNINGS": "ignore", "SPATIALFLOW_CACHE": str(root / "cache")}
    return root / "env", environment


@pytest.fixture
def spatialflow(installed, tmp_path):
    """Returns a function that runs the installed command in an empty folder."""
    root, environment = installed
    (tmp_path / "here").mkdir()

    def start(*words):
        command = [root / "bin" / "spatialflow", *words]
        return call(command, folder=tmp_path / "here", environment=environment)

    return start


def test_the_packages_are_those_of_the_wheel(installed, tmp_path):
    root, environment = installed
    code = "import spatialflow, spatialflow_cli, darts\n"
    code += "print(spatialflow.__file__, spatialflow_cli.__file__, darts.__file__, sep='|')"
    command = [root / "bin" / "python", "-c", code]
    found = call(command, folder=tmp_path, environment=environment).strip().split("|")
    assert len(found) == 3
    assert all(Path(file).is_relative_to(root) for file in found), found


@pytest.mark.timeout(900)
def test_the_command_works_outside_the_repository(spatialflow, scenes_root, tmp_path):
    here = tmp_path / "here"
    assert "Everything that is needed works." in spatialflow("doctor")
    assert spatialflow("check", scenes_root).strip().endswith("no problem")

    spatialflow("analyze", "data", scenes_root, "--output", "own.yaml")
    keys = TINY_RUN | {
        "DATASETS.FOLDER.PATH": scenes_root,
        "DATASETS.FOLDER.VAL_FRACTION": 0.5,
        "DATASETS.TRAIN": "('folder_train',)",
        "DATASETS.TEST": "('folder_val',)",
        "SOLVER.IMS_PER_BATCH": 1,
        "SOLVER.MAX_ITER": 2,
        # Without much training all scores are low: let some become segments.
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": 0.0,
    }
    pairs = [item for pair in keys.items() for item in pair]
    spatialflow("train", "--config-file", "own.yaml", *pairs, "OUTPUT_DIR", "run")
    results = json.loads((here / "run" / "results.json").read_text())

    trained = ["--config-file", "run/config.yaml"]
    weights = ["MODEL.WEIGHTS", "run/model_final.pth"]
    spatialflow("evaluate", *trained, *weights, "OUTPUT_DIR", "evaluated")
    assert json.loads((here / "evaluated" / "results.json").read_text()) == results

    images = ["--input", scenes_root / "images", "--output", "predictions"]
    assert "6 image(s) in predictions" in spatialflow("predict", *trained, *images, *weights)
    assert len(list((here / "predictions" / "overlays").iterdir())) == 6

    few = {"SEARCH.WARMUP": 0.0, "SEARCH.REPORT_IMAGES": 0, "SEARCH.ARCHITECTURE_FRACTION": 0.5}
    pairs += [item for pair in few.items() for item in pair]
    spatialflow("search", "--config-file", "search/demo.yaml", *pairs, "OUTPUT_DIR", "found")
    assert (here / "found" / "genotype.json").is_file()
