#!/usr/bin/env python
"""End while a thread still computes with tensors, as threads of gloo may do.

    python tests/engine/ending.py --num-gpus 2 done|wrong|late|killed

A thread that asks for Python's lock while the interpreter is finalised aborts the process.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import threading
import time

import torch
from detectron2.utils import comm

from spatialflow.cli.errors import REPORT_SECONDS
from spatialflow.cli.launch import Work, run
from spatialflow.utils.errors import DataError
from spatialflow_cli.commands import add_run_arguments


def compute() -> None:
    """Release Python's lock and take it again, forever."""
    tensor = torch.ones(1_000_000)
    while True:
        tensor.sum()


def prepare(args: argparse.Namespace) -> Work:
    """Return work that leaves such a thread behind."""
    return functools.partial(work, *args.opts)


def work(end: str) -> None:
    """Start the thread, then end.

    Args:
        end: ``done`` to return, ``wrong`` to report a mistake, ``late`` to meet it when process 1
            is about to report it, ``killed`` to kill process 1.
    """
    threading.Thread(target=compute, daemon=True).start()
    if end == "late" and comm.get_rank() == 0:
        time.sleep(REPORT_SECONDS)
    if end in ("wrong", "late"):
        raise DataError("000001.png: broken")
    if end == "killed" and comm.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    run(prepare, parser.parse_args())
