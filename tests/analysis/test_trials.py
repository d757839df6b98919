"""Which commit a result names, and programs in processes of their own."""

import logging
import re

import pytest

from spatialflow.analysis import trials
from spatialflow.utils.signals import Stopped


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(
        "import os, sys; sys.exit(int(sys.argv[1]) + int(os.environ['OMP_NUM_THREADS']))"
    )
    return path


def test_a_program_in_a_process_of_its_own(script, caplog):
    with caplog.at_level(logging.INFO):
        trials.run_in_subprocess("a run", [script, -7], threads=7)
    assert re.search(r"a run: \d+ s", caplog.text)
    with pytest.raises(ValueError, match="a run: the run ended with status 3"):
        trials.run_in_subprocess("a run", [script, -4], threads=7)


def test_a_signal_is_passed_on_to_the_program_which_ends_first(tmp_path):
    code = (
        "import os, pathlib, signal, sys, time\n"
        "def end(*_):\n"
        "    time.sleep(0.5)\n"
        "    pathlib.Path(sys.argv[1]).touch()\n"
        "    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "signal.pause()\n"
    )
    with pytest.raises(Stopped, match="^stopped by SIGTERM; the same command goes on$"):
        trials.run_in_subprocess("a run", ["-c", code, tmp_path / "ended"])
    assert (tmp_path / "ended").exists()


def test_a_commit_is_that_of_the_repository_that_holds_the_package(tmp_path, monkeypatch):
    commit = trials.commit()
    assert commit is None or len(commit) == 40
    git = ["git", "-C", str(tmp_path)]
    for words in (["init", "--quiet"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit"]):
        extra = ["--quiet", "--allow-empty", "-m", "first"] if words[-1] == "commit" else []
        trials.subprocess.run([*git, *words, *extra], check=True)
    monkeypatch.setattr(trials, "REPOSITORY", tmp_path)
    assert len(trials.commit()) == 40
    # A package in a virtual environment inside of a repository.
    installed = tmp_path / ".venv" / "lib"
    installed.mkdir(parents=True)
    monkeypatch.setattr(trials, "REPOSITORY", installed)
    assert trials.commit() is None
