"""The comparison with Panoptic FPN: contestants, tables, and which runs are done."""

import argparse
import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from benchmarks import compare_peers
from benchmarks.peers.analysis import (
    best_rate,
    flow_table,
    is_known,
    learning_table,
    main_table,
    part_of,
)
from benchmarks.peers.contestants import (
    ALONE,
    CHANGES,
    FOLDERS,
    LESS,
    MAIN,
    REFINED_FLOWS,
    config,
    flow_contestants,
    genotype,
    run_name,
)
from benchmarks.peers.speed import models, timed
from spatialflow.analysis import trials
from spatialflow.config import load_genotype
from spatialflow.data.selection import in_validation_split
from tests.analysis.test_intervals import random_counts, result

ABLATIONS = flow_contestants()[2:]


def test_each_ablation_lacks_exactly_its_flow():
    whole = set(load_genotype("spatialflow").flows)
    assert len(ABLATIONS) == len(whole) == 10
    for name in ABLATIONS:
        (missing,) = whole - set(genotype(name).flows)
        assert name == f"without {missing.source} -> {missing.target}"


@pytest.mark.parametrize("name", ["mine", "without box.9 -> cls.9"])
def test_unknown_contestants_are_named(name):
    with pytest.raises(ValueError, match=f"contestant '{name}' given"):
        genotype(name)


@pytest.mark.parametrize("dataset", FOLDERS)
def test_missing_data_are_named(tmp_path, dataset):
    with pytest.raises(ValueError, match=f"--{dataset}"):
        config(dataset, "parallel", rate=0.1, seed=0, output=tmp_path)


def test_human_flows_reach_the_regions():
    found = {str(flow) for flow in genotype("refined_gates").flows}
    human = {str(flow).replace("[input", "[gate") for flow in genotype("spatialflow").flows}
    # Of its four stages the first and the last one are left.
    ends = {f.replace(".4", ".2") for f in human if ".2" not in f and ".3" not in f}
    more = {f.replace("mask.1", "region.1") for f in ends if "mask.1" in f}
    assert found == ends | more
    assert len(found) == 8
    assert genotype("refined").flows == ()


def test_changes_are_complete_and_apart(tmp_path):
    """One change and those without the others are the same, and without all it is ``parallel``."""

    def model(contestant):
        cfg = config("scenes", contestant, rate=1e-3, seed=0, output=tmp_path / "run")
        return flat({"MODEL": cfg.MODEL, "SOLVER": cfg.SOLVER})

    whole, plain = model("refined"), model("parallel")
    for name, keys in CHANGES.items():
        less, alone = model(LESS + name), model(ALONE + name)
        assert {key for key in whole if whole[key] != less[key]} <= set(keys)
        assert all(alone[key] == on for key, (_, on) in keys.items())
    changed_keys = {key for keys in CHANGES.values() for key in keys}
    # The rest is read by the region stage alone, but for the threshold, which each run chooses.
    rest = {key for key in whole if whole[key] != plain[key]} - changed_keys
    rest -= {"MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH"}
    assert {key.split(".")[1] for key in rest} <= {"ROI_BOX_HEAD", "ROI_HEADS", "RPN"}


def flat(node, prefix=""):
    """The values of a config by key."""
    found = {}
    for key, value in node.items():
        is_node = isinstance(value, dict)
        found |= flat(value, f"{prefix}{key}.") if is_node else {prefix + key: value}
    return found


@pytest.mark.parametrize(
    "contestant",
    [*MAIN, "refined", "refined_zero", "refined_gates", LESS + "regions", ALONE + "P2"],
)
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
    for contestant in (*MAIN, ABLATIONS[0]):
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
    less = result(ABLATIONS[0], 1, (np.array(random_counts(1)) * [0.5, 1, 1, 1]).tolist())
    text = flow_table([*whole, less, result("parallel", 0, random_counts(0))], "scenes")
    rows = [line.split(" | ") for line in text.splitlines()[2:]]
    assert [row[0] for row in rows] == ["| all ten", "| box.1 -> cls.1"]
    assert rows[0][2] == "+0.0 (+0.0 to +0.0)"
    assert float(rows[1][2].split()[0]) > 5
    with pytest.raises(ValueError, match="no result of spatialflow on nuclei yet"):
        flow_table(whole, "nuclei")


def test_speed_needs_the_models_of_the_runs(tmp_path):
    results = [result(name, seed, random_counts(0)) for name in MAIN for seed in (1, 2)]
    found = models(results, "scenes", tmp_path)
    name = run_name("scenes", "parallel", 0.001, 1)
    assert found["parallel"] == tmp_path / name / "model_final.pth"
    with pytest.raises(ValueError, match=r"seed1/model_final\.pth: no such file"):
        timed("scenes", "parallel", found["parallel"], {}, tmp_path)


def arguments(folder, **changes):
    defaults = {
        "command": "run",
        "results": folder,
        "data": ("scenes",),
        "seeds": (0, 1),
        "rates": compare_peers.RATES,
        "nuclei": None,
        "facades": None,
        "threads": 1,
        "contestants": None,
        "opts": [],
    }
    return argparse.Namespace(**defaults | changes)


@pytest.fixture
def started(tmp_path, monkeypatch):
    """The runs that are started; each leaves a result at once."""
    runs = []

    def run(command, environment):
        # 'python -W ignore FILE one DATASET CONTESTANT RATE SEED …'
        dataset, contestant, rate, seed = command[5:9]
        run = compare_peers.Run(dataset, contestant, float(rate), int(seed))
        runs.append(run)
        path = tmp_path / run.file
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result(contestant, int(seed), random_counts(0), float(rate))))
        return 0, None

    monkeypatch.setattr(trials, "_run_to_its_end", run)
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
    assert {run.contestant for run in started} == {"spatialflow", "parallel", *ABLATIONS}
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
    monkeypatch.setattr(trials, "_run_to_its_end", lambda command, environment: (1, None))
    with pytest.raises(ValueError, match=r"panoptic_fpn-lr0\.001-seed0\.json: .* status 1"):
        compare_peers.run_all(arguments(tmp_path))


def of_images(contestant, seed, rate, worse=()):
    """A result on images whose parts are known, with half the IoU on those at some positions."""
    counts = np.array(random_counts(seed, images=80))
    counts[list(worse), :, 0] *= 0.5
    made = result(contestant, seed, counts.tolist(), rate)
    return {**made, "images": [f"{i:06d}.png" for i in range(80)], "curve": [(200, 30.0, 50.0)]}


def test_rates_are_chosen_on_one_part_and_figures_are_of_the_other():
    whole = of_images("refined", 0, 0.1)
    parts = [part_of(whole, part) for part in ("choose", "report")]
    assert [part["images"] for part in parts] == [whole["images"][:40], whole["images"][40:]]
    chosen, reported = range(40), range(40, 80)
    results = []
    for seed in range(2):
        results.append(of_images("panoptic_fpn", seed, 0.1))
        # The first rate is the better one where it counts, and the other one where it is chosen.
        results.append(of_images("refined", seed, 0.1, worse=chosen))
        results.append(of_images("refined", seed, 0.2, worse=reported))
    text = learning_table(results, "scenes")
    (row,) = [line for line in text.splitlines() if line.startswith("| refined |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "0.2"
    (reference,) = [line for line in text.splitlines() if line.startswith("| panoptic_fpn |")]
    expected = float(reference.split("|")[3].split()[0]) / 2
    assert float(cells[2].split()[0]) == pytest.approx(expected, abs=0.06)
    assert cells[-1].endswith("2 seeds")


def test_images_of_folders_are_known_by_the_split_of_earlier_versions():
    names = [f"{i}.jpg" for i in range(200)]
    known = {name for name in names if is_known("nuclei", name)}
    assert known == {name for name in names if in_validation_split(name, 0.2, 0)}
    assert known < {name for name in names if in_validation_split(name, 0.4, 0)}


def test_the_plan_of_learning(tmp_path, started):
    compare_peers.run_all(arguments(tmp_path, command="learn"))
    assert {run.contestant for run in started} == {*MAIN, *REFINED_FLOWS}
    assert {run.rate for run in started} == set(compare_peers.RATES)
