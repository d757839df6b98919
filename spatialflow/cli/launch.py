"""What every command-line program of the project does around its work.

A user's mistake, bad data, broken weights, a full disk and numbers that are no longer finite are
one line on the console and exit status 1. Anything else is a bug and keeps its stack trace.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import errno
import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from spatialflow.utils.errors import CheckpointError, DataError, NonFiniteError

Work = Callable[[], Any]

# What can be wrong with an environment or an argument while things are being set up.
PREPARING = (ValueError, OSError, ImportError, NonFiniteError)
# While work is under way any other ValueError is a bug.
WORKING = (CheckpointError, DataError, NonFiniteError, OSError)
# Of the system's errors, those that are not bugs either.
MENDABLE = {
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
# What gloo and NCCL say where another process has ended.
PEER_IS_LOST = ("closed by peer", "reset by peer", "Broken pipe", "remote process")
# How long other processes wait for the main one to report what they all have seen.
TURN_SECONDS = 3.0


def run(prepare: Callable[[argparse.Namespace], Work], args: argparse.Namespace) -> None:
    """Run a program, in one process or in several.

    Args:
        prepare: From arguments to the work that is to be done. Importable by name, since the
            processes are started afresh.
        args: From Detectron2's ``default_argument_parser``.
    """
    several = args.num_gpus * args.num_machines > 1
    try:
        launch(
            functools.partial(_run_one_of_several if several else _run_one, prepare),
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except ProcessExitedException as error:
        # The process has said why.
        sys.exit(error.exit_code or 1)


def _run_one(prepare: Callable[[argparse.Namespace], Work], args: argparse.Namespace) -> None:
    with one_line(PREPARING):
        work = prepare(args)
    with one_line(WORKING), _without_their_traces():
        work()


def _run_one_of_several(
    prepare: Callable[[argparse.Namespace], Work], args: argparse.Namespace
) -> NoReturn:
    """Run in a process that was started for it, and end that process.

    The interpreter is not taken down: threads of gloo hold Python's objects, and one that frees
    such an object meanwhile ends the process with an abort (pytorch/pytorch#179291). Destroying the
    group does not end them while a model in DistributedDataParallel holds it.
    """
    status = 0
    try:
        _run_one(prepare, args)
        # Together, as none may lose its peer.
        dist.barrier()
        dist.destroy_process_group()
    except SystemExit as mistake:
        status = 1
        sys.stderr.write(f"{mistake.code}\n")
    # As multiprocessing ends the processes that it forks.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextlib.contextmanager
def one_line(kinds: tuple[type[BaseException], ...]) -> Iterator[None]:
    """Leave the program with one line where an error of these kinds is raised inside."""
    try:
        yield
    except kinds as error:
        if isinstance(error, OSError) and error.errno not in MENDABLE:
            raise
        if comm.get_local_rank() != 0:
            # Most mistakes are seen by all processes: one of a machine speaks, and all are ended.
            time.sleep(TURN_SECONDS)
        sys.exit(f"{Path(sys.argv[0]).name}: {_in_one_line(error)}")
    except RuntimeError as error:
        if not _has_lost_a_peer(error):
            raise
        # The other process says why it ends, and the launcher ends this one, on its machine.
        time.sleep(2 * TURN_SECONDS)
        sys.exit(f"{Path(sys.argv[0]).name}: another process has ended: {_in_one_line(error)}")


def _has_lost_a_peer(error: BaseException) -> bool:
    several = dist.is_initialized() and dist.get_world_size() > 1
    return several and any(words in str(error) for words in PEER_IS_LOST)


def _in_one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


class _NoTraces(logging.Filter):
    """Drops records of errors that are going to be told in one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return error is None or not (isinstance(error, WORKING) or _has_lost_a_peer(error))


@contextlib.contextmanager
def _without_their_traces() -> Iterator[None]:
    """Keep Detectron2's training loop from logging the stack traces of such errors."""
    loop, traces = logging.getLogger("detectron2.engine.train_loop"), _NoTraces()
    loop.addFilter(traces)
    try:
        yield
    finally:
        loop.removeFilter(traces)
