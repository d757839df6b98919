"""The evaluation of peers at several thresholds: as at one of them, and what is kept of it."""

import copy
from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage

from benchmarks.peers import analysis, thresholds
from benchmarks.peers.analysis import part_of
from benchmarks.peers.contestants import config
from benchmarks.peers.thresholds import THRESHOLDS, ThresholdTrainer
from spatialflow.analysis.trials import PQTrainer, run_trial
from spatialflow.utils.files import read_json

FEW = {
    "DATASETS.SCENES.TRAIN": 2,
    "DATASETS.SCENES.VAL": 4,
    "DATASETS.SCENES.SIZE": 64,
    "INPUT.MIN_SIZE_TRAIN": [64],
    "INPUT.MIN_SIZE_TEST": 64,
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.MAX_ITER": 2,
}


def first_two(dataset, name):
    return int(Path(name).stem) < 2


@pytest.fixture
def make_config(tmp_path, monkeypatch):
    # By the plan these are scenes 0 to 39.
    monkeypatch.setattr(analysis, "is_known", first_two)
    monkeypatch.setattr(thresholds, "is_known", first_two)

    def make(contestant, **changes):
        keys = {**FEW, **changes}
        opts = [item for pair in keys.items() for item in pair]
        output = tmp_path / contestant
        return config("scenes", contestant, rate=1e-3, seed=0, output=output, opts=opts)

    return make


@pytest.mark.parametrize("contestant", ["panoptic_fpn", "spatialflow", "refined"])
@pytest.mark.usefixtures("scenes")  # what is registered meanwhile is taken out again
def test_each_threshold_gives_what_it_gives_alone(make_config, contestant):
    cfg = make_config(contestant)
    model = ThresholdTrainer.build_model(cfg).eval()
    if contestant == "spatialflow":  # its untrained scores are all 0.01
        torch.nn.init.normal_(model.box_head.cls_score.weight, std=0.3)
    ThresholdTrainer.curve = []
    with EventStorage():
        ThresholdTrainer.test(cfg, copy.deepcopy(model))
    found = ThresholdTrainer.results(cfg)
    alone = {}
    for threshold in (THRESHOLDS[0], found["threshold"]):
        keys = cfg.clone()
        keys.defrost()
        keys.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = threshold
        other = copy.deepcopy(model)
        if contestant == "panoptic_fpn":
            other.combine_instances_score_thresh = threshold
        else:
            other.fusion = PQTrainer.build_model(keys).fusion
        with EventStorage():
            PQTrainer.test(keys, other)
        alone[threshold] = {"dataset": "scenes", **PQTrainer.results(keys)}
    for threshold, result in alone.items():
        quality = part_of(result, "choose")["PQ"]
        assert found["PQ_to_choose"][f"{threshold:g}"] == pytest.approx(quality, abs=0.006)
    best = alone[found["threshold"]]
    assert found["counts"] == best["counts"]
    assert found["PQ_reported"] == pytest.approx(part_of(best, "report")["PQ"], abs=0.006)
    assert max(found["PQ_to_choose"].values()) == found["PQ_to_choose"][f"{found['threshold']:g}"]
    assert set(found["precision"]) == {"bbox", "segm"}


@pytest.mark.usefixtures("scenes")
def test_a_run_keeps_its_curve(make_config, tmp_path):
    cfg = make_config("refined", **{"TEST.EVAL_PERIOD": 1})
    target = tmp_path / "result.json"
    run_trial(cfg, target, {"dataset": "scenes", "seed": 0}, ThresholdTrainer)
    result = read_json(target, dict)
    (first, early, _), (last, late, quality) = result["curve"]
    assert (first, last) == (1, 2)
    assert 0 < early < late < result["seconds"]
    assert quality == pytest.approx(part_of(result, "report")["PQ"], abs=0.006)
