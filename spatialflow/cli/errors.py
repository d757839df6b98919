"""End a program with one line for a user's mistake, and with a stack trace for a bug.

Bad data, broken weights, a full disk, too little memory, a signal and numbers that are no longer
finite count as mistakes, too: the user can mend them. ``SPATIALFLOW_TRACEBACK=1`` in the
environment prints their stack traces.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import multiprocessing
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist
from detectron2.utils import comm

from darts.genotype import GenotypeError
from darts.space import SpaceError
from spatialflow.cli.console import divert
from spatialflow.utils.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NonFiniteError,
    ProcessError,
    is_short_of_memory,
)
from spatialflow.utils.signals import Stopped
from spatialflow.utils.text import printable

TRACEBACK_VARIABLE = "SPATIALFLOW_TRACEBACK"
USER_ERRORS = (
    ConfigError,
    GenotypeError,
    SpaceError,
    DataError,
    CheckpointError,
    NonFiniteError,
    ProcessError,
    OSError,
    ImportError,
)
"""Errors that a user can mend; any other error, also a plain ``ValueError``, is a bug."""
OWN_PACKAGES = ("spatialflow", "darts")
"""Packages in which an import that fails is a bug."""
USER_ERRNOS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE),
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN),
}
"""Codes of an ``OSError`` that a user can mend though it names no file; another one is a bug."""
CLOSED_CONSOLE = {errno.EPIPE, errno.EIO}
"""Codes of writing to a pipe or a terminal whose other end is closed."""
KILLED_WORKER = re.compile(r"DataLoader worker \(pid.*?(?=\. It is possible|$)")
"""PyTorch's message where a signal has ended a process that loads data."""
INTERRUPTED = 128 + 2
"""Exit status after Ctrl-C, as shells have it."""
LOST_PEER_MESSAGES = ("closed by peer", "reset by peer", "Broken pipe", "remote process")
"""Parts of the messages of gloo and NCCL where another process has ended."""
REPORT_SECONDS = 3.0
"""Time that other processes leave the first one of a machine to report an error, in seconds."""
LOST_PEER_SECONDS = 20.0
"""Time that a process which has lost another one leaves that one to report why, in seconds."""
MOST_LETTERS = 1000
"""Length from which a line is cut."""
_HANDLE_ERROR = logging.Handler.handleError


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Exit with status 1 and one line on the console where a user's error is raised inside.

    Those are :data:`USER_ERRORS`, short memory, and a worker or another process that was killed;
    others pass through. Detectron2's training loop does not log the stack trace of such an error
    either. Ctrl-C is one line, too, with status 130. What is printed can hold any name, and a log
    that cannot be written is an error.
    """
    training_loop = logging.getLogger("detectron2.engine.train_loop")
    wants_trace = os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0")

    def keeps_trace(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return wants_trace or error is None or _describe(error) is None

    training_loop.addFilter(keeps_trace)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    handle_error = logging.Handler.handleError
    logging.Handler.handleError = _raise_error_of_log  # type: ignore[method-assign,assignment]
    try:
        yield
        sys.stdout.flush()
    except Stopped as stop:
        # All processes stop alike, with the exit status of a shell: 130 or 143.
        if comm.is_main_process():
            sys.stderr.write(f"{program_name()}: {stop}\n")
        sys.exit(stop.status)
    except KeyboardInterrupt:
        if wants_trace:
            traceback.print_exc()
        # The terminal interrupts all processes; that which has started the others reports.
        if multiprocessing.parent_process() is None and not _is_further_process():
            print(f"{program_name()}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        line = _describe(error)
        if line is None:
            raise
        if wants_trace:
            traceback.print_exc()
        # All processes meet most mistakes. One of each machine reports, the first if it can.
        patience = REPORT_SECONDS if _is_further_process() else 0.0
        if not _is_to_report(LOST_PEER_SECONDS if _has_lost_a_peer(error) else patience):
            sys.exit(1)
        try:
            sys.stdout.flush()
        except OSError:
            divert(sys.stdout)
        sys.exit(f"{program_name()}: {line}")
    finally:
        logging.Handler.handleError = handle_error  # type: ignore[method-assign]
        training_loop.removeFilter(keeps_trace)


def _is_further_process() -> bool:
    """Return whether this is not the first process of its machine."""
    return comm.get_local_rank() != 0 or os.environ.get("LOCAL_RANK", "0") != "0"


def _is_to_report(patience: float) -> bool:
    """Return whether no other process of this machine has reported its error.

    The processes count in the store in which they have met. Where it is gone, each one reports.

    Args:
        patience: Time that this process leaves the others to report, in seconds.
    """
    if not dist.is_initialized():
        time.sleep(patience)
        return True
    reported = f"reported on {socket.gethostname()}"
    end = time.monotonic() + patience
    try:
        store = dist.distributed_c10d._get_default_store()
        while time.monotonic() < end and not store.check([reported]):
            time.sleep(0.1)
        if store.add(reported, 1) == 1:
            return True
    except (RuntimeError, ValueError, AttributeError):  # also of a PyTorch without this function
        return True
    time.sleep(1.0)  # What started the processes ends the other one when this one ends.
    return False


def _raise_error_of_log(handler: logging.Handler, record: logging.LogRecord) -> None:
    """Raise what went wrong while a line was logged; Python would print a stack trace and go on.

    A line that the stream cannot hold, such as a name of bytes that are not UTF-8, gets escapes.
    """
    error = sys.exc_info()[1]
    stream = getattr(handler, "stream", None)
    if isinstance(error, UnicodeEncodeError):
        record.msg, record.args = ascii(record.getMessage())[1:-1], None
        handler.emit(record)
    elif isinstance(error, OSError):
        divert(stream)
        # An evaluator may redirect the console for a while.
        consoles = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
        if stream in consoles and error.errno in CLOSED_CONSOLE:
            return  # the work goes on, and its log is in a file
        name = "standard output" if stream is sys.stdout else str(getattr(stream, "name", "log"))
        raise OSError(error.errno, error.strerror, name) from error
    else:
        _HANDLE_ERROR(handler, record)


def program_name() -> str:
    """Return the name of a script, or of a command such as ``spatialflow train``."""
    return Path(sys.argv[0]).name


def _describe(error: BaseException) -> str | None:
    """Return an error that a user can mend as one line, None for a bug."""
    text = _reason(error)
    if text is None:
        return None
    line = printable(" ".join(text.split()))
    return line if len(line) <= MOST_LETTERS else f"{line[:MOST_LETTERS]} …"


def _reason(error: BaseException) -> str | None:
    """Return what a user can mend, in the words of the error or in clearer ones."""
    text = str(error)
    killed = KILLED_WORKER.search(text) if isinstance(error, RuntimeError) else None
    if _has_lost_a_peer(error):
        return f"another process has ended: {text}"
    if killed:
        return (
            f"{killed[0]}; fewer of DATALOADER.NUM_WORKERS, 0 for none, more memory, or more of "
            "/dev/shm expected"
        )
    if is_short_of_memory(error):
        return (
            f"out of memory: {text or type(error).__name__}; a lower SOLVER.IMS_PER_BATCH, smaller "
            "images (INPUT), a smaller model or more memory expected"
        )
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError):
        return f"--dist-url: the processes cannot meet: {text}"
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        return f"{error.object}: a name of bytes that are not UTF-8; another one expected"
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] in OWN_PACKAGES:
        return None
    if isinstance(error, OSError):
        return _reason_of_system(error)
    return text if isinstance(error, USER_ERRORS) else None


def _reason_of_system(error: OSError) -> str | None:
    """Return the file and the reason of an error of the operating system, None for a bug."""
    if isinstance(error.filename, str | bytes | os.PathLike) and error.filename:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, BrokenPipeError):
        return f"standard output: {error.strerror}"
    return str(error) if error.errno in USER_ERRNOS else None


def _has_lost_a_peer(error: BaseException) -> bool:
    """Return whether a collective failed because another process has ended."""
    return (
        isinstance(error, RuntimeError)
        and dist.is_initialized()
        and dist.get_world_size() > 1
        and any(message in str(error) for message in LOST_PEER_MESSAGES)
    )
