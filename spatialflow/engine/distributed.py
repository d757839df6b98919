"""What a run does in one of several processes, on CPUs or GPUs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spatialflow.utils.errors import ProcessError


def in_main_process(work: Callable[[], object]) -> None:
    """Call a function in the main process; where it fails, all processes fail.

    Raises:
        ProcessError: In another process, if the function has raised an error.
        Exception: In the main process, what the function raises.
    """
    failure: Exception | None = None
    if comm.is_main_process():
        try:
            work()
        except Exception as error:
            failure = error
    text = "" if failure is None else " ".join(str(failure).split()) or repr(failure)
    text = comm.all_gather(text)[0]
    if failure is not None:
        raise failure
    if text:
        raise ProcessError(f"the main process has failed: {text}")


def distributed(model: nn.Module, *, unused: bool) -> nn.Module:
    """Wrap a model in ``DistributedDataParallel`` if there are several processes.

    Args:
        model: Model on a CPU or a GPU.
        unused: Whether a step may leave parameters without a gradient.
    """
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    # Newer PyTorch has another name, and warns of the old one.
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(
        model,
        device_ids=[comm.get_local_rank()] if on_gpu else None,
        find_unused_parameters=unused,
        **buffers,
    )
