"""The comparison with Panoptic FPN: contestants, intervals, and what is done when."""

import argparse
import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from benchmarks import compare_peers
from benchmarks.peers.analysis import best_rate, flow_table, main_table
from benchmarks.peers.contestants import MAIN, ablations, config, flow_name, genotype, run_name
from benchmarks.peers.speed import models, timed
from spatialflow.analysis import trials
from spatialflow.analysis.intervals import Sampled, minus, quality
from spatialflow.analysis.tables import complete, fill
from spatialflow.config import load_genotype


def test_each_ablation_lacks_exactly_its_flow():
    whole = set(load_genotype("spatialflow").flows)
    assert len(ablations()) == len(whole) == 10
    missing = [whole - set(genotype(name).flows) for name in ablations()]
    assert [f"without {flow_name(*gone)}" for gone in missing] == ablations()


@pytest.mark.parametrize("name", ["mine", "without box.9 -> cls.9"])
def test_unknown_contestants_are_named(name):
    with pytest.raises(ValueError, match=f"contestant '{name}' given"):
        genotype(name)


def test_missing_data_are_named(tmp_path):
    with pytest.raises(ValueError, match="--nuclei"):
        config("nuclei", "parallel", rate=0.1, seed=0, output=tmp_path)


@pytest.mark.parametrize("contestant", MAIN)
@pytest.mark.usefixtures("scenes")  # what is registered meanwhile is taken out again
def test_contestants_learn_on_the_same_trunk(tmp_path, make_input, contestant):
    few = ["DATASETS.SCENES.TRAIN", 2, "DATASETS.SCENES.VAL", 1]
    cfg = config("scenes", contestant, rate=1e-3, seed=0, output=tmp_path / "run", opts=few)
    model = build_model(cfg)
    trunk = model.backbone.bottom_up
    assert not any(p.requires_grad for p in trunk.parameters())
    reference = config("scenes", "parallel", rate=1e-3, seed=0, output=tmp_path / "r", opts=few)
    expected = build_model(reference).backbone.bottom_up.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in trunk.state_dict().items())
    with EventStorage():
        loss = sum(model([make_input(64, 64, num_classes=5)]).values())
    assert torch.isfinite(loss)
    loss.backward()


def result(contestant, seed, counts, rate=0.001, **changes):
    classes = [{"name": "dot", "isthing": 1, "PQ": 1.0}, {"name": "sky", "isthing": 0, "PQ": 2.0}]
    images = [f"{i}.png" for i in range(len(counts))]
    means = quality(np.sum(counts, axis=0), np.array([True, False]))
    return {
        "dataset": "scenes",
        "contestant": contestant,
        "seed": seed,
        "rate": rate,
        "PQ": means[0],
        "parameters": 1000,
        "seconds": 2.0,
        "classes": classes,
        "images": images,
        "counts": counts,
        **changes,
    }


def random_counts(seed, images=12):
    rng = np.random.default_rng(seed)
    tp = rng.integers(1, 4, (images, 2))
    iou = tp * rng.uniform(0.5, 1, (images, 2))
    return np.stack([iou, tp, rng.integers(0, 2, (images, 2)), tp * 0], axis=-1).tolist()


def test_quality_by_hand():
    # Class 1: 1.5 / (2 + 0.5) = 60 %; class 2: 0.9 / 1 = 90 %; class 3 does not occur.
    counts = np.array([[1.5, 2, 1, 0], [0.9, 1, 0, 0], [0, 0, 0, 0]])
    assert quality(counts, np.array([True, False, False])) == pytest.approx([75, 60, 90])


def test_a_contestant_equals_itself_and_a_better_one_is_found():
    mine = [result("parallel", seed, random_counts(seed)) for seed in range(3)]
    sampled = Sampled(mine)
    assert np.abs(sampled.minus(Sampled(mine)).draws).max() == 0
    better = json.loads(json.dumps(mine))
    for item in better:
        for image in item["counts"]:
            for entry in image:
                entry[0] *= 0.9
    difference = sampled.minus(Sampled(better))
    low, high = np.percentile(difference.draws[:, 0], [2.5, 97.5])
    assert 0 < low < difference.mean[0] < high
    assert difference.mean[0] == pytest.approx(0.1 * sampled.mean[0])
    assert difference.cell(0, sign=True).startswith("+")


def test_intervals_grow_with_the_spread_of_seeds():
    def seeds(factors):
        counts = [np.array(random_counts(0)) * [factor, 1, 1, 1] for factor in factors]
        return [result("parallel", i, item.tolist()) for i, item in enumerate(counts)]

    same, spread = seeds([0.8, 0.8, 0.8]), seeds([0.6, 0.8, 1.0])
    assert Sampled(spread).mean == pytest.approx(Sampled(same).mean)
    assert Sampled(spread).draws[:, 0].std() > Sampled(same).draws[:, 0].std()


def test_other_images_are_not_compared():
    mine = [result("parallel", 0, random_counts(0)), result("parallel", 1, random_counts(1, 5))]
    with pytest.raises(ValueError, match="different images"):
        Sampled(mine)


def test_differences_pair_the_seeds_by_number():
    mine = [result("parallel", seed, random_counts(seed)) for seed in (0, 1, 2)]
    difference, seeds = minus(mine, [mine[2]])
    assert seeds == 1
    assert np.abs(difference.draws).max() == 0
    with pytest.raises(ValueError, match=r"seeds \[0\] .* and seeds \[2\] .* the same seeds"):
        Sampled([mine[0]]).minus(Sampled([mine[2]]))
    with pytest.raises(ValueError, match="no seed in common"):
        minus([mine[0]], [mine[2]])


def test_rates_are_compared_at_the_seeds_that_both_have():
    def runs(rate, quality_of_seeds):
        return [
            {**result("parallel", seed, random_counts(0), rate), "PQ": pq}
            for seed, pq in quality_of_seeds.items()
        ]

    few = [*runs(0.1, {0: 50.0}), *runs(0.2, {0: 60.0, 1: 10.0, 2: 10.0})]
    assert best_rate(few, "scenes", "parallel") == 0.2
    both = [*runs(0.1, {0: 50.0, 1: 40.0}), *runs(0.2, {0: 60.0, 1: 10.0})]
    assert best_rate(both, "scenes", "parallel") == 0.1
    with pytest.raises(ValueError, match="one seed at all of"):
        best_rate([*runs(0.1, {0: 1.0}), *runs(0.2, {1: 1.0})], "scenes", "parallel")


def test_a_difference_takes_the_seeds_that_are_done_on_both_sides():
    results = [result(name, 0, random_counts(0)) for name in MAIN]
    results.append(result("spatialflow", 1, random_counts(1)))
    text = main_table(results, "scenes", {})
    assert "| spatialflow − panoptic_fpn | +0.0 (+0.0 to +0.0) |" in text
    assert text.count("| 1 |") == 2


def test_the_better_rate_and_the_tables():
    results = []
    for contestant in (*MAIN, ablations()[0]):
        for seed in range(2):
            results.append(result(contestant, seed, random_counts(seed)))
            worse = np.array(random_counts(seed)) * [0.5, 1, 1, 1]
            results.append(result(contestant, seed, worse.tolist(), rate=0.1))
    assert best_rate(results, "scenes", "spatialflow") == 0.001
    text = main_table(results, "scenes", {})
    assert all(f"| {name} | 0.001 |" in text for name in MAIN)
    assert "| spatialflow − parallel | +0.0 (+0.0 to +0.0) |" in text
    with pytest.raises(ValueError, match="no result of spatialflow on nuclei yet"):
        best_rate(results, "nuclei", "spatialflow")


def test_what_flows_are_worth():
    whole = [result("spatialflow", seed, random_counts(seed)) for seed in range(2)]
    less = result(ablations()[0], 1, (np.array(random_counts(1)) * [0.5, 1, 1, 1]).tolist())
    text = flow_table([*whole, less, result("parallel", 0, random_counts(0))], "scenes")
    rows = [line.split(" | ") for line in text.splitlines()[2:]]
    assert [row[0] for row in rows] == ["| all ten", "| box.1 -> cls.1"]
    assert rows[0][2] == "+0.0 (+0.0 to +0.0)"
    assert float(rows[1][2].split()[0]) > 5
    with pytest.raises(ValueError, match="no result of spatialflow on nuclei yet"):
        flow_table(whole, "nuclei")


def test_tables_go_between_their_marks():
    page = "a\n<!-- table: x -->\nold\n<!-- end -->\nb\n"
    assert fill(page, {"x": "new"}, "p") == "a\n<!-- table: x -->\n\nnew\n\n<!-- end -->\nb\n"
    assert fill(fill(page, {"x": "new"}, "p"), {"x": "new"}, "p") == fill(page, {"x": "new"}, "p")
    assert fill(page + page.replace("x", "y"), {"x": "new"}, "p").endswith(page.replace("x", "y"))
    with pytest.raises(ValueError, match="page.md: tables"):
        fill("nothing", {"x": "new"}, "page.md")


def test_tables_without_a_place_are_named(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("<!-- table: x -->\n<!-- end -->\n")
    complete([page], {"x": "new", "y": "more"})
    assert "new" in page.read_text()
    assert "['y']" in capsys.readouterr().err


def test_speed_needs_the_models_of_the_runs(tmp_path):
    results = [result(name, seed, random_counts(0)) for name in MAIN for seed in (1, 2)]
    found = models(results, "scenes", tmp_path)
    name = run_name("scenes", "parallel", 0.001, 1)
    assert found["parallel"] == tmp_path / name / "model_final.pth"
    with pytest.raises(ValueError, match=r"seed1/model_final\.pth: no such file"):
        timed("scenes", "parallel", found["parallel"], None, tmp_path)


def arguments(folder, **changes):
    defaults = {
        "command": "run",
        "results": folder,
        "data": ("scenes",),
        "seeds": (0, 1),
        "nuclei": None,
        "threads": 1,
        "contestants": None,
        "opts": [],
    }
    return argparse.Namespace(**defaults | changes)


@pytest.fixture
def started(tmp_path, monkeypatch):
    """The runs that are started; each leaves a result at once."""
    runs = []

    def run(command, check, env):
        # 'python -W ignore FILE one DATASET CONTESTANT RATE SEED …'
        dataset, contestant, rate, seed = command[5:9]
        run = compare_peers.Run(dataset, contestant, float(rate), int(seed))
        runs.append(run)
        path = tmp_path / run.file
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result(contestant, int(seed), random_counts(0), float(rate))))

    monkeypatch.setattr(trials.subprocess, "run", run)
    return runs


def test_runs_that_have_a_result_are_not_repeated(tmp_path, started):
    compare_peers.run_all(arguments(tmp_path))
    assert len(started) == len(set(started)) == 2 * 2 * 3
    assert {run.contestant for run in started} == set(MAIN)
    (tmp_path / started[3].file).unlink()
    compare_peers.run_all(arguments(tmp_path))
    assert started[12:] == [started[3]]


def test_each_flow_is_left_out_once_a_seed_at_one_rate(tmp_path, started):
    compare_peers.run_all(arguments(tmp_path, command="flows"))
    assert len(started) == len(set(started)) == 2 * 12
    assert {run.contestant for run in started} == {"spatialflow", "parallel", *ablations()}
    assert {run.rate for run in started} == {compare_peers.FLOW_RATE}


@pytest.mark.parametrize("contestant", MAIN)
def test_one_contestant_alone_needs_no_result_of_others(tmp_path, started, contestant):
    compare_peers.run_all(arguments(tmp_path, contestants=[contestant]))
    assert {run.contestant for run in started} == {contestant}
    assert [run.seed for run in started] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contestants": ["mine"]}, "contestant 'mine' given"),
        ({"data": ("nuclei",)}, "--nuclei: the folder"),
    ],
)
def test_mistakes_are_found_before_the_first_run(tmp_path, started, changes, message):
    with pytest.raises(ValueError, match=message):
        compare_peers.run_all(arguments(tmp_path, **changes))
    assert not started


def test_a_run_that_fails_is_named(tmp_path, monkeypatch):
    def run(command, check, env):
        raise trials.subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(trials.subprocess, "run", run)
    with pytest.raises(ValueError, match=r"panoptic_fpn-lr0\.001-seed0\.json: .* status 1"):
        compare_peers.run_all(arguments(tmp_path))
