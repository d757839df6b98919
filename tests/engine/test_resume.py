"""N + M steps equal N steps, a stop, and M more: bit for bit."""

import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from torch import nn

from spatialflow.data.loader import TrainLoader
from spatialflow.data.sampler import ResumableBatchSampler
from spatialflow.engine import StepTrainer, Trainer
from spatialflow.engine.hooks import EvaluationHook
from spatialflow.utils import signals
from tests.conftest import GROUP_NORM
from tests.modeling.test_refined import REFINED


def equal(first, second, where=""):
    """Compares nested states to the bit."""
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key, value in first.items():
            equal(value, second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for i, (one, other) in enumerate(zip(first, second, strict=True)):
            equal(one, other, f"{where}[{i}]")
    elif isinstance(first, torch.Tensor | np.ndarray):
        assert torch.equal(torch.as_tensor(first), torch.as_tensor(second)), where
    else:
        assert first == second, where


def train(cfg, *, resume=False, seed=0):
    torch.manual_seed(seed)
    np.random.seed(seed)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer.start_iter


def checkpoint(cfg, name="model_final"):
    return torch.load(f"{cfg.OUTPUT_DIR}/{name}.pth", weights_only=True)


def test_a_checkpoint_has_the_keys_of_earlier_versions(scenes_cfg):
    """A training that began with an earlier version has to resume."""
    cfg = scenes_cfg({"SOLVER.MAX_ITER": 1, "DATASETS.TEST": ()})
    train(cfg)
    stored = checkpoint(cfg)
    assert set(stored) == {"model", "trainer", "iteration"}
    assert set(stored["trainer"]) == {"iteration", "hooks", "_trainer"}
    assert set(stored["trainer"]["hooks"]) == {"LRScheduler", "EvaluationHook"}
    assert set(stored["trainer"]["hooks"]["EvaluationHook"]) == {"best", "best_iterations"}
    assert set(stored["trainer"]["_trainer"]) == {"iteration", "optimizer", "grad_scaler", "data"}


CASES = {
    "plain": {},
    "workers": {"DATALOADER.NUM_WORKERS": 2},
    "no grouping": {"DATALOADER.ASPECT_RATIO_GROUPING": False},
    "sgd with momentum": {"SOLVER.OPTIMIZER": "SGD", "SOLVER.STEPS": (2, 4)},
    "bfloat16": {"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": "bfloat16", **GROUP_NORM},
    # Half precision is slow on CPUs.
    "float16": {
        "SOLVER.AMP.ENABLED": True,
        "SOLVER.AMP.DTYPE": "float16",
        "SOLVER.IMS_PER_BATCH": 1,
        **GROUP_NORM,
    },
    "accumulation": {"SOLVER.ACCUMULATION_STEPS": 2},
    "average": {"SOLVER.EMA.ENABLED": True, "SOLVER.EMA.DECAY": 0.5},
    # Its sample of proposals is random.
    "regions": {**REFINED, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16},
    "batch norm": {"MODEL.RESNETS.NORM": "BN"},
    "evaluations": {"TEST.EVAL_PERIOD": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_equals_uninterrupted(scenes_cfg, scenes, tmp_path, case):
    changes = {
        "INPUT.CROP.ENABLED": True,
        "INPUT.CROP.SIZE": (0.8, 0.8),
        "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
        "SOLVER.WARMUP_ITERS": 3,
        "SOLVER.CHECKPOINT_PERIOD": 3,
        "SOLVER.MAX_ITER": 5,
        "DATASETS.TEST": (scenes,) if case == "evaluations" else (),
        **CASES[case],
    }
    if case == "sgd with momentum":
        changes["SOLVER.LR_SCHEDULER_NAME"] = "WarmupMultiStepLR"
    whole = scenes_cfg({**changes, "OUTPUT_DIR": str(tmp_path / "whole")})
    train(whole)
    stopped = scenes_cfg({**changes, "OUTPUT_DIR": str(tmp_path / "stopped")})
    train(stopped)
    # What an interruption after the first checkpoint leaves.
    (tmp_path / "stopped" / "model_final.pth").unlink()
    (tmp_path / "stopped" / "last_checkpoint").write_text("model_0000002.pth")
    assert train(stopped, resume=True, seed=123) == 3
    equal(checkpoint(stopped), checkpoint(whole))
    if case == "evaluations":
        equal(checkpoint(stopped, "model_best"), checkpoint(whole, "model_best"))
        results = [
            json.loads((tmp_path / run / "results.json").read_text())
            for run in ("stopped", "whole")
        ]
        assert results[0] == results[1]


class Signals(HookBase):
    """Sends signals in a step, with nothing in between."""

    def __init__(self, iteration, numbers):
        self.iteration, self.numbers = iteration, numbers

    def before_step(self):
        if self.trainer.iter == self.iteration:
            for number in self.numbers:
                os.kill(os.getpid(), number)


def train_until(cfg, number, *hooks, match):
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.register_hooks([*hooks])
    with pytest.raises(KeyboardInterrupt, match=match) as stopped:
        trainer.train()
    assert stopped.value.status == 128 + number
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_training_after_its_step(scenes_cfg, scenes, tmp_path, number):
    """With a checkpoint, from which it goes on to the same end; the evaluation is made up for."""
    changes = {"TEST.EVAL_PERIOD": 3, "SOLVER.MAX_ITER": 5, "DATALOADER.NUM_WORKERS": 1}
    whole = scenes_cfg({**changes, "OUTPUT_DIR": str(tmp_path / "whole")})
    train(whole)
    cfg = scenes_cfg({**changes, "OUTPUT_DIR": str(tmp_path / "stopped")})
    match = (
        f"^stopped by {number.name} after iteration 3 of 5; "
        f"--resume goes on from {tmp_path}/stopped/model_0000002.pth$"
    )
    train_until(cfg, number, Signals(2, [number, number]), match=match)
    assert not (tmp_path / "stopped" / "model_final.pth").exists()
    assert not (tmp_path / "stopped" / "results.json").exists()
    lines = (tmp_path / "stopped" / "metrics.json").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [0, 1, 2]
    assert train(cfg, resume=True) == 3
    equal(checkpoint(cfg), checkpoint(whole))
    equal(checkpoint(cfg, "model_best"), checkpoint(whole, "model_best"))


def test_a_signal_ends_an_evaluation_at_once(scenes_cfg, scenes, tmp_path, qualities, monkeypatch):
    """What was learnt since the last checkpoint is kept, and the evaluation is made up for."""
    _, evaluated = qualities
    cfg = scenes_cfg({"TEST.EVAL_PERIOD": 2, "DATASETS.TEST": (scenes,), "SOLVER.MAX_ITER": 3})
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "test", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        train_until(cfg, signal.SIGTERM, match="after iteration 2 of 3; .*/model_0000001.pth$")
    assert train(cfg, resume=True) == 2
    assert evaluated == [50.0, 40.0]


@pytest.mark.parametrize("main", [True, False])
def test_processes_wait_for_a_checkpoint_of_the_main_one(scenes_cfg, scenes, monkeypatch, main):
    """What started them ends all when the first one ends, in an evaluation without a barrier."""
    cfg = scenes_cfg({"TEST.EVAL_PERIOD": 2, "DATASETS.TEST": (scenes,), "SOLVER.MAX_ITER": 3})
    trainer, seconds = Trainer(cfg), []

    def sleep(_):
        seconds.append(len(seconds))
        if len(seconds) == 3:
            trainer.checkpointer.tag_last_checkpoint("model_0000001.pth")

    def evaluate(*_):
        monkeypatch.setattr("spatialflow.engine.stopping.comm.is_main_process", lambda: main)
        monkeypatch.setattr("spatialflow.engine.stopping.time.sleep", sleep)
        if not main:
            monkeypatch.setattr(trainer.checkpointer, "save", lambda *_, **__: None)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "rehearse", lambda *_: None)
    monkeypatch.setattr(Trainer, "test", evaluate)
    with pytest.raises(KeyboardInterrupt, match="model_0000001.pth$"):
        trainer.train()
    assert len(seconds) == (0 if main else 3)


def test_a_second_signal_stops_at_once(scenes_cfg, tmp_path, monkeypatch):
    """Within a step, so that there is nothing to go on from."""
    monkeypatch.setattr(signals, "SAME_SECONDS", 0.0)
    cfg = scenes_cfg({"DATASETS.TEST": ()})
    second = Signals(2, [signal.SIGINT, signal.SIGINT])
    match = "^stopped by SIGINT after iteration 2 of 6; there is no checkpoint$"
    train_until(cfg, signal.SIGINT, second, match=match)
    assert not list((tmp_path / "output").glob("*.pth"))


class Random(nn.Module):
    """A model that draws random numbers, as one with dropout or sampled proposals does."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, batch):
        noise = torch.rand(3) + float(np.random.rand())
        return {"loss": (self.weight * noise).sum() + sum(batch)}


def random_weights(steps, *, state=None):
    model = Random()
    loader = TrainLoader(
        [0.5] * 4, lambda item: item, ResumableBatchSampler(4, batch_size=2, seed=0)
    )
    trainer = StepTrainer(model, loader, torch.optim.SGD(model.parameters(), lr=0.1), seed=7)
    first = 0
    if state is not None:
        model.load_state_dict(state["model"])
        trainer.load_state_dict(state["trainer"])
        first = trainer.iter + 1
    with EventStorage():
        for trainer.iter in range(first, first + steps):
            trainer.run_step()
    return {"model": model.state_dict(), "trainer": trainer.state_dict()}


def test_what_is_random_in_a_model_is_a_function_of_the_step():
    whole = random_weights(5)
    half = random_weights(2)
    torch.manual_seed(3)
    np.random.seed(3)
    equal(random_weights(3, state=half), whole)
    assert not torch.equal(whole["model"]["weight"], half["model"]["weight"])


@pytest.fixture
def qualities(monkeypatch):
    """Replace evaluation: return the PQs to give, and the list of those that were given."""
    waiting, evaluated = [50.0, 40.0, 45.0, 41.0], []

    def test(cls, cfg, model, evaluators=None):
        evaluated.append(waiting.pop(0))
        return {"panoptic_seg": {"PQ": evaluated[-1], "PQ_st": math.nan}}

    monkeypatch.setattr(Trainer, "test", classmethod(test))
    monkeypatch.setattr(Trainer, "rehearse", classmethod(lambda *args: None))
    return waiting, evaluated


@pytest.mark.parametrize("cut_off", [True, False])
def test_the_best_model_survives_a_stop(scenes_cfg, scenes, tmp_path, qualities, cut_off):
    """An evaluation that was cut off is made up for, and an older, better model stays the best."""
    _, evaluated = qualities
    changes = {"TEST.EVAL_PERIOD": 2, "SOLVER.CHECKPOINT_PERIOD": 2, "DATASETS.TEST": (scenes,)}
    cfg = scenes_cfg({**changes, "SOLVER.MAX_ITER": 4})
    train(cfg)
    assert evaluated == [50.0, 40.0]
    output = tmp_path / "output"
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    best = (output / "model_best.pth").read_bytes()
    assert checkpoint(cfg, "model_best")["iteration"] == 1, "counted from 0"
    if cut_off:
        (output / "last_evaluation.json").unlink()
    longer = scenes_cfg({**changes, "SOLVER.MAX_ITER": 6})
    # The checkpoint of iteration 4 was written before the evaluation that follows it.
    assert train(longer, resume=True) == 4
    assert evaluated == ([50.0, 40.0, 45.0, 41.0] if cut_off else [50.0, 40.0, 45.0])
    assert (output / "model_best.pth").read_bytes() == best
    state = checkpoint(longer)["trainer"]["hooks"]["EvaluationHook"]
    assert state == {"best": 50.0, "best_iterations": 2}


def test_a_finished_evaluation_is_not_done_again(scenes_cfg, scenes, tmp_path, qualities):
    """Its results are those of the first time, also the best one, which no checkpoint has yet."""
    waiting, evaluated = qualities
    waiting[:] = [50.0, 60.0, 1.0, 2.0, 3.0]
    changes = {"DATASETS.TEST": (scenes,), "TEST.EVAL_PERIOD": 2, "SOLVER.CHECKPOINT_PERIOD": 2}
    cfg = scenes_cfg({**changes, "SOLVER.MAX_ITER": 4})
    train(cfg)
    assert evaluated == [50.0, 60.0]
    for _ in range(2):
        trainer = Trainer(cfg, from_checkpoint=True)
        trainer.resume_or_load(resume=True)
        trainer.train()
        found = trainer._last_eval_results["panoptic_seg"]
        assert found["PQ"] == 60.0
        assert math.isnan(found["PQ_st"])
        hook = next(hook for hook in trainer._hooks if isinstance(hook, EvaluationHook))
        assert hook.state_dict() == {"best": 60.0, "best_iterations": 4}
    assert evaluated == [50.0, 60.0]
    # Another evaluation, or another training in the same folder, is not the one that was finished.
    train(scenes_cfg({**changes, "SOLVER.MAX_ITER": 4, "INPUT.MIN_SIZE_TEST": 48}), resume=True)
    assert evaluated == [50.0, 60.0, 1.0]
    train(cfg)
    assert evaluated == [50.0, 60.0, 1.0, 2.0, 3.0]


def test_data_sets_of_other_code_are_evaluated_by_its_evaluators(scenes_cfg, qualities):
    """The record of an evaluation has no digest of such data."""
    _, evaluated = qualities
    DatasetCatalog.register("foreign", list)
    try:
        cfg = scenes_cfg({"DATASETS.TEST": ("foreign",), "SOLVER.MAX_ITER": 1})
        train(cfg)
        assert train(cfg, resume=True) == 1
    finally:
        DatasetCatalog.remove("foreign")
    assert evaluated == [50.0]


def test_a_killed_training_of_the_same_folder_leaves_no_finished_evaluation(
    scenes_cfg, scenes, tmp_path, qualities
):
    _, evaluated = qualities
    cfg = scenes_cfg({"DATASETS.TEST": (scenes,), "SOLVER.MAX_ITER": 2})
    train(cfg)
    assert (tmp_path / "output" / "last_evaluation.json").is_file()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.before_train()
    assert not (tmp_path / "output" / "last_evaluation.json").exists()
    assert evaluated == [50.0]


def test_each_step_draws_its_own_numbers(monkeypatch):
    drawn = []

    def forward(self, _):
        drawn.append(float(torch.rand(())))
        return {"loss": self.weight.sum()}

    monkeypatch.setattr(Random, "forward", forward)
    random_weights(4)
    assert len(set(drawn)) == 4
