"""One process, several processes of ours, and those of torchrun."""

import contextlib
import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch.multiprocessing import ProcessExitedException

from spatialflow.cli.errors import errors_in_one_line
from spatialflow.cli.launch import TORCHRUN_VARIABLES, _silent_unless, run
from spatialflow.utils.signals import Stopped
from tests.conftest import TINY_RUN, parse

TORCHRUN = (
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "--no-python",
)


def lines_of(done, program):
    return [line for line in done.stderr.splitlines() if line.startswith(f"{program}: ")]


@pytest.mark.parametrize(
    ("words", "gpus", "torchrun", "line"),
    [
        (["--num-machines", "2"], 0, None, "--num-machines 2 needs --dist-url"),
        (["--num-gpus", "0"], 0, None, "--num-gpus 0, .* given; 1 or more"),
        (["--machine-rank", "1"], 0, None, "--machine-rank 1 given; .* below that of the mach"),
        (["--dist-url", "there"], 0, None, "--dist-url 'there' given, tcp://HOST:PORT expected"),
        (["--num-gpus", "3"], 2, None, "--num-gpus: 3 given, but this machine has 2 GPU"),
        (["--num-gpus", "2"], 0, "2", "torchrun has started the processes"),
        ([], 2, "3", "torchrun --nproc-per-node: 3 given, but this machine has 2 GPU"),
    ],
)
def test_a_wrong_number_of_processes_is_one_line(monkeypatch, words, gpus, torchrun, line):
    for name in TORCHRUN_VARIABLES if torchrun else ():
        monkeypatch.setenv(name, torchrun if name == "LOCAL_WORLD_SIZE" else "0")
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    with pytest.raises(SystemExit, match=line):
        run(lambda args: pytest.fail("started"), parse("train", words))


def test_auto_is_an_address_as_in_detectron2():
    done = []
    run(lambda args: lambda: done.append(args.dist_url), parse("train", ["--dist-url", "auto"]))
    assert done == [None]


@pytest.mark.parametrize("before", [None, "error::UserWarning"])
def test_processes_import_without_warnings(monkeypatch, before):
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    if before:
        monkeypatch.setenv("PYTHONWARNINGS", before)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    seen = []
    monkeypatch.setattr(
        "spatialflow.cli.launch.launch", lambda *_, **__: seen.append(os.environ["PYTHONWARNINGS"])
    )
    run(lambda args: pytest.fail("started"), parse("train", ["--num-gpus", "2"]))
    ours = "ignore::FutureWarning:torch.jit._script"
    assert seen == [f"{ours},{before}" if before else ours]
    assert os.environ.get("PYTHONWARNINGS") == before


class Flag:
    """An event of another process."""

    def __init__(self, is_set):
        self.is_set = is_set

    def wait(self, _):
        return self.is_set


@pytest.mark.parametrize(("asked", "lines"), [(True, 1), (False, 0)])
def test_only_a_signal_of_a_user_is_told(monkeypatch, capsys, asked, lines):
    """PyTorch sends SIGTERM to all processes where one has failed."""
    monkeypatch.setattr("spatialflow.cli.launch.signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as end, errors_in_one_line(), _silent_unless(Flag(asked)):
        raise Stopped(signal.SIGTERM)
    assert end.value.code == 143
    assert capsys.readouterr().err.count("stopped by SIGTERM") == lines


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (None, "terminated")])
def test_processes_that_a_signal_ends_in_their_start(monkeypatch, capsys, number, status):
    """Before they could say so; without a signal of the user's, it is what has happened to one."""

    @contextlib.contextmanager
    def passed_on():
        yield SimpleNamespace(number=number, event=None)

    def end(*_, **__):
        raise ProcessExitedException("process 0 terminated", 0, 1, exit_code=-15)

    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("spatialflow.cli.launch.signals_for_children", passed_on)
    monkeypatch.setattr("spatialflow.cli.launch.launch", end)
    with pytest.raises(SystemExit) as raised:
        run(lambda args: pytest.fail("started"), parse("train", ["--num-gpus", "2"]))
    assert raised.value.code == status or str(raised.value.code).endswith(str(status))
    assert ("stopped by SIGINT" in capsys.readouterr().err) == (number is not None)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_runs_of_two_processes_at_once(program, tmp_path):
    """The processes of each run meet each other."""
    (tmp_path / "meeting").mkdir()

    def start(name):
        return program("tests/cli/meeting.py", "--num-gpus", 2, tmp_path / "meeting", name)

    with ThreadPoolExecutor() as pool:
        for done in pool.map(start, ("first", "second")):
            assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("end", "status", "lines"),
    [
        ("done", 0, []),
        ("wrong", 1, ["ending.py: 000001.png: broken"]),
        ("late", 1, ["ending.py: 000001.png: broken"]),
        ("killed", 1, ["ending.py: process 1 terminated with signal SIGKILL"]),
    ],
)
def test_threads_still_at_work_do_not_spoil_an_end(program, end, status, lines):
    """The status is that of the work, though threads of gloo can abort an interpreter that ends."""
    done = program("tests/engine/ending.py", "--num-gpus", 2, end)
    assert done.returncode == status, done.stderr[-2000:]
    assert lines_of(done, "ending.py") == lines
    assert "Traceback" not in done.stderr
    assert "terminate called" not in done.stderr


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("end", "status", "lines"),
    [("done", 0, []), ("wrong", 1, ["ending.py: 000001.png: broken"])],
)
def test_processes_of_torchrun_end_as_ours_do(program, end, status, lines):
    done = program("tests/engine/ending.py", end, wrapper=TORCHRUN)
    assert done.returncode == status, done.stderr[-2000:]
    assert lines_of(done, "ending.py") == lines
    assert "terminate called" not in done.stderr
    # From the error file of the process that failed.
    assert ("DataError: 000001.png: broken" in done.stderr) == bool(lines)


@pytest.mark.distributed
@pytest.mark.parametrize(("count", "wrapper"), [(2, ()), (1, TORCHRUN)])
def test_all_processes_of_a_second_run_end(program, tmp_path, other_run, count, wrapper):
    first = other_run(tmp_path / "output")
    options = [item for pair in TINY_RUN.items() for item in pair]
    options += ["SOLVER.IMS_PER_BATCH", 2, "OUTPUT_DIR", tmp_path / "output"]
    words = ["--config-file", "generated/spatialflow.yaml", "--num-gpus", count, *options]
    done = program("train_net.py", *words, wrapper=wrapper)
    assert done.returncode == 1
    (line,) = lines_of(done, "train_net.py")
    assert f"which other_run (process {first.pid} on " in line
    assert not (tmp_path / "output" / "log.txt").exists()


@pytest.mark.slow
@pytest.mark.distributed
def test_torchrun_trains_as_num_gpus_does(program, tmp_path):
    keys = {
        **TINY_RUN,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 2,
        "DATASETS.TEST": "()",
        "SEED": 1,
    }
    words = ["--config-file", "generated/spatialflow.yaml"]
    options = [item for pair in keys.items() for item in pair]
    weights = []
    for name, count, wrapper in (("ours", 2, ()), ("torchrun", 1, TORCHRUN)):
        output = ["OUTPUT_DIR", tmp_path / name]
        done = program(
            "train_net.py", *words, "--num-gpus", count, *options, *output, wrapper=wrapper
        )
        assert done.returncode == 0, done.stderr[-2000:]
        saved = torch.load(tmp_path / name / "model_final.pth", weights_only=True)
        weights.append(saved["model"])
    ours, theirs = weights
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    log = (tmp_path / "torchrun" / "log.txt").read_text()
    assert "World size: 2" in log


@pytest.mark.distributed
def test_an_address_that_is_taken_is_one_line(program):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        done = program("tests/engine/ending.py", "--num-gpus", 2, "--dist-url", url, "done")
    assert done.returncode == 1
    (line,) = lines_of(done, "ending.py")
    assert f"--dist-url {url}: the processes cannot meet there: " in line
    assert "Traceback" not in done.stderr
