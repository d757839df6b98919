"""Memory of a model on the CPU, counted tensor by tensor as a GPU's allocator would.

The resident size of a process would not do, since malloc keeps what was freed.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

MIB = 2**20


class SavedTensors:
    """Counts the memory of tensors that autograd saves for the backward pass."""

    def __init__(self, model: nn.Module) -> None:
        """Prepare to count.

        Args:
            model: Its parameters and buffers are not counted.
        """
        self._own = {x.untyped_storage().data_ptr() for x in model.state_dict().values()}
        self._sizes: dict[int, int] = {}

    @property
    def mib(self) -> float:
        """Memory that was saved so far, in MiB. A storage that is saved twice counts once."""
        return sum(self._sizes.values()) / MIB

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is saved inside of the block.

        Keep the outputs alive until the block ends: freed addresses are used again.
        """
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor):
            yield


def peak_mib(work: Callable[[], Any]) -> float:
    """Run a function and return the most MiB that it has allocated at once on the CPU.

    Memory that was allocated before does not count.
    """
    with torch.profiler.profile(profile_memory=True) as profile:
        work()
    events: list[Any] = [
        event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate((event.nbytes() for event in events), initial=0)) / MIB
