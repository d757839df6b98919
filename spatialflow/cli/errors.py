"""End a program with one line for a user's mistake, and with a stack trace for a bug.

Bad data, broken weights, a full disk and numbers that are no longer finite count as mistakes, too:
the user can mend them. ``SPATIALFLOW_TRACEBACK=1`` in the environment prints their stack traces.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist
from detectron2.utils import comm

from darts.genotype import GenotypeError
from spatialflow.utils.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NonFiniteError,
    ProcessError,
)
from spatialflow.utils.signals import Stopped

TRACEBACK_VARIABLE = "SPATIALFLOW_TRACEBACK"
USER_ERRORS = (
    ConfigError,
    GenotypeError,
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
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
}
"""Codes of an ``OSError`` that a user can mend; one with another code is a bug."""
LOST_PEER_MESSAGES = ("closed by peer", "reset by peer", "Broken pipe", "remote process")
"""Parts of the messages of gloo and NCCL where another process has ended."""
REPORT_SECONDS = 3.0
"""Time that other processes leave the first one of a machine to report an error, in seconds."""


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Exit with status 1 and one line on the console where a user's error is raised inside.

    Those are :data:`USER_ERRORS`; others pass through. Detectron2's training loop does not log the
    stack trace of such an error either. Among several processes, an error in a collective because
    another process has ended is one line, too.
    """
    training_loop = logging.getLogger("detectron2.engine.train_loop")
    wants_trace = os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0")

    def keeps_trace(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return wants_trace or error is None or _describe(error) is None

    training_loop.addFilter(keeps_trace)
    try:
        yield
    except Stopped as stop:
        # All processes stop alike, with the exit status of a shell: 130 or 143.
        if comm.is_main_process():
            sys.stderr.write(f"{program_name()}: {stop}\n")
        sys.exit(stop.status)
    except Exception as error:
        line = _describe(error)
        if line is None:
            raise
        # All processes meet most mistakes. The first one of each machine reports, and what started
        # the processes ends the others before they repeat it.
        if _has_lost_a_peer(error):
            time.sleep(2 * REPORT_SECONDS)
        elif comm.get_local_rank() != 0 or os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(REPORT_SECONDS)
        if wants_trace:
            traceback.print_exc()
        sys.exit(f"{program_name()}: {line}")
    finally:
        training_loop.removeFilter(keeps_trace)


def program_name() -> str:
    """Return the name of a script, or of a command such as ``spatialflow train``."""
    return Path(sys.argv[0]).name


def _describe(error: BaseException) -> str | None:
    """Return an error that a user can mend as one line, None for a bug."""
    text = " ".join(str(error).split())
    if _has_lost_a_peer(error):
        return f"another process has ended: {text}"
    if not isinstance(error, USER_ERRORS):
        return None
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] in OWN_PACKAGES:
        return None
    if isinstance(error, OSError):
        if error.errno not in USER_ERRNOS:
            return None
        if error.filename:
            return f"{error.filename}: {error.strerror}"
    return text


def _has_lost_a_peer(error: BaseException) -> bool:
    """Return whether a collective failed because another process has ended."""
    return (
        isinstance(error, RuntimeError)
        and dist.is_initialized()
        and dist.get_world_size() > 1
        and any(message in str(error) for message in LOST_PEER_MESSAGES)
    )
