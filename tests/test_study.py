"""The study: which images choose and which judge, and what its contestants are."""

import argparse
import json
from pathlib import Path

import pytest

from benchmarks.study.check import finalists
from benchmarks.study.images import on_images, pq
from benchmarks.study.keep import keep, restore
from benchmarks.study.run import Study
from darts.genotype import Genotype
from spatialflow.config import load_genotype

RESULT = {
    "contestant": "human",
    "classes": [{"isthing": 1}, {"isthing": 0}],
    "images": [f"{i}.png" for i in range(40)],
    # The thing is matched with IoU 0.8, the stuff missed, on every image.
    "counts": [[[0.8, 1, 0, 0], [0.0, 0, 1, 1]] for _ in range(40)],
}


def test_every_image_chooses_or_judges():
    parts = [on_images(RESULT, part) for part in ("selection", "test")]
    chosen, judging = (set(part["images"]) for part in parts)
    assert chosen | judging == set(RESULT["images"])
    assert not chosen & judging
    assert min(len(chosen), len(judging)) > 10
    for part in parts:
        assert len(part["counts"]) == len(part["images"])
        assert pq(part) == pytest.approx(40)
    with pytest.raises(ValueError, match="'all'.*selection.*test"):
        on_images(RESULT, "all")


@pytest.fixture
def study(tmp_path):
    return Study(
        argparse.Namespace(
            name="scenes", data=None, output=tmp_path, kept=tmp_path, threads=1, round=1
        )
    )


def test_human_minus_each_flow_once(study):
    found = [Genotype.load(path) for path in study.once("minus", study.minus_one)]
    human = load_genotype("spatialflow")
    left_out = [set(human.flows) - set(genotype.flows) for genotype in found]
    assert len(found) == len(human.flows)
    assert all(len(flows) == 1 for flows in left_out)
    assert set.union(*left_out) == set(human.flows)


def test_what_is_made_stays(study):
    first = study.once("minus", study.minus_one)
    assert study.once("minus", lambda _: pytest.fail("made again")) == first


def test_what_is_kept_and_put_back(tmp_path):
    work, kept, other = tmp_path / "work", tmp_path / "kept", tmp_path / "other"
    files = ["final/human-seed0.json", "genotypes/a.json", "genotypes/minus/b.json"]
    heavy = ["final/human-seed0/model_final.pth", "genotypes/random.partial/c.json"]
    for name in (*files, *heavy):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(name)
    log = work / "searches" / "default_0" / "search.jsonl"
    log.parent.mkdir(parents=True)
    lines = [{"iteration": i, "alpha": {}, "probabilities": {"e": [1 / 3]}} for i in (0, 1, 1)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert keep(work, kept) == len(files)
    names = sorted(str(p.relative_to(kept)) for p in kept.rglob("*.json"))
    assert names == sorted([*files, "histories/default_0.json"])
    history = json.loads((kept / "histories" / "default_0.json").read_text())
    assert history == [{"iteration": i, "probabilities": {"e": [0.3333]}} for i in (0, 1)]
    (other / "genotypes").mkdir(parents=True)
    (other / "genotypes" / "a.json").write_text("mine")
    restore(kept, other)
    assert [(other / name).read_text() for name in files] == [files[0], "mine", files[2]]


def test_a_second_round_has_seeds_of_its_own(study, tmp_path, monkeypatch):
    args = argparse.Namespace(
        name="scenes", data=None, output=tmp_path, kept=tmp_path, threads=1, round=2
    )
    second = Study(args)
    assert second.folder != study.folder
    assert not set(second.searches()) & set(study.searches())
    stages = []
    monkeypatch.setattr(
        Study, "train", lambda _, stage, __, seeds: stages.append((stage, seeds[0]))
    )
    monkeypatch.setattr(Study, "searched", lambda _, method, seed: f"{method}_{seed}")
    monkeypatch.setattr(Study, "finalist", lambda _, __: "default_10")
    second.go()
    assert stages == [("searched", 0), ("final", 200)]


def test_the_check_takes_the_last_finalists(tmp_path):
    with pytest.raises(ValueError, match="no finalist.json"):
        finalists(tmp_path)
    for name, finalist in (("nuclei", "a"), ("nuclei_round2", "b"), ("scenes", "c")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "finalist.json").write_text(json.dumps({"finalist": finalist}))
    found = [Path(path).relative_to(tmp_path) for path in finalists(tmp_path)]
    assert found == [Path("nuclei_round2/genotypes/b.json"), Path("scenes/genotypes/c.json")]


def test_nuclei_need_their_folder(tmp_path):
    with pytest.raises(ValueError, match="--data"):
        Study(
            argparse.Namespace(
                name="nuclei", data=None, output=tmp_path, kept=tmp_path, threads=1, round=1
            )
        )
