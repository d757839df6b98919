"""In every program a bug keeps its stack trace, and a wrong value is one line."""

import argparse
import importlib
import sys

import pytest

from benchmarks.speed.report import run_benchmark
from benchmarks.speed.targets import search_rows
from spatialflow.cli.errors import USER_ERRORS
from spatialflow.utils.errors import ConfigError
from spatialflow_cli.commands import COMMANDS
from spatialflow_cli.main import main
from tests.conftest import ROOT, TINY_RUN

CONFIG = ["--config-file", "generated/spatialflow.yaml"]
SEARCH = ["--config-file", "search/demo.yaml"]
WRONG_KEY = ["SOLVER.MAX_ITERS", 3]

# Program: its arguments, and a part of its work that has a bug.
PROGRAMS = {
    "train": ([*CONFIG, "TINY"], "spatialflow.engine.Trainer.build_model"),
    "evaluate": ([*CONFIG, "TINY", "WEIGHTS"], "spatialflow.engine.Trainer.build_model"),
    "search": ([*SEARCH, "TINY"], "spatialflow.search.trainer.SearchTrainer.build_optimizer"),
    "predict": (
        [*CONFIG, "--input", "a.png", "--output", "out", "TINY", "WEIGHTS"],
        "spatialflow.cli.predict.Predictor",
    ),
    "convert": (["cmp", "a", "--output", "out"], "spatialflow.data.convert.cmp.find_sources"),
    "analyze model": ([*CONFIG, "TINY"], "spatialflow.cli.analyze_model.measure_parts"),
    "import-weights": (
        [*CONFIG, "--input", "a.pth", "--output", "out", "TINY"],
        "spatialflow.cli.import_weights.read_reference_checkpoint",
    ),
    "trials": (
        [*CONFIG, "--genotypes", "parallel", "--one", "parallel", 0, "--opts", "TINY"],
        "spatialflow.analysis.trials.PQTrainer.build_model",
    ),
    "tools.check_parity": (
        [ROOT / "tests/reference/compact", "--config-file", "reference/narrow.yaml"],
        "tools.check_parity.check_parity",
    ),
    "demo.quickstart": (["--output", "out", "TINY"], "demo.quickstart.Trainer"),
    "demo.search": (["--output", "out", "TINY"], "demo.search.SearchTrainer.build_model"),
    "benchmarks.compare_peers": (
        ["one", "scenes", "parallel", 0.001, 0, "--results", "out", "--opts"],
        "benchmarks.compare_peers.config",
    ),
    "benchmarks.augmented": (
        [*CONFIG, "--weights", "a.pth", "--sizes", 64, "--opts", "TINY"],
        "benchmarks.augmented.PQTrainer",
    ),
    "benchmarks.search_cost": ([], "benchmarks.search_cost.measure_memory"),
}
# No key of a config is among its arguments.
WITHOUT_KEYS = {"convert", "benchmarks.search_cost"}


def fail(*_, **__):
    raise ValueError("a bug")


@pytest.fixture
def start(monkeypatch, tmp_path, own_data):
    """Returns a function that runs a program in this process, with more arguments."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "demo"))
    (tmp_path / "model.pth").touch()
    tiny = [item for pair in (TINY_RUN | {"OUTPUT_DIR": "run"}).items() for item in pair]
    replaced = {"TINY": tiny, "WEIGHTS": ["MODEL.WEIGHTS", "model.pth"]}

    def run(program, more=()):
        given = [*PROGRAMS[program][0], *more]
        words = [str(item) for word in given for item in replaced.get(str(word), [word])]
        monkeypatch.setattr(sys, "argv", [program, *words])
        if program in COMMANDS:
            main([*program.split(), *words])
        else:
            importlib.import_module(program).main()

    return run


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_bug_keeps_its_trace(start, monkeypatch, program):
    broken = PROGRAMS[program][1]
    module = broken.rpartition(".")[0]
    importlib.import_module(module if module.islower() else module.rpartition(".")[0])
    monkeypatch.setattr(broken, fail)
    with pytest.raises(ValueError, match="a bug") as raised:
        start(program)
    assert any(entry.name == "fail" for entry in raised.traceback)


@pytest.mark.parametrize("program", sorted(set(PROGRAMS) - WITHOUT_KEYS))
def test_a_wrong_key_is_one_line(start, program):
    with pytest.raises(SystemExit, match=r"option SOLVER\.MAX_ITERS") as raised:
        start(program, WRONG_KEY)
    assert "\n" not in raised.value.code


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (["MODEL.SPATIALFLOW.GENOTYPE", "wrong.json"], "wrong.json: genotype version None given"),
        (
            ["MODEL.SPATIALFLOW.GENOTYPE", "far.json"],
            "genotype 'far': flow .* unknown node 'box.9'",
        ),
        (["MODEL.SPATIALFLOW.TRUNK", "vgg"], "MODEL.SPATIALFLOW.TRUNK: 'vgg' given"),
        (["DATASETS.TRAIN", "('nowhere',)"], "data set 'nowhere' is not registered"),
        (["DATALOADER.SAMPLER_TRAIN", "Other"], "DATALOADER.SAMPLER_TRAIN: 'Other' given"),
        (["DATASETS.SCENES.SIZE", 32], r"DATASETS\.SCENES\.SIZE: 32 given"),
        (["DATASETS.SCENES.VAL", 0], r"DATASETS\.SCENES\.VAL: 0 given"),
        (["SOLVER.IMS_PER_BATCH", 0], "SOLVER.IMS_PER_BATCH: 0 given"),
    ],
)
def test_values_that_are_wrong_only_where_they_are_used_are_one_line(start, tmp_path, keys, line):
    (tmp_path / "wrong.json").write_text("{}")
    flow = '{"from": "box.9", "to": "cls.1", "port": "input", "operation": "identity"}'
    (tmp_path / "far.json").write_text(f'{{"version": 1, "name": "far", "flows": [{flow}]}}')
    with pytest.raises(SystemExit, match=f"spatialflow train: .*{line}") as raised:
        start("train", keys)
    assert "\n" not in raised.value.code


def test_a_benchmark_of_speed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["speed"])
    with pytest.raises(ValueError, match="a bug"):
        run_benchmark("", fail)

    def mistaken(args):
        raise ConfigError("--data: none given")

    with pytest.raises(SystemExit, match="speed: --data: none given"):
        run_benchmark("", mistaken)


def test_a_target_of_speed(monkeypatch):
    monkeypatch.setattr("benchmarks.speed.targets.measure_times", fail)
    with pytest.raises(ValueError, match="a bug"):
        list(search_rows(argparse.Namespace(rounds=1)))


def test_a_plain_value_error_is_a_bug():
    assert not issubclass(ValueError, USER_ERRORS)
