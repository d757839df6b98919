"""End a training by a signal: after its step, with a checkpoint from which it can go on."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from spatialflow.engine.checkpoint import Checkpointer
from spatialflow.utils.signals import Stopped, StopSignals

logger = logging.getLogger(__name__)

SAVING_SECONDS = 60
"""Time that the main process has for its checkpoint after a signal in an evaluation."""


class StopHook(HookBase):
    """Ends a training after a step if a signal has asked one of its processes for it.

    Attributes:
        done: Last iteration that was finished; None before the first.
    """

    def __init__(self, signals: StopSignals) -> None:
        """Keep the signals.

        Args:
            signals: The signals of this process.
        """
        self.signals = signals
        self.done: int | None = None

    def after_step(self) -> None:
        """Agree with the other processes whether to stop.

        Raises:
            Stopped: If one of them has received a signal.
        """
        self.done = self.trainer.iter
        received = self.signals.received or 0
        if comm.get_world_size() > 1:
            device = next(self.trainer.model.parameters()).device
            largest = torch.tensor(received, device=device)
            torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
            received = int(largest)
        if received:
            raise Stopped(received, between_steps=True, agreed=True)


def end_stopped(trainer: Any, stop: Stopped) -> Stopped:
    """Write a checkpoint from which the training can go on, and return how to go on.

    Args:
        trainer: A :class:`~spatialflow.engine.trainer.Trainer` with a :class:`StopHook`.
        stop: What has stopped it.
    """
    checkpointer = trainer.checkpointer
    hook = next(hook for hook in trainer._hooks if isinstance(hook, StopHook))
    done = trainer.start_iter if hook.done is None else hook.done + 1
    # Before the first step there is nothing to keep, and after the last one it is kept.
    saves = stop.between_steps and hook.done is not None and done < trainer.max_iter
    name = f"model_{hook.done or 0:07d}"
    if saves:
        hook.signals.ignore()
        checkpointer.save(name, iteration=hook.done)
    # What started the processes ends all when the first one ends.
    if stop.agreed:
        comm.synchronize()
    elif saves and not comm.is_main_process():
        await_checkpoint(checkpointer, f"{name}.pth")
    last = "there is no checkpoint"
    if checkpointer.has_checkpoint():
        last = f"--resume goes on from {checkpointer.get_checkpoint_file()}"
    message = f"stopped by {stop.name} after iteration {done} of {trainer.max_iter}; {last}"
    logger.debug("%s", message)
    return Stopped(stop.signum, message)


def await_checkpoint(checkpointer: Checkpointer, name: str) -> None:
    """Wait until the main process has saved, with a limit: it may have got no signal yet."""
    for _ in range(SAVING_SECONDS):
        time.sleep(1.0)  # also after the checkpoint, for the main process's last line
        last = checkpointer.has_checkpoint() and checkpointer.get_checkpoint_file()
        if last and Path(last).name == name:
            return
