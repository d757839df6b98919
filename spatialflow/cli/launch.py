"""Run a program in one process, in several of one machine, or in those that torchrun started."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import functools
import logging
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch.distributed.elastic.multiprocessing.errors import record
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from spatialflow.cli.errors import errors_in_one_line, program_name
from spatialflow.utils.errors import ConfigError
from spatialflow.utils.signals import SAME_SECONDS, Stopped, StopSignals, signals_for_children

ADDRESS = re.compile(r"tcp://[^/?#\s]+:\d{1,5}|file:///.+")
"""Addresses where processes can meet."""

Work = Callable[[], Any]
Prepare = Callable[[argparse.Namespace], Work]

TORCHRUN_VARIABLES = {
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
}
"""Environment variables that ``torchrun`` sets for each process that it starts."""
JIT_WARNINGS = "ignore::FutureWarning:torch.jit._script"
CANNOT_MEET = re.compile(r"^torch\.distributed\.Dist(?:Network|Store)Error: (.+)", re.MULTILINE)
"""The line of a stack trace by which a process says that it does not meet the others."""


def run(prepare: Prepare, args: argparse.Namespace) -> None:
    """Run a program in one process or in several, and exit with status 1 where it fails.

    Processes are those that ``torchrun`` has started, else those that Detectron2's ``launch``
    starts for ``--num-gpus`` and ``--num-machines``.

    Args:
        prepare: Function from arguments to the work. It must be importable by name, since each
            process imports it afresh.
        args: Arguments of :func:`spatialflow_cli.commands.add_run_arguments`.
    """
    torchrun = os.environ.keys() >= TORCHRUN_VARIABLES
    with errors_in_one_line():
        _check_processes(args, torchrun=torchrun)
    if torchrun:
        with errors_in_one_line():
            _join_torchrun()
        _run_and_exit(prepare, args)
    if args.num_gpus * args.num_machines == 1:
        _run(prepare, args)
        return
    with errors_in_one_line():
        try:
            _launch(prepare, args)
        except ProcessExitedException as error:
            # A process that exits has reported why; one that a signal ends could not.
            sys.exit(f"{program_name()}: {error}" if error.exit_code < 0 else error.exit_code)
        except ProcessRaisedException as error:
            # Detectron2 sets up the process group before the work; all else reports by itself.
            unmet = CANNOT_MEET.search(str(error))
            if unmet is None:
                raise
            raise ConfigError(
                f"--dist-url {args.dist_url}: the processes cannot meet there: {unmet[1]}"
            ) from error


def _launch(prepare: Prepare, args: argparse.Namespace) -> None:
    """Start the processes of this machine, and wait for them.

    Those of one machine meet in a file. A free port, which Detectron2's ``launch`` would look for,
    can be taken by another run before the processes listen on it.
    """
    with (
        tempfile.TemporaryDirectory(prefix="spatialflow-") as folder,
        _quiet_imports(),
        signals_for_children() as passed_on,
    ):
        # PyTorch warns when one process ends and it ends the others; the first one has said why.
        logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
        try:
            launch(
                functools.partial(_run_and_exit, prepare, signalled=passed_on.event),
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url or f"file://{folder}/processes",
                args=(args,),
            )
        except ProcessExitedException as error:
            if passed_on.number is None or error.exit_code > 0:
                raise
            raise Stopped(passed_on.number) from None  # before they could say so


@contextlib.contextmanager
def _quiet_imports() -> Iterator[None]:
    """Keep PyTorch's warnings of Detectron2 out of processes that start inside.

    They import Detectron2 before ``spatialflow`` can filter them. The user's own filters are kept.
    """
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (JIT_WARNINGS, before)))
    try:
        yield
    finally:
        os.environ.pop("PYTHONWARNINGS")
        if before is not None:
            os.environ["PYTHONWARNINGS"] = before


def _check_processes(args: argparse.Namespace, *, torchrun: bool) -> None:
    """Check the number of processes and their address.

    Raises:
        ConfigError: Naming the argument.
    """
    if torchrun and (args.num_gpus, args.num_machines) != (1, 1):
        raise ConfigError(
            f"--num-gpus {args.num_gpus}, --num-machines {args.num_machines} given, but torchrun "
            "has started the processes; leave both out"
        )
    try:
        processes = int(os.environ["LOCAL_WORLD_SIZE"]) if torchrun else args.num_gpus
    except ValueError as error:
        raise ConfigError(f"LOCAL_WORLD_SIZE in the environment: {error}") from error
    gpus = torch.cuda.device_count()
    if min(args.num_gpus, args.num_machines) < 1 or not 0 <= args.machine_rank < args.num_machines:
        raise ConfigError(
            f"--num-gpus {args.num_gpus}, --num-machines {args.num_machines}, --machine-rank "
            f"{args.machine_rank} given; 1 or more, 1 or more, and a number from 0 below that of "
            "the machines expected"
        )
    if args.dist_url == "auto":  # Detectron2's word for any free address of this machine
        args.dist_url = None
    if args.dist_url and not ADDRESS.fullmatch(args.dist_url):
        raise ConfigError(f"--dist-url {args.dist_url!r} given, tcp://HOST:PORT expected")
    if processes > 1 and 0 < gpus < processes:
        name = "torchrun --nproc-per-node" if torchrun else "--num-gpus"
        raise ConfigError(f"{name}: {processes} given, but this machine has {gpus} GPU(s)")
    if args.num_machines > 1 and not args.dist_url:
        raise ConfigError(
            f"--num-machines {args.num_machines} needs --dist-url, the address of machine 0, such "
            "as tcp://10.0.0.1:29500"
        )


def _join_torchrun() -> None:
    """Set up the process groups of this process, as Detectron2's ``launch`` does in its own."""
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpu else "gloo", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))


@contextlib.contextmanager
def _silent_unless(signalled: Event | None) -> Iterator[None]:
    """Exit without a line after a SIGTERM that is no user's.

    Where one process fails, PyTorch sends it to the others.
    """
    try:
        yield
    except Stopped as stop:
        if signalled is None:
            raise
        # Nothing is left to do, and the parent may send again what has come from elsewhere.
        signal.signal(stop.signum, signal.SIG_IGN)
        if stop.signum == signal.SIGTERM and not signalled.wait(SAME_SECONDS):
            sys.exit(stop.status)
        raise


def _run(prepare: Prepare, args: argparse.Namespace, signalled: Event | None = None) -> None:
    """Prepare the work and do it in this process.

    ``record`` writes an error to the file that torchrun names, and does nothing without torchrun.
    """
    with errors_in_one_line(), _silent_unless(signalled), StopSignals():
        work = record(prepare)(args)
        assert work is not None
        record(work)()


def _run_and_exit(
    prepare: Prepare, args: argparse.Namespace, *, signalled: Event | None = None
) -> NoReturn:
    """Run as one of several processes, and end this process.

    The interpreter is not finalised: threads of gloo hold Python's objects, and one that frees such
    an object meanwhile ends the process with an abort (pytorch/pytorch#179291). Destroying the
    process group does not end them while a model in DistributedDataParallel holds it.
    """
    status = 0
    try:
        _run(prepare, args, signalled)
        with errors_in_one_line():
            dist.barrier()  # a process that ends earlier would be a lost peer to the others
            dist.destroy_process_group()
    except SystemExit as mistake:
        status = mistake.code if isinstance(mistake.code, int) else 1
        if isinstance(mistake.code, str):
            sys.stderr.write(f"{mistake.code}\n")
    # os._exit skips what the interpreter does at its end.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
