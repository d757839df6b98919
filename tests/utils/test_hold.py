"""One run at a time in a folder."""

import errno
import os
import shutil
import threading

import pytest

from spatialflow.utils import hold as module
from spatialflow.utils.errors import ConfigError
from spatialflow.utils.hold import LOCK_FILE, held, hold


def is_free(folder):
    try:
        with held(folder, "OUTPUT_DIR") as locked:
            return locked
    except ConfigError:
        return False


def test_another_process_is_refused_and_told_of_the_first(tmp_path, other_run):
    first = other_run(tmp_path)
    expected = (
        rf"OUTPUT_DIR: '{tmp_path}' given, which other_run \(process {first.pid} on \S+, since"
    )
    for _ in range(2):  # the refused one has not freed it, either
        with pytest.raises(ConfigError, match=expected):
            hold(tmp_path, "OUTPUT_DIR")
    assert not is_free(tmp_path)
    first.communicate()
    assert is_free(tmp_path)
    assert (tmp_path / LOCK_FILE).read_text() == ""


def test_a_killed_process_holds_nothing_though_its_workers_live(tmp_path, other_run):
    first = other_run(tmp_path)
    assert not is_free(tmp_path)
    first.kill()
    first.wait()
    os.kill(first.worker, 0)
    assert is_free(tmp_path)


def test_a_process_holds_a_folder_as_long_as_it_needs_it(tmp_path):
    before, folder = dict(module._holds), tmp_path / "new" / "folder"
    with held(folder, "OUTPUT_DIR"), held(folder, "OUTPUT_DIR"):
        link = tmp_path / "link"
        link.symlink_to(folder)
        with held(link, "OUTPUT_DIR") as locked:
            assert locked
        assert str(os.getpid()) in (folder / LOCK_FILE).read_text()
        shutil.rmtree(folder)  # and made again: the old lock protects nothing
        with held(folder, "OUTPUT_DIR"):
            assert str(os.getpid()) in (folder / LOCK_FILE).read_text()
    assert module._holds == before


def test_two_threads_do_not_work_in_one_folder(tmp_path):
    refused = []

    def work():
        try:
            with held(tmp_path, "OUTPUT_DIR"):
                pass
        except ConfigError as error:
            refused.append(str(error))

    with held(tmp_path, "OUTPUT_DIR"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(refused) == 1
    assert "another thread of this process" in refused[0]
    work()
    assert len(refused) == 1


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, None])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, caplog, code):
    def no_locks(*_):
        raise OSError(code, os.strerror(code))

    if code is None:
        monkeypatch.setattr(module, "fcntl", None)  # Windows
    else:
        monkeypatch.setattr(module.fcntl, "lockf", no_locks)
    with held(tmp_path, "OUTPUT_DIR") as locked:
        assert not locked
    assert f"{tmp_path}: no locks here" in caplog.text
    assert caplog.text.count("a second run in this folder would not be noticed") == 1


def test_locks_that_another_machine_does_not_see_are_suspected(tmp_path, caplog):
    record = '{"program": "spatialflow train", "process": 7, "host": "elsewhere", "since": "then"}'
    (tmp_path / LOCK_FILE).write_text(record)
    with held(tmp_path, "OUTPUT_DIR") as locked:
        assert locked
    assert "spatialflow train (process 7 on elsewhere, since then) has not ended" in caplog.text
    caplog.clear()
    with held(tmp_path, "OUTPUT_DIR"):
        pass
    assert not caplog.text


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            ConfigError, match=rf"--output: '{place}' given, which is a file or lies below one"
        ):
            hold(place, "--output")
    with pytest.raises(ConfigError, match="--output: '/sys/below' given, which cannot be written"):
        hold("/sys/below", "--output")


@pytest.mark.parametrize("content", ["[]", "{", "\x00"])
def test_a_foreign_lock_file_is_no_error(tmp_path, content):
    (tmp_path / LOCK_FILE).write_text(content)
    assert is_free(tmp_path)
