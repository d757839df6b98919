"""One optimisation step: mixed precision on any device, and accumulation of gradients."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class StepTrainer(SimpleTrainer):
    """Detectron2's ``SimpleTrainer``, with autocast and gradient accumulation.

    Detectron2's ``AMPTrainer`` needs CUDA. The heads compute their losses in float32 in any case.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        *,
        amp_dtype: torch.dtype | None = None,
        accumulation_steps: int = 1,
    ) -> None:
        """Keep what a step needs.

        Args:
            model: Gives a dict of losses in training.
            data_loader: Gives batches.
            optimizer: Of the model's parameters.
            amp_dtype: Of autocast; None for none. With float16 the loss is scaled.
            accumulation_steps: Batches whose mean gradient makes one step.
        """
        super().__init__(model, data_loader, optimizer)
        self.amp_dtype = amp_dtype
        self.accumulation_steps = accumulation_steps
        self.device_type = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(
            self.device_type, enabled=amp_dtype == torch.float16
        )

    def run_step(self) -> None:
        """Draw the step's batches, accumulate their gradients, and step the optimiser."""
        self.optimizer.zero_grad()
        losses: dict[str, Tensor] = {}
        data_time = 0.0
        for i in range(self.accumulation_steps):
            start = time.perf_counter()
            data = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            for name, value in self._backward(data, last=i == self.accumulation_steps - 1).items():
                losses[name] = losses.get(name, 0) + value
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _backward(self, data: list[dict[str, Any]], *, last: bool) -> dict[str, Tensor]:
        """Add one batch's share of the gradient; return its share of the losses."""
        waiting = isinstance(self.model, DistributedDataParallel) and not last
        with self.model.no_sync() if waiting else contextlib.nullcontext():
            with torch.autocast(
                self.device_type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None
            ):
                losses = {k: v / self.accumulation_steps for k, v in self.model(data).items()}
            total = torch.stack(list(losses.values())).sum()
            self.grad_scaler.scale(total).backward()
        return {name: value.detach() for name, value in losses.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's and the scaler's state."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
