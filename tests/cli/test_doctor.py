"""The doctor tells what is missing, even where nothing can be imported."""

import argparse
import subprocess
import sys
import venv

import pytest

from spatialflow_cli import doctor


def run(*arguments, python=sys.executable, **options):
    return subprocess.run(
        [python, *arguments], capture_output=True, text=True, check=False, **options
    )


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """A Python without any package."""
    root = tmp_path_factory.mktemp("bare")
    venv.create(root, with_pip=False, symlinks=True)
    return str(root / "bin" / "python")


@pytest.mark.slow
def test_everything_works_here(tmp_path):
    """Whoever runs the suite has an installation that the doctor calls good."""
    result = run("-m", "spatialflow_cli", "doctor", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("Everything that is needed works.\n")
    assert "PROBLEM" not in result.stdout


def test_it_starts_where_nothing_is_installed(bare_python, pytestconfig):
    result = run("-m", "spatialflow_cli", "doctor", python=bare_python, cwd=pytestconfig.rootpath)
    assert result.returncode == 1
    assert result.stderr == ""
    for line in (
        "torch + torchvision      PROBLEM: ModuleNotFoundError: No module named 'torch'",
        "detectron2               PROBLEM: ModuleNotFoundError: No module named 'detectron2'",
        "-> python tools/install_detectron2.py, or route A of docs/install.md",
        "Python                   OK",
    ):
        assert line in result.stdout


def test_importing_without_detectron2_points_to_the_doctor(bare_python, pytestconfig):
    result = run("-c", "import spatialflow", python=bare_python, cwd=pytestconfig.rootpath)
    assert result.returncode == 1
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: spatialflow needs Detectron2 and PyTorch: No module")
    assert "`spatialflow doctor` says" in message


@pytest.mark.parametrize("name", ["spatialflow", "darts"])
def test_another_project_of_the_same_name_is_noticed(name, tmp_path, monkeypatch):
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (result,) = doctor.run_checks([("own packages", doctor.check_own_packages)])
    assert result.state == doctor.PROBLEM
    assert result.detail == f"{name} is {package / '__init__.py'}"
    assert "pip uninstall spatialflow darts" in result.advice


def broken():
    raise doctor.CheckError("it broke", "mend it")


def optional():
    raise doctor.AbsentError("not here", "get it")


@pytest.mark.parametrize(
    ("checks", "exit_code", "line"),
    [
        ([("a", lambda: "fine")], 0, "a                        OK: fine"),
        ([("b", optional)], 0, "-> get it"),
        ([("b", optional), ("c", broken)], 1, "-> mend it"),
    ],
)
def test_only_problems_decide_the_exit_code(checks, exit_code, line, monkeypatch, capsys):
    results = doctor.run_checks(checks)
    monkeypatch.setattr(doctor, "run_checks", lambda: results)
    assert doctor.main(argparse.Namespace()) == exit_code
    assert line in capsys.readouterr().out


def test_a_torch_that_does_not_fit_torchvision_is_a_problem(monkeypatch):
    def nms(*_):
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    monkeypatch.setattr("torchvision.ops.nms", nms)
    (result,) = doctor.run_checks([("pair", doctor.check_torch)])
    assert result.state == doctor.PROBLEM
    assert result.detail == "RuntimeError: operator torchvision::nms does not exist"
    assert "one channel" in result.advice


def test_without_hotcoco_only_the_fast_ap_is_absent(monkeypatch):
    checks = [("evaluation", doctor.check_evaluation), ("fast AP", doctor.check_fast_ap)]
    assert [r.state for r in doctor.run_checks(checks)] == [doctor.OK, doctor.OK]
    monkeypatch.setattr(doctor, "version_of", lambda name: None)
    found = doctor.run_checks(checks)
    assert [r.state for r in found] == [doctor.OK, doctor.OPTIONAL]
    assert found[1].advice == "for AP in less time: pip install hotcoco"
