#!/usr/bin/env python
"""End while a thread is still at work on tensors, as gloo's threads may be.

    python tests/engine/ending.py done|wrong --num-gpus 2

A thread that wants Python's lock while the interpreter is being taken down aborts the process.
"""

from __future__ import annotations

import argparse
import functools
import threading

import torch
from detectron2.engine import default_argument_parser

from spatialflow.cli.launch import Work, run
from spatialflow.utils.errors import DataError


def compute() -> None:
    """Let Python's lock go and take it again, without end."""
    tensor = torch.ones(1_000_000)
    while True:
        tensor.sum()


def prepare(args: argparse.Namespace) -> Work:
    """Return work that leaves such a thread behind."""
    return functools.partial(work, args.opts == ["wrong"])


def work(wrong: bool) -> None:
    """Start the thread, and be done or find a mistake."""
    threading.Thread(target=compute, daemon=True).start()
    if wrong:
        raise DataError("000001.png: broken")


if __name__ == "__main__":
    run(prepare, default_argument_parser(__doc__).parse_args())
