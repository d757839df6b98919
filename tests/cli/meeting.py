#!/usr/bin/env python
"""Wait until another run does the same, so that two runs are certain to be alive at once.

python tests/cli/meeting.py --num-gpus 2 FOLDER first & ... FOLDER second
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path

from spatialflow.cli.launch import Work, run
from spatialflow_cli.commands import add_run_arguments

SECONDS = 120


def prepare(args: argparse.Namespace) -> Work:
    """Return work that waits for the other run."""
    return functools.partial(meet, Path(args.opts[0]), args.opts[1])


def meet(folder: Path, name: str) -> None:
    """Write a file, and wait for that of the other run.

    Raises:
        TimeoutError: If the other run does not come.
    """
    (folder / name).touch()
    end = time.monotonic() + SECONDS
    while len(list(folder.iterdir())) < 2:
        if time.monotonic() > end:
            raise TimeoutError(f"{name} is alone")
        time.sleep(0.05)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    run(prepare, parser.parse_args())
