"""The study: which images choose and which judge, and what its contestants are."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from darts.genotype import Genotype
from experiments.study.check import finalists
from experiments.study.images import on_images, pq
from experiments.study.keep import keep, restore
from experiments.study.run import Study
from experiments.study.settings import DARTS, DATA, RESULTS
from experiments.study.zero_start import silence
from spatialflow.config import config_hash, get_cfg, load_genotype
from spatialflow.config.options import SUPERNET
from spatialflow.modeling.flow_graph import FlowGraph

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
    stages = []
    monkeypatch.setattr(
        Study, "train", lambda _, stage, __, seeds: stages.append((stage, seeds[0]))
    )
    searches = []
    monkeypatch.setattr(Study, "searched", lambda _, *search: searches.append(search))
    monkeypatch.setattr(Study, "shortlist", lambda _: ["default_10"])
    monkeypatch.setattr(Study, "finalist", lambda _: "default_10")
    second.go()
    first = [("searched", 0), ("random", 0), ("shortlist", 1), ("final", 200)]
    # DARTS comes last and is not chosen from.
    rivals = [("final_random", seed) for seed in range(200, 205)]
    assert stages == [*first, *rivals, ("final", 200), ("searched", 0), ("final", 200)]
    (gated,) = map(Genotype.load, second.once("gated", second.gated))
    assert {flow.port for flow in gated.flows} == {"gate"}
    assert [f.edge[:2] for f in gated.flows] == [
        f.edge[:2] for f in load_genotype("spatialflow").flows
    ]
    assert searches == [
        *[(method, seed) for seed in (10, 11, 12) for method in ("default", "perturbation")],
        *[(m, seed) for seed in (10, 11, 12) for m in ("darts_original", "darts_gates")],
    ]
    first, again = (
        [Genotype.load(path) for path in one.once("random", one.random)] for one in (study, second)
    )
    darts = [second.data.search_config(method, 2).SEARCH for method in DARTS]
    assert [search.SPACE.PORTS for search in darts] == [["input"], ["gate"]]
    assert [(search.RULE, search.OPTIMIZER.LR) for search in darts] == [("top_inputs", 0.02)] * 2
    assert {flow.port for genotype in first for flow in genotype.flows} == {"input"}
    assert {flow.port for genotype in again for flow in genotype.flows} == {"gate"}


@pytest.mark.usefixtures("few_scenes")
def test_a_search_is_done_once_and_leaves_its_genotype(study, monkeypatch):
    ran = []

    def run_in_subprocess(what, words, threads):
        ran.append(list(map(str, words)))
        folder = Path(ran[-1][-1])
        folder.mkdir(parents=True, exist_ok=True)
        method, seed = folder.name.rsplit("_", 1)
        settings = {"config": config_hash(study.search_config(method, int(seed)))}
        genotype = replace(load_genotype(again["finds"]), provenance=settings)
        genotype.save(folder / "genotype.json")
        (folder / "model_final.pth").touch()

    again = {"finds": "parallel"}
    monkeypatch.setattr("experiments.study.run.run_in_subprocess", run_in_subprocess)
    found = study.searched("default", 0)
    assert Genotype.load(found).name == "default_0"
    assert study.searched("default", 0) == found
    assert study.searched("darts_original", 0)
    assert study.searched("perturbation", 0)
    assert [(words[2], words[3]) for words in ran] == [
        ("search/default.yaml", "--resume"),
        ("search/darts_original.yaml", "--resume"),
        ("search/default.yaml", "--derive-only"),
    ]
    # Without the weights the search is done again, which has to find the same.
    weights = study.folder / "searches" / "default_0" / "model_final.pth"
    weights.unlink()
    assert study.supernet(0) == weights
    weights.unlink()
    again["finds"] = "spatialflow"
    with pytest.raises(ValueError, match="default_0: this search.*another genotype"):
        study.supernet(0)
    study.data = replace(study.data, search_keys=(*study.data.search_keys, "SEARCH.COST", 2.0))
    with pytest.raises(ValueError, match="default_0.json: of a search with the settings"):
        study.searched("default", 0)


@pytest.mark.usefixtures("few_scenes")
@pytest.mark.parametrize("search", [("default", 0), ("perturbation", 1), ("darts_original", 2)])
def test_kept_searches_have_the_settings_of_today(study, search):
    method, seed = search
    kept = Genotype.load(RESULTS / "scenes" / "genotypes" / f"{method}_{seed}.json")
    assert kept.provenance["config"] == config_hash(study.search_config(method, seed))


@pytest.mark.parametrize("name", ["nuclei", "scenes"])
def test_a_config_has_what_the_second_round_changed(name):
    data = DATA[name]
    gates = data.search.replace("default", "gates").replace("nuclei", "nuclei_gates")
    keys = ["MODEL.META_ARCHITECTURE", SUPERNET, *data.search_keys]
    changed = data.search_config("default", 2).clone()
    changed.OUTPUT_DIR = get_cfg(gates).OUTPUT_DIR
    assert get_cfg(gates, keys) == changed != data.search_config("default", 1)


def searched(study, stage, name, seed, iou, base="parallel"):
    """Put a searched genotype and a result of its training where a study has them."""
    path = Path(study.genotype(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(load_genotype(base), name=name).save(path)
    counts = [[[iou, 1, 0, 0], [0.0, 0, 1, 1]] for _ in RESULT["images"]]
    target = study.folder / stage / f"{name}-seed{seed}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({**RESULT, "contestant": name, "seed": seed, "counts": counts}))


def test_the_finalist_is_the_best_that_is_no_dearer(study):
    for name, iou in {"a": 0.7, "b": 0.9, "c": 0.8, "d": 0.6}.items():
        searched(study, "searched", name, 0, iou)
    searched(study, "searched", "dear", 0, 0.95, base="thing_guided")
    assert [Path(path).stem for path in study.shortlist()] == ["b", "c", "a"]
    for name, iou in {"a": 0.7, "b": 0.6, "c": 0.8}.items():
        for seed in (1, 2):
            searched(study, "shortlist", name, seed, iou)
    # Single trainings of those that are not on the shortlist do not count, nor is it made anew.
    searched(study, "searched", "d", 0, 0.99)
    assert Path(study.finalist()).stem == "c"
    searched(study, "searched", "c", 0, 0.1)
    assert Path(study.finalist()).stem == "c"


def test_a_second_round_never_chooses_what_is_run_last(tmp_path):
    """Also where it goes on with results of it, as it does when stages are added."""
    args = argparse.Namespace(
        name="scenes", data=None, output=tmp_path, kept=tmp_path, threads=1, round=2
    )
    second = Study(args)
    searched(second, "searched", "default_10", 0, 0.7)
    searched(second, "searched", "darts_original_10", 0, 0.9)
    searched(second, "searched", "darts_gates_10", 0, 0.9)
    assert [Path(path).stem for path in second.shortlist()] == ["default_10"]
    assert Path(second.finalist()).stem == "default_10"


def test_a_study_without_an_affordable_genotype_says_so(study):
    searched(study, "searched", "dear", 0, 0.95, base="thing_guided")
    with pytest.raises(ValueError, match=r"scenes: every searched genotype costs more"):
        study.finalist()


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


def test_human_flows_can_start_as_if_there_were_none():
    graph = FlowGraph.from_genotype(load_genotype("spatialflow"), channels=16)
    bare = FlowGraph.from_genotype(load_genotype("parallel"), channels=16)
    bare.nodes.load_state_dict(graph.nodes.state_dict())
    features = {f"p{level}": torch.randn(1, 16, 8, 8) for level in range(3, 8)}
    before = graph(features)
    silence(graph)
    for branch, maps in bare(features).items():
        for level, expected in maps.items():
            assert torch.equal(graph(features)[branch][level], expected)
    changed = [
        not torch.equal(before[branch][level], graph(features)[branch][level])
        for branch in ("cls", "stuff", "mask")
        for level in before[branch]
    ]
    assert all(changed)
    # And they learn from there.
    sum(x.sum() for maps in graph(features).values() for x in maps.values()).backward()
    assert all(operation.last.weight.grad.any() for operation in graph.flows.values())
