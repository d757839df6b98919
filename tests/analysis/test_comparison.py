"""Genotypes under one harness, and spatialflow trials."""

import json

import pytest

from darts.genotype import Flow, Genotype
from spatialflow.analysis.comparison import Comparison, comparison_table, load_genotypes
from spatialflow.analysis.trials import run_trial
from spatialflow.config import config_hash, get_cfg
from spatialflow.utils.errors import ConfigError
from spatialflow_cli.main import main
from tests.analysis.test_intervals import random_counts, result


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.json"
    Genotype("mine", (Flow("box.1", "cls.1", "input", "conv_1x1"),)).save(path)
    return path


def comparison(tmp_path, *genotypes, opts=()):
    found = load_genotypes(map(str, genotypes))
    return Comparison("generated/spatialflow.yaml", opts, found, [0, 1], tmp_path / "out")


@pytest.mark.slow
def test_genotypes_are_trained_once_and_compared(program, mine, tmp_path):
    small = {
        "DATASETS.SCENES.TRAIN": 4,
        "DATASETS.SCENES.VAL": 2,
        "DATASETS.SCENES.SIZE": 64,
        "SOLVER.MAX_ITER": 2,
        "SOLVER.IMS_PER_BATCH": 2,
        "INPUT.MIN_SIZE_TRAIN": [64],
        "INPUT.MIN_SIZE_TEST": 64,
    }
    words = ["--config-file", "generated/spatialflow.yaml", "--genotypes", "parallel", mine]
    words += ["--seeds", 3, "--output", tmp_path / "out", "--opts"]
    words += [item for pair in small.items() for item in pair]
    done = program("spatialflow", "trials", *words)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "out" / "comparison.md").read_text()
    assert table.strip() in done.stdout
    rows = [line.split(" | ") for line in table.splitlines()]
    assert [row[0] for row in rows[2:4]] == ["| parallel", "| mine"]
    assert rows[-1][0] == "| mine − parallel"
    one = json.loads((tmp_path / "out" / "mine-seed3.json").read_text())
    assert one["iterations"] == 2
    assert one["seed"] == 3
    before = (tmp_path / "out" / "mine-seed3.json").stat().st_mtime_ns
    again = program("spatialflow", "trials", *words)
    assert table.strip() in again.stdout
    assert (tmp_path / "out" / "mine-seed3.json").stat().st_mtime_ns == before


def test_results_of_other_settings_or_genotypes_are_not_mixed_in(mine, tmp_path):
    runs = comparison(tmp_path, "parallel", mine)
    runs.output.mkdir()
    path = runs.output / "mine-seed0.json"
    path.write_text(json.dumps(runs.identity("mine", 0)))
    assert runs.result("mine", 0) is not None
    assert runs.result("mine", 1) is None
    assert runs.missing() == [("parallel", 0), ("parallel", 1), ("mine", 1)]
    assert {name: len(found) for name, found in runs.results().items()} == {
        "parallel": 0,
        "mine": 1,
    }
    other = comparison(tmp_path, "parallel", mine, opts=["SOLVER.MAX_ITER", "7"])
    with pytest.raises(ValueError, match=r"mine-seed0\.json: result with settings"):
        other.missing()
    Genotype("mine", (Flow("box.2", "cls.2", "input", "conv_1x1"),)).save(mine)
    with pytest.raises(ValueError, match=r"mine-seed0\.json: result with genotype"):
        comparison(tmp_path, "parallel", mine).missing()


def test_mistakes_are_found_before_the_first_run(mine):
    with pytest.raises(ValueError, match="a second one named 'mine'"):
        load_genotypes([mine, mine])
    with pytest.raises(ValueError, match="absent"):
        load_genotypes(["absent.json"])


def test_weights_of_kept_results_are_looked_for_before_the_first_run(mine, tmp_path):
    runs = comparison(tmp_path, "parallel", mine)
    runs.check_costs()  # all are still to be trained
    runs.output.mkdir()
    (runs.output / "mine-seed0.json").write_text(json.dumps(runs.identity("mine", 0)))
    with pytest.raises(ConfigError, match=r"mine-seed0/model_final\.pth: not there.*--no-speed"):
        runs.check_costs()
    (runs.output / "speed.json").write_text(json.dumps({"parallel": {}, "mine": {}}))
    runs.check_costs()


def test_a_trial_without_test_data_is_refused(scenes_cfg, tmp_path):
    with pytest.raises(ConfigError, match=r"DATASETS\.TEST is empty: a trial"):
        run_trial(scenes_cfg({"DATASETS.TEST": ()}), tmp_path / "result.json", {})


def test_two_comparisons_do_not_share_a_folder(mine, tmp_path, other_run):
    runs = comparison(tmp_path, "parallel", mine)
    other_run(runs.output / "mine-seed1")
    with pytest.raises(ConfigError, match="--output: .* given, which other_run"):
        runs.train("mine", 1)
    other_run(runs.output)
    words = ["trials", "--config-file", "generated/spatialflow.yaml", "--genotypes", "parallel"]
    with pytest.raises(SystemExit, match="--output: .* given, which other_run"):
        main([*words, "--output", str(runs.output)])


def test_the_table_pairs_with_the_first():
    results = {
        name: [result(name, seed, random_counts(seed)) for seed in range(2)]
        for name in ("human", "searched")
    }
    cost = {"GFLOPs": 1.5, "time": 1.0, "time seconds": [0.25, 0.2, 0.3]}
    text = comparison_table(results, {"human": cost, "searched": {**cost, "time": 0.8}})
    assert "| searched − human | +0.0 (+0.0 to +0.0) |" in text
    assert "| 1.50 | 250 | 0.80 |" in text
    assert "GFLOPs" not in comparison_table(results)


def test_results_of_a_relative_path_are_found_from_another_folder(mine, tmp_path, monkeypatch):
    """The hash of version 0.1 has paths as they were given; absolute ones are accepted, too."""
    runs = comparison(tmp_path, "parallel", mine, opts=["DATASETS.FOLDER.PATH", "some_data"])
    runs.output.mkdir()
    given = get_cfg(runs.config_file, runs.opts, absolute=False)
    assert given.DATASETS.FOLDER.PATH == "some_data"
    absolute = get_cfg(runs.config_file, runs.opts)
    assert config_hash(given) != config_hash(absolute)
    for seed, cfg in enumerate((given, absolute)):
        kept = {**runs.identity("mine", seed), "settings": config_hash(cfg)}
        (runs.output / f"mine-seed{seed}.json").write_text(json.dumps(kept))
    assert runs.missing() == [("parallel", 0), ("parallel", 1)]
    before = runs.identity("mine", 0)
    monkeypatch.chdir(tmp_path)
    assert runs.identity("mine", 0) == before
    assert runs.result("mine", 0) is not None
