"""The command ``spatialflow``: its help, wrong command lines, and what is missing."""

import importlib
import os
import runpy
import subprocess
import sys
import venv

import pytest
from detectron2.engine import default_argument_parser

from spatialflow_cli.commands import COMMANDS, parser_of
from spatialflow_cli.main import main
from tests.conftest import PYTHON_PATH, ROOT, parse

HELP = [
    ("-m spatialflow_cli", "commands:"),
    ("-m spatialflow_cli --help", "commands:"),
    ("-m spatialflow_cli analyze --help", "analyze data"),
    *((f"-m spatialflow_cli {name} --help", f"usage: spatialflow {name}") for name in COMMANDS),
    (f"{ROOT}/train_net.py --help", "usage: train_net.py"),
    (f"{ROOT}/search_net.py --help", "usage: search_net.py"),
]
# The shortest command line of each command that its parser accepts.
ACCEPTED = {
    "train": "",
    "search": "",
    "evaluate": "",
    "predict": "--config-file a --input b --output c",
    "check": "a",
    "convert": "cmp a --output b",
    "analyze model": "--config-file a",
    "analyze data": "a",
    "import-weights": "--config-file a --input b --output c",
    "trials": "--config-file a --genotypes b",
}


def run(words, *, python=sys.executable):
    command = [python, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """A Python without any package."""
    root = tmp_path_factory.mktemp("bare")
    venv.create(root, with_pip=False, symlinks=True)
    return str(root / "bin" / "python")


@pytest.mark.parametrize(("words", "start"), HELP)
def test_help_fits_a_screen_and_imports_the_standard_library_only(words, start):
    done = run(["-X", "importtime", *words.split()])
    assert done.returncode == 0, done.stderr[-2000:]
    assert start in done.stdout
    lines = done.stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines_of(done)}
    own = {"spatialflow_cli", "__main__"}
    assert "argparse" in imported
    assert imported & {"torch", "detectron2", "numpy", "spatialflow", "darts", "yaml"} == set()
    assert imported & own


def lines_of(done):
    return [line for line in done.stderr.splitlines() if line.startswith("import time:")]


def test_training_takes_what_detectron2_takes():
    theirs = default_argument_parser()
    ours = parser_of(COMMANDS["train"], "spatialflow train")
    defaults = vars(ours.parse_args([]))
    for action in theirs._actions:
        assert action.dest == "help" or action.dest in defaults
        if action.dest not in ("help", "config_file", "dist_url"):
            assert defaults[action.dest] == action.default or not action.option_strings
    options = {o for a in ours._actions for o in a.option_strings}
    assert {o for a in theirs._actions for o in a.option_strings} == options - {"-v", "--verbose"}
    words = ["--config-file", "a", "--resume", "--num-gpus", "2", "KEY", "VALUE"]
    assert ours.parse_args(words).opts == theirs.parse_args(words).opts == ["KEY", "VALUE"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["tarin"], "spatialflow: no command 'tarin', one of train, search, "),
        (["analyze", "date"], "spatialflow: no command 'analyze date', one of analyze model, ana"),
        (["analyze", "data"], "spatialflow analyze data: the following arguments are required: F"),
        (["a\nb"], r"spatialflow: no command 'a\\nb', one of"),
        (["train", "--num-gpu", "x"], "spatialflow train: argument --num-gpus: invalid int"),
        (["search", "--eval-only"], "spatialflow search: unrecognized arguments: --eval-only"),
        (["predict"], "spatialflow predict: the following arguments are required: --config-file"),
        (["check", "a", "b\nc"], r"spatialflow check: unrecognized arguments: b\nc; try --help"),
        (["convert", "voc", "a"], "spatialflow convert: argument FORMAT: invalid choice: 'voc' (c"),
        (["convert", "cmp", "a"], "spatialflow convert: the following arguments are required: --o"),
        (
            ["convert", "cmp", "a", "--output", "b", "--max-size", "-1"],
            "spatialflow convert: argument --max-size: '-1' given, a number from 0 on expected",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(words, line):
    done = run(["-m", "spatialflow_cli", *words])
    assert done.returncode == 2
    assert done.stdout == ""
    (only,) = done.stderr.splitlines()
    assert only.startswith(line)


@pytest.mark.parametrize("name", ACCEPTED)
def test_without_detectron2_a_command_points_to_the_doctor(bare_python, name):
    words = ["-m", "spatialflow_cli", *name.split(), *ACCEPTED[name].split()]
    done = run(words, python=bare_python)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"spatialflow {name}: spatialflow needs Detectron2 and PyTorch: No mod")
    assert "`spatialflow doctor` says" in line


def test_every_command_but_the_doctor_needs_detectron2():
    assert set(ACCEPTED) == set(COMMANDS) - {"doctor"}


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ModuleNotFoundError("No module named 'cv2'", name="cv2"), "No module named 'cv2'; `spat"),
        (ImportError("libGL.so.1: no\nsuch file"), "libGL.so.1: no such file; `spatialflow doc"),
        (ImportError("cannot import name 'x'", name="spatialflow.engine"), None),
    ],
    ids=["package", "library", "bug"],
)
def test_what_is_missing_is_one_line_and_a_bug_is_not(monkeypatch, error, line):
    def fail(name):
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(SystemExit if line else ImportError) as raised:
        main(["check", "a"])
    assert str(raised.value).startswith(f"spatialflow check: {line}" if line else "cannot import")


@pytest.mark.parametrize(("script", "command"), [("train_net", "train"), ("search_net", "search")])
def test_the_old_scripts_are_the_commands(monkeypatch, script, command):
    called = []
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--resume", "SEED", "1"])
    module = importlib.import_module(COMMANDS[command].module)
    monkeypatch.setattr(module, "main", lambda args: called.append(args) or 0)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
    assert ended.value.code == 0
    assert (called[0].resume, called[0].opts) == (True, ["SEED", "1"])


def test_a_mistake_is_all_that_is_printed(tmp_path):
    """The imports of Detectron2 warn with newer PyTorch."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    environment["PYTHONPATH"] = PYTHON_PATH
    command = [sys.executable, "-m", "spatialflow_cli", "train", "--config-file", "absent.yaml"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("spatialflow train: config file 'absent.yaml' not found")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        "--config-file c --input a.png b --output out SEED 3 MODEL.WEIGHTS w",
        "--output out --config-file c --input a.png b SEED 3 MODEL.WEIGHTS w",
        "SEED 3 --input a.png b MODEL.WEIGHTS w --output out --config-file c",
    ],
)
def test_pairs_are_taken_at_any_place(words):
    args = parse("predict", words.split())
    assert (args.input, args.output, args.config_file) == (["a.png", "b"], "out", "c")
    assert args.opts == ["SEED", "3", "MODEL.WEIGHTS", "w"]


def test_values_like_options_and_files_like_keys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "TEST.PNG").touch()
    words = ["--input", "MODEL.X", "TEST.PNG", "--output", "o", "--config-file", "c", "SEED", "-1"]
    args = parse("predict", words)
    assert (args.input, args.opts) == (["MODEL.X", "TEST.PNG"], ["SEED", "-1"])
    args = parse("trials", ["--config-file", "c", "--seeds", 0, 1, "--genotypes", "a", "SEED", 3])
    assert (args.seeds, args.genotypes, args.opts) == ([0, 1], ["a"], ["SEED", "3"])


def test_paths_of_a_command_line_begin_at_home(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    args = parse("predict", ["--config-file=~/c", "--input", "~/i", "--output=~/o"])
    assert [args.config_file, *args.input, args.output] == [f"{tmp_path}/{n}" for n in "cio"]
    assert parse("check", ["--json=~/j"]).json == f"{tmp_path}/j"
    with pytest.raises(SystemExit):
        parse("check", ["~nobody-here/x"])
    assert "'~nobody-here/x': no home folder '~nobody-here'" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["check", "DATA"], ["doctor"], ["--help"]], ids=" ".join)
def test_an_output_that_is_full_is_one_line(words, scenes_root, monkeypatch):
    monkeypatch.setattr("spatialflow_cli.doctor.run_checks", list)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        words = [str(scenes_root) if word == "DATA" else word for word in words]
        with pytest.raises(SystemExit, match=r"^spatialflow.*: .*No space left"):
            main(words)
