"""The moving average of the weights: its values, who sees it, and what a checkpoint has."""

import pytest
import torch
from detectron2.engine import HookBase
from torch import nn

from spatialflow.engine import Trainer
from spatialflow.engine.averaging import WeightAverage
from spatialflow.utils.errors import CheckpointError
from tests.engine.test_resume import checkpoint


def small():
    """A model with learning and frozen weights, and with statistics."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    model[2].requires_grad_(False)
    return model


def step(hook, model, change):
    hook.before_step()
    for parameter in model[:2].parameters():
        parameter.data += change
    model[1].running_mean += change
    hook.after_step()


def test_the_average_by_hand():
    model = small()
    frozen = model[2].weight.clone()
    start = {name: x.clone() for name, x in model.state_dict().items()}
    hook = WeightAverage(model, 0.15)
    moved, expected = 0.0, 0.0
    for steps, change in enumerate((1.0, -3.0, 0.5)):
        step(hook, model, change)
        moved += change
        decay = min(0.15, (1 + steps) / (10 + steps))
        expected = decay * expected + (1 - decay) * moved
        for name in ("0.weight", "0.bias", "1.weight", "1.running_mean"):
            torch.testing.assert_close(model.state_dict()[name], start[name] + expected)
            torch.testing.assert_close(hook.state_dict()["learning"][name], start[name] + moved)
    assert torch.equal(model[2].weight, frozen)
    assert "2.weight" not in hook.state_dict()["learning"]
    assert "1.num_batches_tracked" not in hook.state_dict()["learning"]


def test_buffers_that_are_replaced_are_averaged():
    """PreciseBN gives norms new tensors."""
    model = small()
    hook = WeightAverage(model, 0.0)
    step(hook, model, 1.0)
    model[1].running_mean = torch.full((3,), 7.0)
    step(hook, model, 1.0)
    assert torch.equal(model[1].running_mean, torch.full((3,), 2.0))
    hook.before_step()
    assert torch.equal(model[1].running_mean, torch.full((3,), 2.0))


def test_a_step_that_fails_leaves_the_average():
    model = small()
    hook = WeightAverage(model, 0.15)
    step(hook, model, 1.0)
    average = model[0].weight.clone()
    learning = hook.state_dict()["learning"]["0.weight"].clone()
    hook.before_step()
    assert torch.equal(model[0].weight, learning)
    hook.after_train()
    assert torch.equal(model[0].weight, average)
    assert torch.equal(hook.state_dict()["learning"]["0.weight"], learning)


def test_a_run_that_averages_goes_on_averaging(scenes_cfg):
    keys = {"SOLVER.MAX_ITER": 1, "DATASETS.TEST": ()}
    Trainer(scenes_cfg({**keys, "SOLVER.EMA.ENABLED": True})).train()
    with pytest.raises(CheckpointError, match=r"SOLVER\.EMA\.ENABLED: False given"):
        Trainer(scenes_cfg({**keys, "SOLVER.MAX_ITER": 2})).resume_or_load()


def test_a_state_of_another_model_is_refused():
    hook = WeightAverage(small(), 0.9)
    step(hook, model := small(), 0.0)
    state = hook.state_dict()
    assert state["steps"] == 1
    wider = nn.Sequential(nn.Linear(2, 4), model[1], model[2])
    with pytest.raises(CheckpointError, match=r"SOLVER\.EMA: .* 0\.weight"):
        WeightAverage(wider, 0.9).load_state_dict(state)


class Watch(HookBase):
    """Keeps the weights after each step, as other hooks see them, and within the next one."""

    def __init__(self):
        self.seen, self.within = [], []

    def before_step(self):
        self.within.append(weight(self.trainer))

    def after_step(self):
        self.seen.append(weight(self.trainer))


def weight(trainer):
    return trainer.model.stuff_head.predictor.weight.detach().clone()


def test_checkpoints_hold_the_average_and_steps_the_weights_that_learn(scenes_cfg):
    keys = {"SOLVER.MAX_ITER": 3, "DATASETS.TEST": ()}
    runs = {}
    for averaged in (False, True):
        folder = {"OUTPUT_DIR": f"{scenes_cfg().OUTPUT_DIR}/{averaged}"}
        cfg = scenes_cfg({**keys, **folder, "SOLVER.EMA.ENABLED": averaged})
        torch.manual_seed(0)
        trainer = Trainer(cfg)
        watch = Watch()
        trainer.register_hooks([watch])
        trainer.train()
        runs[averaged] = watch, checkpoint(cfg)
    (plain, _), (watch, stored) = runs[False], runs[True]
    # The steps are the same, whatever is saved.
    assert all(torch.equal(a, b) for a, b in zip(plain.within, watch.within, strict=True))
    average = plain.within[0]
    for steps, now in enumerate(plain.seen):
        average = torch.lerp(average, now, 1 - (1 + steps) / (10 + steps))
        torch.testing.assert_close(watch.seen[steps], average)
    name = "stuff_head.predictor.weight"
    assert torch.equal(stored["model"][name], watch.seen[-1])
    state = stored["trainer"]["hooks"]["WeightAverage"]
    assert state["steps"] == 3
    assert torch.equal(state["learning"][name], plain.seen[-1])
