"""Mistakes end a program in one line; bugs keep their stack traces."""

import errno
import io
import logging
import os
import resource
import signal
import socket
import sys

import pytest
import torch
import torch.distributed as dist
from detectron2.utils.events import EventStorage, JSONWriter
from torch.utils.data import DataLoader

from darts.genotype import GenotypeError
from darts.space import SpaceError
from spatialflow.cli.errors import errors_in_one_line
from spatialflow.config import load_genotype
from spatialflow.engine.hooks import NamingWriter
from spatialflow.utils.errors import ConfigError, DataError, NonFiniteError, ProcessError
from spatialflow.utils.files import write_json, write_text


@pytest.fixture
def two_processes(monkeypatch):
    """Two processes, as far as this one knows; returns the store in which they have met."""
    store = dist.HashStore()
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("detectron2.utils.comm.get_local_rank", lambda: 0)
    monkeypatch.setattr("torch.distributed.distributed_c10d._get_default_store", lambda: store)
    monkeypatch.setattr("spatialflow.cli.errors.LOST_PEER_SECONDS", 0)
    return store


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("SEED: 'x' given,\n  a number expected"), "SEED: 'x' given, a num"),
        (ImportError("needs timm"), "needs timm"),
        (GenotypeError("a.json: no name"), "a.json: no name"),
        (ConfigError("TEST.AUG: wrong"), "TEST.AUG: wrong"),
        (ProcessError("seed 1: failed"), "seed 1: failed"),
        (DataError("1.png: broken"), "1.png: broken"),
        (NonFiniteError("iteration 3"), "iteration 3"),
        (OSError(28, "No space left on device", "a.pth"), "a.pth: No space left"),
        (OSError(40, "Too many levels of symbolic links", "a"), "a: Too many levels"),
        (OSError(24, "Too many open files"), "[Errno 24] Too many open files"),
        (BrokenPipeError(32, "Broken pipe"), "standard output: Broken pipe"),
        (SpaceError("no edge"), "no edge"),
        (MemoryError("of 3 GiB"), "out of memory: of 3 GiB; a lower SOLVER.IMS_PER_BATCH"),
        (torch.OutOfMemoryError("CUDA out of memory."), "out of memory: CUDA"),
        (RuntimeError("[enforce fail] can't allocate memory: 9"), "out of memory: [enforce"),
        (dist.DistNetworkError("EADDRINUSE"), "--dist-url: the processes cannot meet: EADDR"),
        (ConfigError("\x1b[31m\udcff"), "\\x1b[31m\\udcff"),
        (ConfigError("x" * 10**6), "x" * 1000 + " …"),
    ],
)
def test_a_mistake_is_one_line(error, line, capsys):
    with pytest.raises(SystemExit) as raised, errors_in_one_line():
        raise error
    program, text = raised.value.code.split(": ", 1)
    assert program
    assert text.startswith(line)
    assert "\n" not in text
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        OSError(9, "Bad file descriptor"),
        RuntimeError("closed by peer"),
        ImportError("cannot import name 'x'", name="spatialflow.engine"),
    ],
)
def test_a_bug_passes_through(error):
    with pytest.raises(type(error)) as raised, errors_in_one_line():
        raise error
    assert raised.value is error


@pytest.mark.usefixtures("two_processes")
def test_a_bug_among_several_processes_passes_through():
    with pytest.raises(RuntimeError, match="a bug"), errors_in_one_line():
        raise RuntimeError("a bug")


@pytest.mark.usefixtures("two_processes")
def test_a_process_that_loses_another_says_so_in_a_line():
    message = "Connection closed by peer"
    with (
        pytest.raises(SystemExit, match=f": another process has ended: {message}$"),
        errors_in_one_line(),
    ):
        raise RuntimeError(message)


@pytest.mark.parametrize("error", [RuntimeError("Connection closed by peer"), DataError("broken")])
def test_one_process_of_a_machine_reports(two_processes, error):
    two_processes.add(f"reported on {socket.gethostname()}", 1)
    with pytest.raises(SystemExit) as raised, errors_in_one_line():
        raise error
    assert raised.value.code == 1


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_a_stack_trace_comes_on_request(monkeypatch, capsys, value, shown):
    monkeypatch.setenv("SPATIALFLOW_TRACEBACK", value)
    with pytest.raises(SystemExit, match="1.png: broken"), errors_in_one_line():
        raise DataError("1.png: broken")
    text = capsys.readouterr().err
    assert ("Traceback" in text) == shown
    assert ("test_errors.py" in text) == shown


@pytest.mark.parametrize(
    ("error", "value", "logged"),
    [
        (DataError("1.png: broken"), "0", False),
        (DataError("1.png: broken"), "1", True),
        (ValueError("a bug"), "0", True),
    ],
)
def test_the_training_loop_logs_the_trace_of_a_bug_only(monkeypatch, caplog, error, value, logged):
    monkeypatch.setenv("SPATIALFLOW_TRACEBACK", value)
    loop = logging.getLogger("detectron2.engine.train_loop")

    def train():
        try:
            raise error
        except ValueError:
            loop.exception("Exception during training:")
            raise

    with pytest.raises((SystemExit, ValueError)), errors_in_one_line():
        train()
    assert ("Exception during training" in caplog.text) == logged
    loop.error("afterwards")
    assert "afterwards" in caplog.text


def test_ctrl_c_is_one_line_and_the_status_of_a_signal(capsys):
    with pytest.raises(SystemExit) as raised, errors_in_one_line():
        raise KeyboardInterrupt
    assert raised.value.code == 130
    assert capsys.readouterr().err.endswith(": interrupted\n")


class Killed:
    """Images whose loading ends the process that loads them."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_line_with_a_remedy():
    line = r"DataLoader worker .*; fewer of DATALOADER\.NUM_WORKERS"
    with pytest.raises(SystemExit, match=line), errors_in_one_line():
        list(DataLoader(Killed(), num_workers=1))


def test_too_little_memory_is_one_line_with_a_remedy():
    """The messages of PyTorch and of NumPy are those of this version."""
    for size in (2**46, 2**61):
        with pytest.raises(SystemExit, match="out of memory: "), errors_in_one_line():
            torch.zeros(size)


@pytest.fixture
def full():
    """A log on a full disk: every line of the logger `full` goes to /dev/full."""
    logger, handler = logging.getLogger("full"), logging.FileHandler("/dev/full")
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)
    handler.close()


def test_a_log_on_a_full_disk_is_one_line(full, capsys):
    with pytest.raises(SystemExit, match="/dev/full: No space left"), errors_in_one_line():
        full.error("a line")
    assert capsys.readouterr().err == ""
    assert logging.Handler.handleError.__module__ == "logging"


def test_a_name_that_is_no_text_is_logged_and_printed_with_escapes(tmp_path, monkeypatch):
    name = os.fsdecode(b"\xff.png")
    logger, handler = logging.getLogger("escapes"), logging.FileHandler(tmp_path / "log.txt")
    logger.addHandler(handler)
    with open(tmp_path / "console.txt", "w", encoding="utf-8") as console:
        monkeypatch.setattr(sys, "stdout", console)
        with errors_in_one_line():
            logger.error("read %s", name)
            print(name)
    monkeypatch.undo()
    handler.close()
    logger.removeHandler(handler)
    assert (tmp_path / "log.txt").read_text() == "read \\udcff.png\n"
    assert (tmp_path / "console.txt").read_text() == "\\udcff.png\n"
    line = "a name of bytes that are not UTF-8"
    with pytest.raises(SystemExit, match=line), errors_in_one_line():
        name.encode()


def test_a_console_that_is_full_is_one_line(monkeypatch):
    with open("/dev/full", "w", encoding="utf-8") as console:
        monkeypatch.setattr(sys, "stdout", console)
        with pytest.raises(SystemExit, match="No space left on device"), errors_in_one_line():
            print("a line")


@pytest.mark.parametrize("code", [errno.EPIPE, errno.EIO])
def test_work_goes_on_where_the_reader_of_its_log_has_ended(code, monkeypatch, tmp_path):
    """As with `| head`, or where a terminal is closed."""

    class Closed(io.StringIO):
        def write(self, _):
            raise OSError(code, os.strerror(code))

    logger, done = logging.getLogger("closed"), []
    monkeypatch.setattr(sys, "stdout", Closed())
    handler = logging.StreamHandler(sys.stdout)
    logger.addHandler(handler)
    try:
        with errors_in_one_line():
            logger.error("a line")
            done.append(1)
        handler.setStream(Closed())  # a log that is no console
        with pytest.raises(SystemExit, match=os.strerror(code)), errors_in_one_line():
            logger.error("a line")
    finally:
        logger.removeHandler(handler)
    assert done


def test_metrics_and_results_on_a_full_disk_name_their_files(tmp_path):
    for name in ("metrics.json", "search.jsonl"):
        (tmp_path / name).symlink_to("/dev/full")
    writer = NamingWriter(JSONWriter(str(tmp_path / "metrics.json")), tmp_path / "metrics.json")
    line = r"metrics\.json: No space left"
    with EventStorage() as storage:
        storage.put_scalar("loss", 1.0)
        with pytest.raises(SystemExit, match=line), errors_in_one_line():
            writer.write()
    for write in (
        lambda path: write_json(path, {}),
        lambda path: write_text(path, "a"),
        lambda path: load_genotype("parallel").save(path),
    ):
        with pytest.raises(SystemExit, match=r"a\.json: "), errors_in_one_line():
            _limited(lambda write=write: write(tmp_path / "a.json"))


def _limited(work):
    """Do work while no file can grow: the error of writing names no file by itself."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        work()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
