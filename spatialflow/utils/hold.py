"""Hold a folder by a lock, so that no other run writes into it at the same time.

The lock is one of POSIX (``fcntl``) on the file ``.lock`` in the folder. The system frees it when
the process ends, in whatever way; processes that it has forked, such as the workers of a loader, do
not keep it; and network file systems have it. The file says who holds the folder. It stays in the
folder and means nothing without the lock. This process must not open it elsewhere: to close it
there would free the lock.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from spatialflow.utils.errors import ConfigError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
ADVICE = "wait until it has ended, or give another folder"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
"""Codes of an error on a file system without locks."""
UNNOTICED = "a second run in this folder would not be noticed"


@dataclass
class _Hold:
    """A folder that this process holds.

    Attributes:
        descriptor: The open file with the lock; None where the file system has no locks.
        remark: Line for the log; "" for none.
        process: Id of this process, which a forked one does not have.
        users: Number of callers that need the folder.
        work: Lock of the thread that works in the folder.
    """

    descriptor: int | None
    remark: str = ""
    process: int = field(default_factory=os.getpid)
    users: int = 0
    work: threading.RLock = field(default_factory=threading.RLock)


_holds: dict[str, _Hold] = {}
_changing = threading.Lock()


def hold(folder: str | os.PathLike[str], key: str, *, advice: str = ADVICE) -> str:
    """Hold a folder until this process ends, and make it if it is missing.

    This process may hold it again, as a run that follows another one does.

    Args:
        folder: Folder to hold.
        key: Config key or argument that names the folder, for messages.
        advice: What a user can do if another process holds the folder.

    Returns:
        A line for the log where the lock does not protect; "" where it does.

    Raises:
        ConfigError: If another process holds the folder, or it cannot be written.
    """
    return _take(folder, key, advice).remark


@contextlib.contextmanager
def held(folder: str | os.PathLike[str], key: str, *, advice: str = ADVICE) -> Iterator[bool]:
    """Hold a folder for the work inside, which no other thread of this process may do there.

    Args:
        folder: Folder to hold; it is made if it is missing.
        key: Config key or argument that names the folder, for messages.
        advice: What a user can do if the folder is in use.

    Yields:
        Whether the lock keeps other processes out; if not, the log says so.

    Raises:
        ConfigError: If another process or another thread uses the folder, or it cannot be written.
    """
    taken = _take(folder, key, advice)
    try:
        if not taken.work.acquire(blocking=False):
            raise ConfigError(_refusal(folder, key, "another thread of this process", advice))
        try:
            if taken.users == 1 and taken.remark:
                logger.warning("%s", taken.remark)
            yield taken.descriptor is not None
        finally:
            taken.work.release()
    finally:
        _give_back(taken)


def _take(folder: str | os.PathLike[str], key: str, advice: str) -> _Hold:
    path = os.path.realpath(folder)
    with _changing:
        known = _holds.get(path)
        if known is None or not _still_holds(known, path):
            known = _holds[path] = _lock(Path(path), folder, key, advice)
        known.users += 1
        return known


def _give_back(taken: _Hold) -> None:
    with _changing:
        taken.users -= 1
        if not taken.users:
            _clear(taken)
            for path in [path for path, known in _holds.items() if known is taken]:
                del _holds[path]
            if taken.descriptor is not None:
                os.close(taken.descriptor)


def _still_holds(known: _Hold, path: str) -> bool:
    """Return whether a hold is of this process and of the folder that is there now."""
    if known.process != os.getpid():
        return False
    if known.descriptor is None:
        return True
    try:
        return os.path.samestat(os.fstat(known.descriptor), os.stat(Path(path, LOCK_FILE)))
    except OSError:
        return False


def _lock(path: Path, folder: str | os.PathLike[str], key: str, advice: str) -> _Hold:
    given = f"{key}: {os.fspath(folder)!r} given"
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(
            f"{given}, which is a file or lies below one; a folder expected"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{given}, which cannot be written: {error.strerror}; another folder expected"
        ) from error
    try:
        _lock_file(descriptor)
        before = _read(descriptor)
        _write(descriptor)
    except OSError as error:
        if error.errno in NO_LOCKS:
            os.close(descriptor)
            return _Hold(None, f"{path}: no locks here ({error.strerror}): {UNNOTICED}")
        holder = _read(descriptor)
        os.close(descriptor)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise ConfigError(_refusal(folder, key, _described(holder), advice)) from error
        raise OSError(error.errno, error.strerror, str(path / LOCK_FILE)) from error
    remark = ""
    if before and before.get("host") != socket.gethostname():
        remark = (
            f"{path}: {_described(before)} has not ended in order; if it still runs, the file "
            f"system shares no locks between machines: {UNNOTICED}"
        )
    return _Hold(descriptor, remark)


def _lock_file(descriptor: int) -> None:
    if fcntl is None:
        raise OSError(errno.ENOSYS, "no fcntl in this Python")
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _write(descriptor: int) -> None:
    """Write who holds the folder."""
    holder = {
        "program": Path(sys.argv[0]).name,
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode() + b"\n", 0)


def _read(descriptor: int) -> dict[str, Any]:
    """Return who holds the folder, or held it and was killed; empty if the file does not say."""
    try:
        content = json.loads(os.pread(descriptor, 10_000, 0))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _described(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    return "{} (process {} on {}, since {})".format(
        *(holder.get(key, "?") for key in ("program", "process", "host", "since"))
    )


def _refusal(folder: str | os.PathLike[str], key: str, holder: str, advice: str) -> str:
    return f"{key}: {os.fspath(folder)!r} given, which {holder} uses; {advice}"


def _clear(taken: _Hold) -> None:
    """Empty the file: what is left in one is of a process that was killed."""
    if taken.descriptor is not None and taken.process == os.getpid():
        with contextlib.suppress(OSError):
            os.ftruncate(taken.descriptor, 0)


@atexit.register
def _clear_all() -> None:
    for taken in _holds.values():
        _clear(taken)
