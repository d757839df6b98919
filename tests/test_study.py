"""The study: which images choose and which judge, and what its contestants are."""

import argparse

import pytest

from benchmarks.study.images import on_images, pq
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
    return Study(argparse.Namespace(name="scenes", data=None, output=tmp_path, threads=1))


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


def test_nuclei_need_their_folder(tmp_path):
    with pytest.raises(ValueError, match="--data"):
        Study(argparse.Namespace(name="nuclei", data=None, output=tmp_path, threads=1))
