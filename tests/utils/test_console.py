"""What a console shows of a log, and of progress."""

import logging
import sys
import warnings

import pytest

from spatialflow.utils import console
from spatialflow.utils.console import LOGGERS, Console, report_progress, start_logging

OWN = logging.getLogger("spatialflow.some_module")
OTHER = logging.getLogger("detectron2.some_module")


@pytest.fixture(autouse=True)
def _loggers():
    """Loggers as they were before."""
    names = [*LOGGERS, "spatialflow.progress"]
    before = [(each, each.level, each.propagate) for each in map(logging.getLogger, names)]
    yield
    while console._added:
        logger, handler = console._added.pop()
        logger.removeHandler(handler)
    for logger, level, propagate in before:
        logger.setLevel(level)
        logger.propagate = propagate
    logging.captureWarnings(False)


def test_the_file_has_all_and_the_console_what_a_person_needs(tmp_path, capsys):
    start_logging(tmp_path / "first")
    OWN.info("data: scenes")
    OWN.debug("a detail")
    OTHER.info("a thousand lines")
    OTHER.warning("keys are missing\nkey 1\nkey 2")
    OWN.warning("twice")
    OWN.warning("twice")
    warnings.warn("torch.meshgrid: in an upcoming release, …", stacklevel=1)
    warnings.warn("the driver is too old", stacklevel=1)
    report_progress("training", 0, 2)
    report_progress("training", 2, 2, ended=True)
    shown = capsys.readouterr().out.splitlines()
    assert shown[:3] == [
        "data: scenes",
        "warning: keys are missing (2 more lines in the log)",
        "warning: twice",
    ]
    assert shown[3].startswith("warning: ")
    assert "the driver is too old" in shown[3]
    assert shown[4:] == ["training 2 of 2 (0:00:00)"]
    written = (tmp_path / "first" / "log.txt").read_text()
    for text in ("a detail", "a thousand lines", "key 2", "meshgrid", "driver", "data: scenes"):
        assert text in written
    assert "training" not in written

    start_logging(tmp_path / "second")
    OWN.info("once")
    assert capsys.readouterr().out == "once\n"
    assert "once" not in (tmp_path / "first" / "log.txt").read_text()
    assert "once" in (tmp_path / "second" / "log.txt").read_text()


def test_the_console_shows_everything_where_it_is_asked_for(tmp_path, capsys):
    start_logging(tmp_path, everything=True)
    OTHER.info("a thousand lines")
    report_progress("training", 0, 1)
    report_progress("training", 1, 1, ended=True)
    assert "a thousand lines" in capsys.readouterr().out


def test_other_processes_show_nothing(tmp_path, capsys):
    start_logging(tmp_path, rank=1)
    OWN.info("from process 1")
    report_progress("training", 1, 1)
    assert capsys.readouterr().out == ""
    assert "from process 1" in (tmp_path / "log.txt.rank1").read_text()


def test_a_program_without_this_console_sees_no_progress(caplog):
    with caplog.at_level(logging.DEBUG):
        report_progress("training", 1, 2)
    assert not caplog.records


def lines_of_work(capsys, total, seconds):
    """Return the numbers of the lines of a work whose parts take some seconds each."""
    now = [0.0]
    shown = Console(bars=False, clock=lambda: now[0])
    for done in range(total + 1):
        report(shown, done, total)
        now[0] += seconds
    return [int(line.split()[1]) for line in capsys.readouterr().out.splitlines()]


def report(shown, done, total, what="training", ended=False):
    extra = {"progress": console.Progress(what, done, total, "loss 1.5", ended)}
    shown.handle(logging.makeLogRecord({"level": console.PROGRESS, **extra}))


@pytest.mark.parametrize(
    ("total", "seconds", "lines"),
    [
        (3, 2, [1, 2, 3]),
        (10, 0.4, [1, 4, 7, 10]),
        (320, 1, [1, *range(31, 320, 30), 320]),
        (90_000, 0.001, [1, *range(9001, 90_000, 9000), 90_000]),
        (4, 100, [1, 2, 3, 4]),
        (1000, 10, [1, *range(4, 1001, 3)]),
    ],
)
def test_plain_lines_are_neither_many_nor_late(capsys, total, seconds, lines):
    """One a second at most, one in half a minute at least, about ten otherwise."""
    assert lines_of_work(capsys, total, seconds) == lines


def test_a_line_of_progress_has_what_is_left(capsys):
    now = [0.0]
    shown = Console(bars=False, clock=lambda: now[0])
    report(shown, 100, 200)  # a resumed training
    now[0] = 60.0
    report(shown, 120, 200)
    assert (
        capsys.readouterr().out == "training 120 of 200: loss 1.5 (0:01:00, about 0:04:00 left)\n"
    )


def test_a_terminal_gets_bars(capsys):
    shown = Console(bars=True)
    report(shown, 0, 2)
    report(shown, 1, 2)
    report(shown, 0, 3, what="evaluation")
    report(shown, 3, 3, what="evaluation", ended=True)
    report(shown, 2, 2, ended=True)
    written = capsys.readouterr()
    assert written.out == ""
    assert "2/2" in written.err
    assert "loss 1.5" in written.err
    assert written.err.endswith("\n")
    assert not shown._bars


def test_a_console_of_few_letters_gets_escapes(monkeypatch, tmp_path):
    with open(tmp_path / "console", "w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        Console(bars=False).handle(
            logging.makeLogRecord(
                {"name": "spatialflow", "levelno": logging.INFO, "msg": "Zellkerne: é"}
            )
        )
    assert (tmp_path / "console").read_text() == "Zellkerne: \\xe9\n"
