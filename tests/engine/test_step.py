"""Numbers that are not finite are noticed at the step, with the images' names."""

import json
from contextlib import nullcontext

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from spatialflow.engine import StepTrainer, Trainer
from spatialflow.engine.non_finite import MAX_SKIPPED_IN_A_ROW
from spatialflow.utils.errors import NonFiniteError
from spatialflow.utils.randomness import seeded
from tests.engine.test_trainer import Batches


@pytest.fixture
def named(make_input):
    def build(name, value=None, seed=0):
        image = {**make_input(64, 64, seed=seed), "file_name": name}
        if value is not None:
            image["image"] = image["image"].float()
            image["image"][0, 3, 5] = value
        return image

    return build


def steps(model, batches, count, **options):
    """Runs some steps; returns the trainer and what it logged last."""
    trainer = StepTrainer(
        model, Batches(*batches), torch.optim.SGD(model.parameters(), 1e-3), **options
    )
    with EventStorage() as storage:
        for trainer.iter in range(count):
            trainer.run_step()
    return trainer, storage.latest()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_an_image_that_is_not_finite_is_named(tiny_cfg, named, value, dtype):
    model = build_model(tiny_cfg())
    batch = [named("good.png"), named("bad.png", value)]
    with pytest.raises(NonFiniteError) as raised:
        steps(model, [batch], 1, amp_dtype=dtype)
    message = str(raised.value)
    assert message.startswith("iteration 0: loss_")
    assert "images: good.png, bad.png; NaN or infinite pixels in bad.png" in message


def test_a_step_may_be_skipped_and_is_counted(tiny_cfg, named, caplog):
    model = build_model(tiny_cfg())
    good, bad = [named("good.png")], [named("bad.png", float("nan"))]
    trainer, logged = steps(model, [good, bad, good], 3, non_finite="skip")
    assert trainer.non_finite.skipped == 1
    assert logged["skipped_steps"][0] == 1
    assert "step left out" in caplog.text
    assert "bad.png" in caplog.text
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_skipped_step_leaves_the_weights(tiny_cfg, named):
    model = build_model(tiny_cfg())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps(model, [[named("bad.png", float("nan"))]], 2, non_finite="skip")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_broken_weights_are_not_skipped_for_ever(tiny_cfg, named):
    model = build_model(tiny_cfg())
    torch.nn.init.constant_(model.box_head.bbox_pred.bias, float("nan"))
    with pytest.raises(NonFiniteError, match=f"{MAX_SKIPPED_IN_A_ROW} steps in a row"):
        steps(model, [[named("good.png")]], MAX_SKIPPED_IN_A_ROW + 1, non_finite="skip")


def test_a_gradient_that_is_not_finite_is_noticed():
    class Root(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, batch):
            return {"loss": self.weight.sqrt().sum()}

    with pytest.raises(NonFiniteError, match="a gradient is NaN or infinite; images: one.png"):
        steps(Root(), [[{"file_name": "one.png", "image": torch.zeros(1)}]], 1)


def test_bad_images_of_all_processes_are_counted(tiny_cfg, named, monkeypatch):
    model = build_model(tiny_cfg())
    monkeypatch.setattr(Batches, "bad_images", 3, raising=False)
    _, logged = steps(model, [[named("one.png")]], 1)
    assert logged["bad_images"][0] == 3
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    monkeypatch.setattr("detectron2.utils.comm.gather", lambda data, **_: [data])
    monkeypatch.setattr("torch.distributed.all_reduce", lambda counts: counts.mul_(2))
    _, logged = steps(model, [[named("one.png")]], 1)
    assert logged["bad_images"][0] == 6


def test_processes_that_go_on_from_different_iterations_are_stopped(scenes_cfg, monkeypatch):
    trainer = Trainer(scenes_cfg({"DATASETS.TEST": ()}))
    monkeypatch.setattr("detectron2.utils.comm.all_gather", lambda start: [start, 3])
    with pytest.raises(ValueError, match=r"OUTPUT_DIR: .* iterations \[0, 3\]; a folder that all"):
        trainer.resume_or_load(resume=False)


def test_a_gpu_is_seeded_where_it_is_asked_for(monkeypatch):
    seen = []
    monkeypatch.setattr("torch.random.fork_rng", lambda devices: nullcontext(seen.append(devices)))
    monkeypatch.setattr("torch.cuda.device", nullcontext)
    monkeypatch.setattr("torch.cuda.manual_seed", seen.append)
    gpu = torch.device("cuda", 1)
    for device in (None, torch.device("cpu"), gpu):
        with seeded(5, device):
            pass
    assert seen == [[], [], [gpu], 5]


def test_the_key_reaches_the_step(scenes_cfg, tmp_path):
    cfg = scenes_cfg({"SOLVER.NON_FINITE": "skip", "SOLVER.MAX_ITER": 2, "DATASETS.TEST": ()})
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    torch.nn.init.constant_(trainer.model.box_head.bbox_pred.bias, float("nan"))
    trainer.train()
    lines = (tmp_path / "output" / "metrics.json").read_text().splitlines()
    assert json.loads(lines[-1])["skipped_steps"] == 2


def test_a_wrong_policy_is_named(scenes_cfg):
    with pytest.raises(ValueError, match="SOLVER.NON_FINITE: 'ignore' given"):
        Trainer(scenes_cfg({"SOLVER.NON_FINITE": "ignore"}))


class OneWeight(nn.Module):
    """Its gradient is what the image holds."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, data):
        return {"loss": (self.weight * data[0]["image"]).sum()}


def test_only_steps_in_a_row_stop_a_training():
    good, bad = ([{"file_name": "a.png", "image": torch.tensor([v])}] for v in (1.0, float("nan")))
    count = MAX_SKIPPED_IN_A_ROW + 1
    trainer, _ = steps(OneWeight(), [good, bad], 2 * count, non_finite="skip")
    assert trainer.non_finite.skipped == count
