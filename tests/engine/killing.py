#!/usr/bin/env python
"""Kill a training with SIGKILL, resume it, and compare the end with that of an undisturbed one.

    python tests/engine/killing.py --at step evaluation checkpoint tag
    python tests/engine/killing.py --random 40 --seed 0
    python tests/engine/killing.py --search --at step checkpoint tag

Every training is a process of its own, forked from this one, which has only imported what they
need. Exit status 0 if every end is that of the undisturbed training, to the bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from darts.genotype import Genotype
from spatialflow.engine import Trainer
from spatialflow.evaluation import PanopticEvaluator
from spatialflow.utils import files
from spatialflow_cli.main import run
from tests.conftest import TINY_RUN

ITERATIONS, PERIOD = 8, 2
SEARCH = {
    "SEARCH.ARCHITECTURE_FRACTION": 0.5,
    "SEARCH.SPACE.OPERATIONS": "['identity','conv_1x1']",
    "SEARCH.OPTIMIZER.LR": 0.05,
    "DATASETS.TEST": "()",
    "DATASETS.SCENES.TRAIN": 12,
}


def options(output: Path, *, search: bool) -> list[str]:
    """Return KEY VALUE pairs of a training of seconds, with checkpoints and evaluations."""
    keys = {
        **TINY_RUN,
        "DATALOADER.NUM_WORKERS": 2,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": ITERATIONS,
        "SOLVER.CHECKPOINT_PERIOD": PERIOD,
        "TEST.EVAL_PERIOD": PERIOD,
        "SEED": 3,
        "OUTPUT_DIR": output,
        **(SEARCH if search else {}),
    }
    return [str(item) for pair in keys.items() for item in pair]


def start(output: Path, *, search: bool, at: str | None = None) -> int:
    """Fork a training that goes on from its last checkpoint, and return its process id.

    Args:
        output: Folder of the run.
        search: Whether to search instead of training.
        at: Name in :data:`PLACES` of the point where the process kills itself; None for no kill.
    """
    process = os.fork()
    if process:
        return process
    os.setpgid(0, 0)
    log = os.open(output.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1
    try:
        if at is not None:
            PLACES[at]()
        words = ["--config-file", "generated/spatialflow.yaml", "--resume"]
        words += options(output, search=search)
        run("search" if search else "train", words, "killing")
        status = 0
    finally:
        os._exit(status)


def end(*_: object) -> None:
    """Kill this process and its workers as the system would."""
    os.killpg(0, signal.SIGKILL)


def in_a_step() -> None:
    """Kill between the backward pass and the optimiser, in an iteration without a checkpoint."""

    hooks_after_backward = Trainer.after_backward

    def after_backward(trainer: Trainer) -> None:
        if trainer.iter == 4:
            end()
        hooks_after_backward(trainer)

    Trainer.after_backward = after_backward  # type: ignore[method-assign]


def in_an_evaluation() -> None:
    """Kill after the second image of an evaluation."""
    count, process = iter(range(5)), PanopticEvaluator.process

    def until_the_second(self, inputs, outputs):
        process(self, inputs, outputs)
        if next(count) == 4:
            end()

    PanopticEvaluator.process = until_the_second


def in_a_checkpoint() -> None:
    """Kill when half of a checkpoint is written."""
    write, written = files._Recorder.write, [0]

    def half(self, data):
        result = write(self, data)
        # The file has no name but that of its descriptor.
        if "model_0000003" in os.readlink(f"/proc/self/fd/{self.file.fileno()}"):
            written[0] += len(data)
        if written[0] > 100_000:
            end()
        return result

    files._Recorder.write = half


def before_the_tag() -> None:
    """Kill when a checkpoint is in its place and ``last_checkpoint`` still names the old one."""
    replace = os.replace

    def rename(source, target):
        if Path(target).name == "last_checkpoint" and Path(target).exists():
            end()
        replace(source, target)

    os.replace = rename


PLACES = {
    "step": in_a_step,
    "evaluation": in_an_evaluation,
    "checkpoint": in_a_checkpoint,
    "tag": before_the_tag,
}


def finish(output: Path, *, search: bool) -> None:
    """Run a training from its last checkpoint to its end."""
    _, status = os.waitpid(start(output, search=search), 0)
    if status:
        sys.exit(f"the training failed: {output.with_suffix('.log').read_text()[-2000:]}")


def content(output: Path) -> list[object]:
    """Return weights, results and genotype of a run, without anything that depends on paths."""
    weights = [output / name for name in ("model_final.pth", "model_best.pth")]
    loaded = [torch.load(path, weights_only=True) for path in weights if path.is_file()]
    results = output / "results.json"
    texts = [results.read_text()] if results.is_file() else []
    return [*loaded, *texts, Genotype.load(output / "genotype.json").hash]


def same(first: object, second: object) -> bool:
    """Compare nested values to the bit."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(v, second[k]) for k, v in first.items())
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return torch.equal(first, second)
    return first == second


def kill_at_random(
    output: Path, kills: int, longest: float, rng: random.Random, *, search: bool
) -> int:
    """Kill and resume a training until it ends, and return how often it was killed.

    Args:
        output: Folder of the run.
        kills: Largest number of kills; after it the training runs to its end.
        longest: Longest time before a kill, in seconds.
        rng: Generator of the moments.
        search: Whether to search instead of training.
    """
    for killed in range(kills):
        process = start(output, search=search)
        time.sleep(rng.uniform(0, longest))
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            if status:
                sys.exit(f"failed: {output.with_suffix('.log').read_text()[-2000:]}")
            return killed
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
    finish(output, search=search)
    return kills


def main() -> None:
    """Run the trainings and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at", nargs="*", choices=PLACES, default=[])
    parser.add_argument("--random", type=int, default=0, help="kills at random moments")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--search", action="store_true", help="a search instead of a training")
    args = parser.parse_args()
    torch.set_num_threads(1)
    good = True
    with tempfile.TemporaryDirectory(prefix="spatialflow_killing_") as folder:
        os.environ["SPATIALFLOW_CACHE"] = str(Path(folder, "cache"))
        began = time.perf_counter()
        finish(Path(folder, "undisturbed"), search=args.search)
        seconds = time.perf_counter() - began
        expected = content(Path(folder, "undisturbed"))
        for at in args.at:
            _, status = os.waitpid(start(Path(folder, at), search=args.search, at=at), 0)
            killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            finish(Path(folder, at), search=args.search)
            equal = same(content(Path(folder, at)), expected)
            good &= killed and equal
            print(f"{at}: killed {killed}, resumed, the same end {equal}", flush=True)
        rng, kills, runs = random.Random(args.seed), 0, 0
        while kills < args.random:
            output = Path(folder, f"random-{runs}")
            kills += kill_at_random(
                output, args.random - kills, 1.2 * seconds, rng, search=args.search
            )
            equal = same(content(output), expected)
            good, runs = good and equal, runs + 1
            print(f"random moments: {kills} kills so far, the same end {equal}", flush=True)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
