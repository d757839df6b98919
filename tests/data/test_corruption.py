"""Data sets broken at random are reported with the file's name, or read as their files say."""

import json
import shutil
import tempfile
from importlib import import_module
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spatialflow.data.validation.decoding import png_damage
from spatialflow.data.validation.json_rules import (
    check_categories,
    check_structure,
    list_images,
)
from spatialflow_cli.main import main


@pytest.fixture(scope="module")
def engine():
    """Return the module beside this file that breaks sets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        yield import_module("corruptions")


@pytest.fixture(scope="module")
def verdicts(engine):
    """Return the module that judges the result."""
    return import_module("corruption_verdicts")


@pytest.fixture(scope="module")
def clean(engine, tmp_path_factory):
    root = tmp_path_factory.mktemp("clean") / "set"
    engine.write_clean_set(root)
    return root


@pytest.fixture(scope="module")
def judge(verdicts, clean):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPATIALFLOW_CACHE", str(clean.parent / "cache"))
        return verdicts.Judge(clean)


def verdict(engine, judge, clean, kinds, seed):
    """Break a copy of the clean set; return the verdict and the reason."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        shutil.copytree(clean, root)
        return judge(root, engine.corrupt(root, kinds, Random(seed)))


def test_what_is_broken_already_is_not_broken_again(engine, verdicts, judge, clean):
    kinds = ["PNG: claim a billion pixels", "PNG: resize"]
    for seed in range(4):
        result, why = verdict(engine, judge, clean, kinds, seed)
        assert result == verdicts.REPORTED, why


def assert_reported_or_read_as_it_is(engine, verdicts, judge, clean, data, seed):
    kinds = data.draw(st.lists(st.sampled_from(list(engine.KINDS)), min_size=1, max_size=3))
    result, why = verdict(engine, judge, clean, kinds, seed)
    assert result != verdicts.WRONG, why


SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=10)
@given(data=st.data(), seed=SEEDS)
def test_a_broken_set_is_reported_or_read_as_it_is(engine, verdicts, judge, clean, data, seed):
    assert_reported_or_read_as_it_is(engine, verdicts, judge, clean, data, seed)


@pytest.mark.soak
@settings(max_examples=2000)
@given(data=st.data(), seed=SEEDS)
def test_many_broken_sets_are_reported_or_read(engine, verdicts, judge, clean, data, seed):
    assert_reported_or_read_as_it_is(engine, verdicts, judge, clean, data, seed)


@pytest.mark.parametrize("tries", [1, pytest.param(20, marks=pytest.mark.soak)])
def test_each_way_of_breaking_a_set_is_met(engine, verdicts, judge, clean, tries):
    results = {
        kind: {verdict(engine, judge, clean, [kind], seed) for seed in range(tries)}
        for kind in engine.KINDS
    }
    seen = {kind: {result for result, _ in found} for kind, found in results.items()}
    assert not {kind: results[kind] for kind in seen if verdicts.WRONG in seen[kind]}
    # Another image or another valid JSON may be unnoticed, but never another PNG.
    unnoticed = {kind for kind in seen if verdicts.OTHER in seen[kind]}
    assert not {kind for kind in unnoticed if kind.startswith("PNG")}
    always = [k for k in seen if k.startswith("PNG") and "exchange with another" not in k]
    assert len(always) > 10
    assert {result for kind in always for result in seen[kind]} == {verdicts.REPORTED}


@given(data=st.data())
def test_no_changed_byte_of_a_png_is_missed(clean, data):
    content = (clean / "panoptic" / "0.png").read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda v: v != content[position]))
    assert png_damage(content) is None
    assert png_damage(content[:position] + bytes([value]) + content[position + 1 :])
    assert png_damage(content[:position])


KEYS = ["images", "annotations", "categories", "id", "file_name", "segments_info", "image_id"]
KEYS += ["category_id", "height", "width", "name", "isthing", "bbox", "area", "iscrowd", "color"]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=8)
    ),
    max_leaves=25,
)
ENTRIES = st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=8) | VALUES, max_size=4)


CONTENTS = VALUES | st.fixed_dictionaries(dict.fromkeys(KEYS[:3], ENTRIES))


@settings(max_examples=30)
@given(CONTENTS)
def test_any_json_at_all_is_judged(content):
    assert_judged(content)


@pytest.mark.soak
@settings(max_examples=3000)
@given(CONTENTS)
def test_many_jsons_of_any_content_are_judged(content):
    assert_judged(content)


def assert_judged(content):
    defects = check_structure(content, "set.json")
    if not defects:
        defects = check_categories(content["categories"], "set.json")
        defects += list_images(content, "set.json").defects
    for defect in defects:
        assert str(defect).startswith("set.json: ")
        assert str(defect).isprintable()
        assert len(str(defect)) < 2000


def test_a_small_file_that_claims_a_billion_pixels_is_not_unpacked(engine, clean, tmp_path, capsys):
    # The JSON agrees with the files, so that only the claim itself is wrong.
    root = tmp_path / "set"
    shutil.copytree(clean, root)
    content = json.loads((root / "panoptic.json").read_text())
    content["images"][1] |= {"height": 32000, "width": 32000}
    (root / "panoptic.json").write_text(json.dumps(content))
    for folder in ("images", "panoptic"):
        engine.claim_a_billion_pixels(root / folder / "1.png", None)
        with pytest.raises(Image.DecompressionBombError):
            Image.open(root / folder / "1.png")
    assert main(["check", str(root)]) == 1
    *problems, summary = capsys.readouterr().out.splitlines()
    assert [p.split(": ")[0] for p in problems] == [
        str(root / "images" / "1.png"),
        str(root / "panoptic" / "1.png"),
    ]
    assert all("1024000000 pixels" in p for p in problems)
    assert summary.endswith("2 problems, 1 image affected")
