"""What goes wrong in a search: numbers, files, data, and arguments that it cannot follow."""

import itertools
import json
from pathlib import Path

import pytest

from spatialflow.data import generate_scenes
from spatialflow.engine import Trainer, prepare_config
from spatialflow.search.hook import ArchitectureHook
from spatialflow.search.trainer import SearchTrainer
from spatialflow.utils.errors import NonFiniteError
from spatialflow.utils.files import append_json_line
from tests.search.test_search import SEARCH, search


@pytest.mark.parametrize("order", [1, 2])
def test_a_held_out_image_that_is_not_finite_is_named_or_left_out(scenes_cfg, caplog, order):
    keys = {"SEARCH.WARMUP": 0.0, "SEARCH.ORDER": order, "SOLVER.OPTIMIZER": "SGD"}
    keys["SOLVER.BASE_LR"] = 0.001

    def search(policy, *, bad):
        trainer = SearchTrainer(scenes_cfg({**SEARCH, **keys, "SOLVER.NON_FINITE": policy}))
        trainer.resume_or_load(resume=False)
        (hook,) = (h for h in trainer._hooks if isinstance(h, ArchitectureHook))
        batches = list(itertools.islice(hook.loader, 5))
        for image in batches[bad]:
            image["image"] = image["image"].float() * float("nan")
        hook._batches = iter(batches)
        try:
            trainer.train()
        finally:
            seen = trainer.architecture.edges.values()
            assert all(p.isfinite().all() for p in seen)
        return batches[bad][0]["file_name"]

    with pytest.raises(NonFiniteError, match="iteration 1: the architecture's loss is nan; images"):
        search("stop", bad=1)
    name = search("skip", bad=1)
    assert "step of the architecture left out, number 1: iteration 1: " in caplog.text
    assert name in caplog.text


def test_a_search_that_was_killed_in_its_log_is_finished(scenes_cfg, tmp_path):
    cfg = scenes_cfg({**SEARCH, "OUTPUT_DIR": str(tmp_path)})
    search(cfg)
    *before, whole = (tmp_path / "search.jsonl").read_text().splitlines(keepends=True)
    assert len(before) > 1  # a short search has a course, too
    (tmp_path / "search.jsonl").write_text(whole[:-100])
    (tmp_path / "metrics.json").open("a").write('{"iteration": 4, "tot')
    trainer = search(cfg, resume=True)
    trainer.write_genotype()
    first, *_ = (tmp_path / "search.jsonl").read_text().splitlines()
    assert first == whole[:-100]
    assert "The log of the search is not" in (tmp_path / "report.html").read_text()
    append_json_line(tmp_path / "search.jsonl", json.loads(whole))
    trainer.write_genotype()
    assert "The log of the search is not" not in (tmp_path / "report.html").read_text()


def test_a_report_leaves_out_bad_images_where_the_search_did(scenes_cfg, tmp_path):
    generate_scenes(tmp_path / "set", count=8, seed=0, size=(96, 96))
    keys = {
        "DATASETS.FOLDER.PATH": str(tmp_path / "set"),
        "DATASETS.TRAIN": ("folder_all",),
        "DATALOADER.BAD_DATA": "skip",
        "MODEL.RETINANET.NUM_CLASSES": -1,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": -1,
        "OUTPUT_DIR": str(tmp_path / "output"),
    }
    cfg = scenes_cfg({**SEARCH, **keys})
    prepare_config(cfg)
    trainer = search(cfg)
    held_out = [image["file_name"] for image in trainer._architecture_loader(9)._images.dicts]
    missing, broken, *rest = map(Path, held_out)
    missing.unlink()
    broken.write_bytes(broken.read_bytes()[:200])
    trainer.write_genotype()
    report = (tmp_path / "output" / "report.html").read_text()
    assert f"on {len(rest)} images that only the architecture" in report


@pytest.mark.parametrize(
    ("key", "value"), [("SOLVER.NESTEROV", True), ("SOLVER.ACCUMULATION_STEPS", 2)]
)
def test_a_virtual_step_foresees_plain_sgd_alone(scenes_cfg, key, value):
    keys = {"SEARCH.ORDER": 2, "SOLVER.OPTIMIZER": "SGD", key: value}
    with pytest.raises(ValueError, match=f"{key}: {value} given"):
        SearchTrainer(scenes_cfg({**SEARCH, **keys}))


def test_a_supernet_is_not_trained_as_a_network(scenes_cfg):
    with pytest.raises(ValueError, match="MODEL.META_ARCHITECTURE: .* the model of a search"):
        Trainer(scenes_cfg(SEARCH))


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("SEARCH.RULE", "best", "SEARCH.RULE: 'best' given"),
        ("SEARCH.RELAXATION", "tanh", "SEARCH: relaxation: 'tanh' given"),
        ("SEARCH.SPACE.PAIRS", ["box-cls"], "SEARCH.SPACE.PAIRS"),
        ("SEARCH.SPACE.PAIRS", ["box>head"], "SEARCH.SPACE: branches"),
        ("SEARCH.SPACE.OPERATIONS", ["pool"], "SEARCH.SPACE: operations"),
        ("SEARCH.SPACE.STAGES", [9], "SEARCH.SPACE: stages"),
        ("SEARCH.SPACE.PORTS", ["gates"], r"PORTS: \['gates'\] given, .*'gate'\) expected$"),
        ("SEARCH.SPACE.PORTS", ["offset"], r"PORTS: .*'gate'\) expected: an offset needs"),
        ("SEARCH.SPACE.CHOICES", ["stuff.attention.merged=none"], "SEARCH.SPACE: CHOICES: "),
        ("SEARCH.SPACE.CHOICES", ["stuff.attention.merged=none,magic"], "CHOICES: .*magic"),
        ("SEARCH.SPACE.CHOICES", ["attention=none,channel"], "CHOICES: 'attention="),
        ("SEARCH.SPACE.PORTS", [], r"SEARCH.SPACE.PORTS: \[\] given"),
        ("SEARCH.PARTIAL_CHANNELS", 3, "PARTIAL_CHANNELS: 3 given, a divisor of .*OUT_CHANNELS"),
        ("SEARCH.WARMUP", 300.0, "SEARCH.WARMUP: 300.0 given, a share"),
        ("MODEL.SPATIALFLOW.STUFF_ATTENTION", "merged=channel", "STUFF_ATTENTION: 'merged"),
        ("SEARCH.SPACE.MAX_INPUTS", -1, "SEARCH.SPACE.MAX_INPUTS"),
        ("SEARCH.ARCHITECTURE_FRACTION", 1.0, "SEARCH.ARCHITECTURE_FRACTION"),
        ("MODEL.META_ARCHITECTURE", "SpatialFlow", "MODEL.META_ARCHITECTURE"),
        ("SEARCH.TEMPERATURE", 0.0, "SEARCH.TEMPERATURE: 0.0 given, more than 0"),
        ("SEARCH.COST", -1.0, "SEARCH.COST: -1.0 given, 0 or more"),
        ("SEARCH.STOP_RATIO", 0.5, "STOP_RATIO: 0.5 given, 0.0 .with SEARCH.EIGENVALUE_PERIOD 0"),
        ("SEARCH.ORDER", 3, "SEARCH.ORDER: 3 given"),
        ("SEARCH.PERTURBATION_BATCHES", 0, "SEARCH.PERTURBATION_BATCHES: 0 given"),
        ("SEARCH.ORDER", 2, "OPTIMIZER: 'AdamW' given, 'SGD' .with SEARCH.ORDER 2. expected"),
    ],
)
def test_wrong_keys_are_named(scenes_cfg, key, value, problem):
    with pytest.raises(ValueError, match=problem):
        SearchTrainer(scenes_cfg({**SEARCH, key: value}))
