"""Trainings in their own processes: two at a time, killed ones, and ones with mistakes."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from darts.genotype import Genotype
from spatialflow.data import generate_scenes
from tests.conftest import TINY_RUN

CONFIG = "generated/spatialflow.yaml"


@pytest.fixture
def options(tmp_path):
    """Returns a function that gives the KEY VALUE pairs of a small training."""

    def pairs(**changes):
        keys = {
            **TINY_RUN,
            "SOLVER.IMS_PER_BATCH": 4,
            "SOLVER.MAX_ITER": 3,
            "OUTPUT_DIR": tmp_path / "output",
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
        return [str(item) for pair in keys.items() for item in pair]

    return pairs


def in_processes(count):
    return ["--config-file", CONFIG, "--num-gpus", count]


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_compute_what_one_does(program, options, tmp_path):
    """Gradients, weights and results, under LOSS_NORMALIZER global; every parameter is used."""
    runs = {}
    for count in (1, 2):
        output = tmp_path / f"processes-{count}"
        keys = options(MODEL__SPATIALFLOW__LOSS_NORMALIZER="global", OUTPUT_DIR=output)
        done = program("tests/engine/gradients.py", *in_processes(count), *keys)
        assert done.returncode == 0, done.stderr[-2000:]
        runs[count] = torch.load(output / "gradients.pth", weights_only=True)
    for one, two in zip(runs[1], runs[2], strict=True):
        assert one.keys() == two.keys()
        for name, gradient in one.items():
            scale = gradient.abs().max().item()
            torch.testing.assert_close(two[name], gradient, rtol=1e-3, atol=1e-4 * scale + 1e-7)
    assert any(gradient.abs().max() > 0 for gradient in runs[1][0].values())

    # The same weights, evaluated by one process and by two.
    weights = ["MODEL.WEIGHTS", tmp_path / "processes-1" / "model_final.pth"]
    results, counts = [], []
    for count in (1, 2):
        output = tmp_path / f"evaluation-{count}"
        keys = options(OUTPUT_DIR=output)
        done = program("train_net.py", *in_processes(count), "--eval-only", *keys, *weights)
        assert done.returncode == 0, done.stderr[-2000:]
        results.append(json.loads((output / "results.json").read_text()))
        counts.append(json.loads(next(output.rglob("panoptic_results.json")).read_text()))
    assert results[0] == results[1]
    assert counts[0] == counts[1]


@pytest.mark.slow
@pytest.mark.distributed
def test_a_process_without_things_keeps_step(program, options, tmp_path):
    """One process's images have no thing: its parameters still take part in the exchange."""
    generate_scenes(tmp_path / "set", count=4, seed=0, size=(96, 96))
    path = tmp_path / "set" / "panoptic.json"
    content = json.loads(path.read_text())
    isthing = {c["id"]: c["isthing"] for c in content["categories"]}
    for annotation in content["annotations"][:2]:
        for segment in annotation["segments_info"]:
            segment["iscrowd"] = isthing[segment["category_id"]]
    path.write_text(json.dumps(content))
    keys = options(
        DATASETS__FOLDER__PATH=tmp_path / "set",
        DATASETS__TRAIN="('folder_all',)",
        DATASETS__TEST="()",
        DATALOADER__FILTER_EMPTY_ANNOTATIONS=False,
        SOLVER__IMS_PER_BATCH=2,
        SOLVER__MAX_ITER=6,
    )
    done = program("tests/engine/gradients.py", *in_processes(2), *keys)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "places"),
    [([], ["step", "evaluation", "checkpoint", "tag"]), (["--search"], ["checkpoint"])],
    ids=["training", "search"],
)
def test_killed_runs_end_as_undisturbed_ones(program, kind, places):
    done = program("tests/engine/killing.py", *kind, "--at", *places)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count("the same end True") == len(places)


@pytest.fixture
def broken(tmp_path):
    """A data set of scenes in which one PNG is truncated, and that PNG."""
    generate_scenes(tmp_path / "set", count=6, seed=0, size=(96, 96))
    victim = tmp_path / "set" / "panoptic" / "000001.png"
    victim.write_bytes(victim.read_bytes()[:100])
    return tmp_path / "set", victim


def folder(root):
    return {
        "DATASETS__FOLDER__PATH": root,
        "DATASETS__TRAIN": "('folder_all',)",
        "DATASETS__TEST": "()",
        "SOLVER__IMS_PER_BATCH": 2,
        "SOLVER__MAX_ITER": 12,
    }


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("processes", [1, 2])
def test_bad_data_met_in_training_are_one_line(program, options, broken, processes):
    root, victim = broken
    keys = options(**folder(root), DATALOADER__NUM_WORKERS=2)
    done = program("train_net.py", *in_processes(processes), *keys)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("train_net.py: ")]
    assert str(victim) in line
    log = (Path(keys[keys.index("OUTPUT_DIR") + 1]) / "log.txt").read_text()
    assert "Traceback" not in log


@pytest.mark.slow
def test_bad_data_may_be_skipped(program, options, broken, tmp_path):
    root, victim = broken
    keys = options(**folder(root), DATALOADER__BAD_DATA="skip")
    done = program("train_net.py", *in_processes(1), *keys)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"left out: {victim}" in done.stdout
    lines = (tmp_path / "output" / "metrics.json").read_text().splitlines()
    assert json.loads(lines[-1])["bad_images"] >= 1


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"OUTPUT_DIR": "/sys/output"}, "/sys/output"),
        ({"OUTPUT_DIR": "/dev/null/output"}, "/dev/null/output"),
        ({"MODEL__WEIGHTS": "broken.pth"}, "broken.pth: not a whole file of weights"),
    ],
    ids=["read-only", "no folder", "weights"],
)
def test_an_environment_that_does_not_work_is_one_line(
    program, options, tmp_path, changes, problem
):
    (tmp_path / "broken.pth").write_bytes(b"PK")
    done = program("train_net.py", *in_processes(1), *options(**changes))
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("train_net.py: ")
    assert problem in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_full_disk_ends_with_one_line_and_is_gone_on_from(program, options, tmp_path):
    """A limit of a file's size, under which a write fails in the middle, as on a full disk."""
    keys = options(SOLVER__CHECKPOINT_PERIOD=1, DATASETS__TEST="()")
    limit = ("bash", "-c", "ulimit -f 400; trap '' XFSZ; exec \"$@\"", "bash")
    done = program("train_net.py", *in_processes(1), *keys, wrapper=limit)
    output = tmp_path / "output"
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"train_net.py: {output}/model_")
    assert "File too large" in last
    assert not list(output.glob("*.pth"))
    assert not list(output.glob(".*.partial"))
    shutil.rmtree(tmp_path / "cache")
    done = program("train_net.py", *in_processes(1), "--resume", *keys)
    assert done.returncode == 0, done.stderr[-2000:]


def searching(options, **changes):
    return options(
        SEARCH__ARCHITECTURE_FRACTION=0.5,
        SEARCH__OPTIMIZER__LR=0.05,
        SEARCH__SPACE__OPERATIONS="['identity','conv_1x1']",
        DATASETS__SCENES__TRAIN=12,
        DATASETS__TEST="()",
        MODEL__SPATIALFLOW__LOSS_NORMALIZER="global",
        SOLVER__MAX_ITER=3,
        **changes,
    )


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_search_as_one_does_and_the_result_is_trained(program, options, tmp_path):
    found = {}
    for count in (1, 2):
        output = tmp_path / f"search-{count}"
        keys = searching(options, OUTPUT_DIR=output)
        done = program("search_net.py", *in_processes(count), *keys)
        assert done.returncode == 0, done.stderr[-2000:]
        model = torch.load(output / "model_final.pth", weights_only=True)["model"]
        found[count] = {k: v for k, v in model.items() if k.startswith("architecture.")}
        assert len(found[count]) == 36
    for name, value in found[1].items():
        assert value.abs().max() > 0.01
        torch.testing.assert_close(found[2][name], value, rtol=0.02, atol=0.002)
    path = tmp_path / "search-1" / "genotype.json"
    again = ["--derive-only", tmp_path / "search-1" / "model_final.pth"]
    saved = path.read_text()
    done = program(
        "search_net.py",
        *in_processes(1),
        *again,
        *searching(options, OUTPUT_DIR=tmp_path / "search-1"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(path.read_text())["flows"] == json.loads(saved)["flows"]
    keys = options(MODEL__SPATIALFLOW__GENOTYPE=path, SOLVER__MAX_ITER=1, DATASETS__TEST="()")
    done = program("train_net.py", *in_processes(1), *keys)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_search_with_drawn_paths_and_stop_alike(program, options, tmp_path):
    """A drawn path leaves parameters without a gradient, another one in each process."""
    keys = searching(
        options,
        OUTPUT_DIR=tmp_path / "search",
        SEARCH__RELAXATION="gumbel",
        SEARCH__RULE="perturbation",
        SEARCH__SPACE__STAGES="[4]",
        SEARCH__EIGENVALUE_PERIOD=1,
        SEARCH__STOP_RATIO=0.75,
        SEARCH__WARMUP=0.0,
    )
    done = program("search_net.py", *in_processes(2), *keys)
    assert done.returncode == 0, done.stderr[-2000:]
    genotype = Genotype.load(tmp_path / "search" / "genotype.json")
    assert genotype.provenance["rule"] == "perturbation"


@pytest.mark.slow
@pytest.mark.distributed
def test_a_signal_stops_two_processes_after_the_same_step(program, options, tmp_path):
    """SIGTERM to the process that has started them ends in one line, with a checkpoint."""
    keys = options(SOLVER__MAX_ITER=500, DATASETS__TEST="()", DATALOADER__NUM_WORKERS=1)
    done = program("tests/engine/stopping.py", *in_processes(2), *keys)
    assert done.returncode == 143, done.stderr[-2000:]
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("stopping.py: ")]
    name = (tmp_path / "output" / "last_checkpoint").read_text()
    iterations = int(name.removesuffix(".pth").removeprefix("model_")) + 1
    assert line == (
        f"stopping.py: stopped by SIGTERM after iteration {iterations} of 500; "
        f"--resume goes on from {tmp_path}/output/{name}"
    )
    assert torch.load(tmp_path / "output" / name, weights_only=True)["iteration"] < 500
