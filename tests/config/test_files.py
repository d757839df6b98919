"""Config files as text, and the paths in a config."""

import os
from pathlib import Path

import pytest

from spatialflow.config import get_cfg, load_genotype
from spatialflow.config.values import PATH_KEYS, value_of
from spatialflow.data.dataset_spec import DatasetSpec
from spatialflow.data.evaluation_json import cache_root
from spatialflow.utils.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "nothing found"),
        ("- MODEL", "a list found"),
        ("MODEL: 3", "line 1: MODEL: a value found, keys expected"),
        ("SEED: 1\nSEED: 2", "line 2: key 'SEED' is given in line 1, too"),
        ("1: 2", "line 1: key '1': a name expected"),
        ("_BASE_: x.yaml", "its _BASE_ leads back to it"),
        ("_BASE_: 3", "_BASE_: the path of a file expected"),
        ("_BASE_: ~nobody-here/x.yaml", "'~nobody-here' has no home folder"),
        ("SEED: " + "[" * 3000, "nested too deeply"),
        ("SEED: !!python/name:os.system", "could not determine a constructor"),
        ("VERSION: x", "VERSION: 'x' given, a number expected"),
        (
            "a0: &a0 [1]\n"
            + "".join(f"a{i}: &a{i} [{f'*a{i - 1} , ' * 10}]\n" for i in range(1, 9)),
            "aliases count",
        ),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path, text, line):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=line) as raised:
        get_cfg(path)
    assert str(raised.value).startswith(f"config {path}")


def test_a_file_may_have_the_name_of_its_base(tmp_path):
    (tmp_path / "Base-Small.yaml").write_text("_BASE_: Base-Small.yaml\nSEED: 5")
    cfg = get_cfg(tmp_path / "Base-Small.yaml")
    assert (cfg.SEED, cfg.MODEL.FPN.OUT_CHANNELS) == (5, 64)


def test_aliases_that_a_saved_config_has_are_read(tmp_path):
    (tmp_path / "base.yaml").write_text("TEST: {AUG: {MIN_SIZES: &s [3, 4]}}\nSEED: 5")
    (tmp_path / "x.yaml").write_text("_BASE_: [base.yaml]\nINPUT: {MIN_SIZE_TRAIN: &s [8, 9]}\n")
    cfg = get_cfg(tmp_path / "x.yaml")
    assert (cfg.SEED, tuple(cfg.INPUT.MIN_SIZE_TRAIN)) == (5, (8, 9))
    shared = [8, 9]
    cfg.INPUT.MIN_SIZE_TRAIN = cfg.TEST.AUG.MIN_SIZES = shared
    (tmp_path / "saved.yaml").write_text(cfg.dump())
    assert "&id" in cfg.dump()
    assert list(get_cfg(tmp_path / "saved.yaml").TEST.AUG.MIN_SIZES) == shared


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("SOLVER.MAX_ITER", None, "a whole number"),
        ("MODEL.PIXEL_MEAN", [1, None, 2], "a number"),
        ("MODEL.RETINANET.IN_FEATURES", [3], "a text"),
        ("SOLVER.BASE_LR", float("nan"), "a number, not NaN,"),
        ("SEED", 10**20, "a number below 9e"),
        ("OUTPUT_DIR", "a\0b", "a text without NUL"),
    ],
)
def test_a_value_of_another_kind_than_its_default(key, value, expected):
    with pytest.raises(ConfigError, match=rf"^{key}: .* given, {expected}"):
        get_cfg(None, [key, value])


def test_paths_are_absolute_and_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for key in PATH_KEYS:
        for given, path in (("~/x/y", "home/x/y"), ("x/y", "x/y"), ("../y", "../y")):
            expected = os.path.normpath(tmp_path / path)
            assert value_of(get_cfg(None, [key, given]), key) == expected
        with pytest.raises(ConfigError, match=f"^{key}: '~nobody-here/x' given"):
            get_cfg(None, [key, "~nobody-here/x"])
    for key, value in (
        ("MODEL.WEIGHTS", ""),
        ("MODEL.WEIGHTS", "detectron2://x/y.pkl"),
        ("MODEL.WEIGHTS", "https://x/y.pth"),
        ("MODEL.SPATIALFLOW.GENOTYPE", "parallel"),
    ):
        assert value_of(get_cfg(None, [key, value]), key) == value
    assert not Path("~").exists()


def test_a_saved_config_repeats_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load_genotype("parallel").save(tmp_path / "mine")
    cfg = get_cfg(None, ["OUTPUT_DIR", "out", "MODEL.SPATIALFLOW.GENOTYPE", "mine"])
    (tmp_path / "saved.yaml").write_text(cfg.dump())
    monkeypatch.chdir("/")
    saved = get_cfg(tmp_path / "saved.yaml")
    assert [value_of(saved, key) for key in PATH_KEYS] == [value_of(cfg, key) for key in PATH_KEYS]
    assert str(tmp_path / "mine") == cfg.MODEL.SPATIALFLOW.GENOTYPE


def test_variables_begin_at_home_and_name_themselves(tmp_path, monkeypatch):
    spec = DatasetSpec("x", "i", "j", "p", root_variable="DETECTRON2_DATASETS")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, path in (
        ("SPATIALFLOW_CACHE", cache_root),
        ("DETECTRON2_DATASETS", lambda: Path(spec.with_absolute_paths().images).parent),
    ):
        monkeypatch.setenv(name, "~/x")
        assert path() == tmp_path / "x"
        monkeypatch.setenv(name, "~nobody-here/x")
        with pytest.raises(ConfigError, match=f"^{name}: "):
            path()


def test_a_base_may_be_a_config_that_comes_along(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("_BASE_: Base-Refined-Small.yaml\nINPUT: {MIN_SIZE_TEST: 99}\n")
    cfg = get_cfg(own)
    expected = get_cfg("Base-Refined-Small.yaml", ["INPUT.MIN_SIZE_TEST", 99])
    assert cfg == expected
    # A file beside it is meant first, also by a base of that base.
    (tmp_path / "Base-Small.yaml").write_text("SEED: 7\n")
    assert get_cfg(own).SEED == -1
    (tmp_path / "Base-Refined-Small.yaml").write_text("_BASE_: Base-Small.yaml\n")
    assert get_cfg(own).SEED == 7


def test_a_base_that_has_a_value_for_a_section_is_named(tmp_path):
    (tmp_path / "base.yaml").write_text("OWN: 3\n")
    (tmp_path / "own.yaml").write_text("_BASE_: base.yaml\nOWN: {KEY: 4}\n")
    with pytest.raises(ConfigError, match=r"own.yaml: OWN: keys given, and its _BASE_ has a value"):
        get_cfg(tmp_path / "own.yaml")
