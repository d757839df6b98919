"""Whatever a user gets wrong ends in one line: many inputs by kind, a part of them each time."""

import logging
import signal
from collections import Counter

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from spatialflow.cli.errors import errors_in_one_line
from spatialflow.data import unregister
from tests.cli import wrong_inputs

KINDS = {
    # Kind: its generator, the fixtures that it takes, and of how many inputs one is in the suite.
    "options": (wrong_inputs.options, ("scenes_root",), 40),
    "options of a search": (wrong_inputs.search_options, (), 20),
    "config files": (wrong_inputs.config_files, ("tmp_path",), 1),
    "paths": (wrong_inputs.paths, ("tmp_path",), 8),
    "variables": (wrong_inputs.variables, ("monkeypatch",), 1),
    "genotypes": (wrong_inputs.genotypes, ("tmp_path",), 4),
    "JSON files": (wrong_inputs.json_files, ("tmp_path",), 1),
    "command lines": (wrong_inputs.command_lines, (), 1),
}
SECONDS = 60
"""Time from which an input counts as one that never ends."""


class NoEndError(Exception):
    """An input takes too long."""


def end_of(attempt, capsys):
    """Return the line in which an attempt ends, "" where it does what it is asked for."""
    try:
        with errors_in_one_line():
            attempt()
    except SystemExit as end:
        if isinstance(end.code, str):
            return end.code
        return capsys.readouterr().err.removesuffix("\n")
    return ""


def problem_of(attempt, capsys):
    """Return what is wrong with the end of an attempt, "" if nothing is."""
    try:
        line = end_of(attempt, capsys)
    except Exception as bug:
        return f"{type(bug).__name__}: {str(bug)[:200]!r}"
    if line and not (line.isprintable() and ": " in line and len(line) < 1100):
        return f"not one clear line: {line[:200]!r}"
    return ""


def try_all(attempts, every, capsys, caplog, record):
    """Try one of `every` inputs, and fail with a list of the wrong ends."""

    def stop(*_):
        raise NoEndError

    before, wrong, ends = set(DatasetCatalog) | set(MetadataCatalog), [], Counter()
    handler = signal.signal(signal.SIGALRM, stop)
    try:
        for i, (name, attempt) in enumerate(attempts):
            if i % every:
                continue
            signal.alarm(SECONDS)
            problem = problem_of(attempt, capsys)
            signal.alarm(0)
            ends["tried"] += 1
            if problem:
                wrong.append(f"{name!r}: {problem}")
            if len(caplog.records) > 1000:
                caplog.clear()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        for name in (set(DatasetCatalog) | set(MetadataCatalog)) - before:
            unregister(name)
    record("inputs", ends["tried"])
    with capsys.disabled():
        print(f" {ends['tried']} inputs", end="")
    assert not wrong, "\n".join([f"{len(wrong)} of {ends['tried']}:", *wrong[:100]])


@pytest.fixture
def run_kind(request, monkeypatch, tmp_path, capsys, caplog, record_property):
    monkeypatch.setenv("SPATIALFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.ERROR)

    def run(kind, *, all_of_them):
        generate, fixtures, every = KINDS[kind]
        attempts = generate(*map(request.getfixturevalue, fixtures))
        try_all(attempts, 1 if all_of_them else every, capsys, caplog, record_property)

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_input_ends_in_one_line(run_kind, kind):
    run_kind(kind, all_of_them=False)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
def test_every_wrong_input_ends_in_one_line(run_kind, kind):
    run_kind(kind, all_of_them=True)
