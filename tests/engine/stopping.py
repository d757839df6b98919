#!/usr/bin/env python
"""Train in processes of which the last signals the one that has started them, after some steps.

python tests/engine/stopping.py --config-file FILE --num-gpus 2 … KEY VALUE …
"""

from __future__ import annotations

import argparse
import os
import signal

from detectron2.engine import HookBase
from detectron2.utils import comm

from spatialflow.cli.launch import Work, run
from spatialflow.engine import Trainer, setup
from spatialflow_cli.commands import add_run_arguments

ITERATION = 2


class Signal(HookBase):
    """Sends SIGTERM to the parent, in a step."""

    def before_step(self) -> None:
        """Send it in one iteration, from the last process."""
        if self.trainer.iter == ITERATION and comm.get_rank() == comm.get_world_size() - 1:
            os.kill(os.getppid(), signal.SIGTERM)


def prepare(args: argparse.Namespace) -> Work:
    """Return the training."""
    trainer = Trainer(setup(args))
    trainer.resume_or_load(resume=False)
    trainer.register_hooks([Signal()])
    return trainer.train


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    add_run_arguments(parser)
    run(prepare, parser.parse_args())
