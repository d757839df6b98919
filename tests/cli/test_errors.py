"""Mistakes end a program in one line; bugs keep their stack traces."""

import logging

import pytest

from darts.genotype import GenotypeError
from spatialflow.cli.errors import errors_in_one_line
from spatialflow.utils.errors import ConfigError, DataError, NonFiniteError, ProcessError


@pytest.fixture
def two_processes(monkeypatch):
    """Two processes, as far as this one knows."""
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("spatialflow.cli.errors.REPORT_SECONDS", 0)


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
