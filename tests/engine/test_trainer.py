"""The real trainer on generated scenes, for a few iterations."""

import json
import os
from types import SimpleNamespace

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage, EventWriter

from spatialflow.config import get_cfg
from spatialflow.engine import StepTrainer, Trainer
from spatialflow.engine.hooks import EvaluationHook, Writer
from spatialflow.engine.output import RUN_FILES, check_run_outputs
from spatialflow.engine.setup import _check_data_files
from spatialflow.search.trainer import SearchTrainer
from spatialflow.utils.console import PROGRESS
from spatialflow.utils.errors import ConfigError
from tests.conftest import GROUP_NORM, TINY

LOSSES = ("loss_cls", "loss_box", "loss_mask", "loss_stuff")


def run(trainer):
    trainer.resume_or_load(resume=False)
    return trainer.train()


@pytest.fixture
def metrics(tmp_path):
    """Returns a function that reads what the last training wrote, one dict a line."""

    def read():
        lines = (tmp_path / "output" / "metrics.json").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return read


def test_a_short_training_has_a_curve_and_says_what_it_does(scenes_cfg, metrics, caplog):
    """A line of metrics.json for each iteration; the log names model, weights and files."""
    cfg = scenes_cfg({"SOLVER.MAX_ITER": 3, "DATASETS.TEST": ()})
    with caplog.at_level("INFO"):
        run(Trainer(cfg))
    assert [line["iteration"] for line in metrics() if "total_loss" in line] == [0, 1, 2]
    assert "weights: random with seed 1" in caplog.text
    assert "model: SpatialFlow, genotype spatialflow (10 flows), trunk ResNet-18, " in caplog.text
    assert "training: iterations 1 to 3 of 2 images each, from 6 images; " in caplog.text
    assert f"written to {cfg.OUTPUT_DIR}:\n  model_final.pth the weights\n" in caplog.text
    assert "scratch" not in caplog.text


@pytest.mark.parametrize(
    ("length", "lines"), [(19, 19), (60, 20 + 14), (90_000, 20 + 4499)], ids=str
)
def test_metrics_are_written_at_first_always_and_later_now_and_then(length, lines):
    class Counter(EventWriter):
        written = 0

        def write(self):
            self.written += 1

    writer = Counter()
    hook = Writer([writer], length)
    for iteration in range(length):
        hook.trainer = SimpleNamespace(iter=iteration, max_iter=length)
        hook.after_step()
    assert writer.written == lines


def test_the_writers_do_not_hide_what_ended_a_training(scenes_cfg):
    class Failing(HookBase):
        def after_step(self):
            raise LookupError("a hook")

    trainer = Trainer(scenes_cfg({"DATASETS.TEST": ()}))
    trainer.register_hooks([Failing()])  # after the writers
    with pytest.raises(LookupError, match="a hook"):
        run(trainer)


@pytest.mark.slow
def test_training_end_to_end(scenes_cfg, tmp_path, metrics):
    """Losses fall; metrics, results, last and best checkpoint and TensorBoard file are there."""
    cfg = scenes_cfg({"TEST.EVAL_PERIOD": 10, "SOLVER.MAX_ITER": 20, "SEED": 2, **GROUP_NORM})
    output = tmp_path / "output"
    output.mkdir()
    trainer = Trainer(cfg)
    run(trainer)
    lines = [line for line in metrics() if "total_loss" in line]
    assert all(name in line for name in LOSSES for line in lines)
    history = trainer.storage.history("total_loss").values()
    assert len(history) == 20
    first, last = (sum(v for v, _ in part) / 5 for part in (history[:5], history[-5:]))
    assert last < 0.8 * first

    saved = json.loads((output / "results.json").read_text())
    assert {"panoptic_seg", "bbox", "segm"} <= set(saved)
    for suffix in ("", "_th", "_st"):
        assert {f"{key}{suffix}" for key in ("PQ", "SQ", "RQ")} <= set(saved["panoptic_seg"])
    for task in ("bbox", "segm"):
        assert {"AP", "AP50", "AP75", "APs", "APm", "APl"} <= set(saved[task])
    assert saved["panoptic_seg"]["PQ_st"] > 0, "nothing learnt"
    assert (output / "model_final.pth").is_file()
    assert (output / "model_best.pth").is_file()
    assert list(output.glob("events.out.tfevents.*"))
    assert any("panoptic_seg/PQ" in line for line in metrics())

    # The final model, read from its checkpoint by other objects, gives the same results.
    model = Trainer.build_model(cfg)
    DetectionCheckpointer(model).load(str(output / "model_final.pth"))
    (output / "results.json").unlink()
    Trainer.test(cfg, model)
    assert json.loads((output / "results.json").read_text()) == saved


class Batches:
    """A data loader that gives the same batches for ever."""

    def __init__(self, *batches):
        self.batches = batches

    def __iter__(self):
        while True:
            yield from self.batches


def step(model, batches, **options):
    """Gradients and logged losses of one step, with a rate of zero."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = StepTrainer(model, Batches(*batches), optimizer, **options)
    with EventStorage() as storage:
        trainer.iter = 0
        trainer.run_step()
        losses = {name: storage.latest()[name][0] for name in LOSSES}
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, losses


def test_accumulation_equals_the_large_batch(tiny_cfg, make_input):
    """The halves have equal counts of anchors, proposals and pixels, so the means agree."""
    model = build_model(tiny_cfg())
    image, other = make_input(64, 64), make_input(64, 64, seed=1)
    large, large_losses = step(model, [[image, other]])
    small, small_losses = step(model, [[image], [other]], accumulation_steps=2)
    assert small_losses == pytest.approx(large_losses, rel=1e-4)
    assert large.keys() == small.keys()
    for name, gradient in large.items():
        assert gradient.abs().sum() > 0, name
        scale = gradient.abs().max().item()
        torch.testing.assert_close(small[name], gradient, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_on_cpu(tiny_cfg, make_input, dtype):
    model = build_model(tiny_cfg())
    seen = []
    model.box_head.cls_score.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    full, full_losses = step(model, [[make_input(64, 64)]])
    half, half_losses = step(model, [[make_input(64, 64)]], amp_dtype=dtype)
    assert set(seen[:5]) == {torch.float32}
    assert set(seen[5:]) == {dtype}
    assert half_losses == pytest.approx(full_losses, rel=0.05)
    assert full.keys() == half.keys()
    if dtype == torch.bfloat16:  # with float16 a first step may overflow: the scaler leaves it out
        assert all(torch.isfinite(gradient).all() for gradient in half.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_trainer_with_mixed_precision_and_accumulation(scenes_cfg, metrics, dtype):
    amp = {"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": dtype}
    accumulate = {"SOLVER.ACCUMULATION_STEPS": 2, "SOLVER.MAX_ITER": 2, "DATASETS.TEST": ()}
    cfg = scenes_cfg({**amp, **accumulate})
    trainer = Trainer(cfg)
    before = trainer.model.box_head.cls_score.weight.clone()
    run(trainer)
    moved = not torch.equal(before, trainer.model.box_head.cls_score.weight)
    scale = trainer.step_trainer.grad_scaler.get_scale()
    # A float16 step that overflows is left out, and halves the scale of 65536.
    assert moved or (dtype == "float16" and scale < 65536)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


class BreakAndWatch(HookBase):
    """Breaks the weights in one iteration, and keeps what `after_backward` sees in the others."""

    def __init__(self, broken):
        self.broken = broken
        self.seen = []

    def before_step(self):
        self.weights = {n: p.detach().clone() for n, p in self.trainer.model.named_parameters()}
        if self.trainer.iter == self.broken:
            torch.nn.init.constant_(self.trainer.model.box_head.bbox_pred.bias, float("nan"))

    def after_backward(self):
        for name, p in self.trainer.model.named_parameters():
            assert p.grad is not None or not p.requires_grad, name
            assert torch.equal(p, self.weights[name]), "the optimiser has stepped"
        self.seen.append(self.trainer.iter)

    def after_step(self):
        bias = "box_head.bbox_pred.bias"
        if self.trainer.iter == self.broken:
            self.trainer.model.load_state_dict({bias: self.weights[bias]}, strict=False)
        else:
            assert not torch.equal(self.trainer.model.box_head.bbox_pred.bias, self.weights[bias])


def test_hooks_see_the_gradients_of_every_step_that_counts(scenes_cfg):
    cfg = scenes_cfg({"SOLVER.NON_FINITE": "skip", "SOLVER.MAX_ITER": 4, "DATASETS.TEST": ()})
    trainer, hook = Trainer(cfg), BreakAndWatch(broken=1)
    trainer.register_hooks([hook])
    run(trainer)
    assert hook.seen == [0, 2, 3]


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_optimizer_covers_every_trainable_parameter_once(scenes_cfg, optimizer):
    cfg = scenes_cfg(
        {
            "SOLVER.OPTIMIZER": optimizer,
            "SOLVER.BASE_LR": 0.01,
            "SOLVER.WEIGHT_DECAY": 0.1,
            "SOLVER.WEIGHT_DECAY_NORM": 0.0,
            "SOLVER.WEIGHT_DECAY_BIAS": 0.2,
            "SOLVER.TRUNK_MULTIPLIER": 0.5,
            "MODEL.BACKBONE.FREEZE_AT": 2,
        }
    )
    model = build_model(cfg)
    groups = Trainer.build_optimizer(cfg, model).param_groups
    held = [id(p) for group in groups for p in group["params"]]
    learning = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    assert len(held) == len(set(held))
    assert set(held) == set(learning)
    assert len(learning) < len(list(model.parameters()))
    for group in groups:
        for p in group["params"]:
            name = learning[id(p)]
            expected = 0.005 if name.startswith("backbone.bottom_up.") else 0.01
            assert group["lr"] == pytest.approx(expected), name
            # Detectron2's rule for biases is the stronger one.
            decay = 0.2 if name.endswith(".bias") else 0.0 if ".norm." in name else 0.1
            assert group["weight_decay"] == decay, name


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_gradient_clipping(scenes_cfg, optimizer):
    clip = {"ENABLED": True, "CLIP_TYPE": "norm", "CLIP_VALUE": 0.01}
    cfg = scenes_cfg(
        {
            "SOLVER.OPTIMIZER": optimizer,
            **{f"SOLVER.CLIP_GRADIENTS.{k}": v for k, v in clip.items()},
        }
    )
    model = torch.nn.Linear(4, 4)
    built = Trainer.build_optimizer(cfg, model)
    (model(torch.randn(3, 4)) * 100).sum().backward()
    built.step()
    for p in model.parameters():
        assert p.grad.norm().item() <= 0.01 * 1.001


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("WarmupMultiStepLR", [0.1, 0.55, 1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        (
            "WarmupCosineLR",
            [0.1, None, 0.9045, 0.7939, 0.6545, 0.5, 0.3455, 0.2061, 0.0955, 0.0245],
        ),
    ],
)
def test_schedules(scenes_cfg, name, expected):
    changes = {
        "SOLVER.LR_SCHEDULER_NAME": name,
        "SOLVER.MAX_ITER": 10,
        "SOLVER.STEPS": (6, 8),
        "SOLVER.WARMUP_ITERS": 2,
        "SOLVER.WARMUP_FACTOR": 0.1,
        "SOLVER.BASE_LR": 1.0,
    }
    cfg = scenes_cfg(changes)
    optimizer = Trainer.build_optimizer(cfg, torch.nn.Linear(1, 1))
    scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    for rate, value in zip(rates, expected, strict=True):
        assert value is None or rate == pytest.approx(value, abs=1e-3)


def test_diverging_is_reported_by_the_trainer(tiny_cfg, make_input):
    model = build_model(tiny_cfg())
    torch.nn.init.constant_(model.box_head.bbox_pred.bias, float("nan"))
    with pytest.raises(FloatingPointError, match="iteration 0: loss_box is nan.*; images: "):
        step(model, [[make_input(64, 64)]])


@pytest.mark.parametrize(
    ("key", "value"), [("SOLVER.OPTIMIZER", "Adam"), ("SOLVER.AMP.DTYPE", "half")]
)
def test_wrong_keys_are_named(scenes_cfg, key, value):
    with pytest.raises(ValueError, match=f"{key}: '{value}'"):
        Trainer(scenes_cfg({key: value}))


def test_the_best_is_by_the_first_of_several_test_sets(scenes_cfg, scenes):
    trainer = Trainer(scenes_cfg({"DATASETS.TEST": (scenes, scenes)}))
    hook = next(hook for hook in trainer._hooks if isinstance(hook, EvaluationHook))
    assert hook.metric == f"{scenes}/panoptic_seg/PQ"


def test_only_an_evaluation_reports_one(scenes_cfg, caplog):
    """The evaluation that is tried before the first step draws no bar and says nothing."""
    cfg = scenes_cfg({"SOLVER.MAX_ITER": 1})
    with caplog.at_level(PROGRESS), caplog.at_level(PROGRESS, "spatialflow.progress"):
        run(Trainer(cfg))
    lines = [record.getMessage() for record in caplog.records]
    begins = next(i for i, line in enumerate(lines) if line.startswith("training: iterations 1 to"))
    assert [line for line in lines[:begins] if line.startswith("evaluation")] == [
        "evaluation was tried with one image of tiny_scenes"
    ]
    assert sum(line.startswith("evaluation: tiny_scenes, 6") for line in lines[begins:]) == 1


def test_a_finished_run_says_nothing_of_a_training(scenes_cfg, caplog):
    trainer = Trainer(scenes_cfg({"DATASETS.TEST": ()}))
    trainer.start_iter = trainer.max_iter
    with caplog.at_level("INFO"):
        trainer.train()
    assert "training: iterations" not in caplog.text


def test_test_data_are_checked_for_a_subclass_that_inherits_its_evaluator(scenes):
    DatasetCatalog.register("boxes", list)
    keys = {
        **TINY,
        "DATASETS.TRAIN": (scenes,),
        "DATASETS.TEST": ("boxes",),
    }
    words = [word for pair in keys.items() for word in pair]

    class Inherits(Trainer):
        pass

    class Evaluates(Trainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            return None

    cfg = get_cfg(None, words)
    for trainer in (Trainer, Inherits, SearchTrainer):
        with pytest.raises(ConfigError, match="data set 'boxes' is not panoptic"):
            _check_data_files(cfg, ("TEST",), trainer)
    cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
    _check_data_files(cfg, ("TEST",), Evaluates)


def test_a_protected_checkpoint_is_replaced_and_a_protected_log_is_refused(
    scenes_cfg, tmp_path, monkeypatch
):
    cfg = scenes_cfg({"OUTPUT_DIR": str(tmp_path)})
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monkeypatch.setattr("os.access", lambda path, mode: os.path.isdir(path))

    def check():
        check_run_outputs(cfg, RUN_FILES, model, optimizer)

    for name in ("model_final.pth", "model_0000001.pth"):
        (tmp_path / name).touch()
    check()
    (tmp_path / "metrics.json").touch()
    with pytest.raises(ConfigError, match=r"metrics\.json: .* may not be written"):
        check()
    (tmp_path / "metrics.json").unlink()
    (tmp_path / "model_0.pth").mkdir()
    with pytest.raises(ConfigError, match=r"model_0\.pth: .* it is a folder"):
        check()
