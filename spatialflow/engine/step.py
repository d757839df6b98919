"""One optimisation step: mixed precision on any device, accumulated gradients, finite numbers."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spatialflow.data.loader import TrainLoader
from spatialflow.engine.non_finite import Batch, NonFiniteSteps, gradients_are_finite
from spatialflow.utils.randomness import mix_seeds, seed_generators


class StepTrainer(SimpleTrainer):
    """Detectron2's ``SimpleTrainer``, with autocast and gradient accumulation.

    Detectron2's ``AMPTrainer`` needs CUDA. The heads compute their losses in float32 in any case.
    What is random in a step (in the model, not in the data) is a function of the seed and the
    iteration, so nothing of it needs to be saved.
    """

    data_loader: TrainLoader

    def __init__(
        self,
        model: nn.Module,
        data_loader: TrainLoader,
        optimizer: torch.optim.Optimizer,
        *,
        seed: int = 0,
        amp_dtype: torch.dtype | None = None,
        accumulation_steps: int = 1,
        non_finite: str = "stop",
    ) -> None:
        """Keep what a step needs.

        Args:
            model: Gives a dict of losses in training.
            data_loader: Gives batches.
            optimizer: Of the model's parameters.
            seed: Of the random generators in each step.
            amp_dtype: Of autocast; None for none. With float16 the loss is scaled.
            accumulation_steps: Batches whose mean gradient makes one step.
            non_finite: What happens where a loss or gradient is NaN or infinite: ``stop`` raises,
                ``skip`` leaves the step out and counts it.
        """
        super().__init__(model, data_loader, optimizer)
        self.seed = seed
        self.amp_dtype = amp_dtype
        self.accumulation_steps = accumulation_steps
        self.non_finite = NonFiniteSteps(non_finite)
        self._bad_images = 0.0
        self.batches: list[Batch] = []
        """Batches of the step that is being taken."""
        self.device_type = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(
            self.device_type, enabled=amp_dtype == torch.float16
        )

    def run_step(self) -> None:
        """Take one step; :class:`spatialflow.engine.Trainer` calls the halves itself.

        Raises:
            NonFiniteError: If a loss or a gradient is not finite, unless such steps are skipped.
        """
        if self.compute_gradients():
            self.after_backward()
            self.update_weights()

    def seed_step(self) -> None:
        """Seed the random numbers of this iteration's forward passes."""
        seed_generators(mix_seeds(self.seed, self.iter, comm.get_rank()))

    def compute_gradients(self) -> bool:
        """Draw the step's batches, and accumulate their gradients.

        Returns:
            False if a loss or a gradient is not finite and the step is left out.

        Raises:
            NonFiniteError: If one is not finite and such steps are not skipped.
        """
        self.seed_step()
        self.optimizer.zero_grad()
        losses: dict[str, Tensor] = {}
        self.batches = []
        data_time = 0.0
        for i in range(self.accumulation_steps):
            start = time.perf_counter()
            self.batches.append(next(self._data_loader_iter))
            data_time += time.perf_counter() - start
            last = i == self.accumulation_steps - 1
            for name, value in self._backward(self.batches[-1], last=last).items():
                losses[name] = losses.get(name, 0) + value
        if not self._is_finite(losses):
            self.optimizer.zero_grad()
            bad = [f"{name} is {v.item()}" for name, v in losses.items() if not v.isfinite()]
            self.non_finite.note(self.iter, bad, self.batches)
            self._write_counts()
            return False
        self.non_finite.note_finite()
        self._write_metrics(losses, data_time)
        self._write_counts()
        return True

    def unscale_gradients(self) -> bool:
        """Undo the loss scale of float16.

        Returns:
            False if the scale was too large for the gradients, so that the optimiser will not step.
        """
        self.grad_scaler.unscale_(self.optimizer)
        if not self.grad_scaler.is_enabled():
            return True
        weights = (p for group in self.optimizer.param_groups for p in group["params"])
        return bool(gradients_are_finite(weights))

    def update_weights(self) -> None:
        """Step the optimiser with the gradients that are there."""
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _backward(self, data: Batch, *, last: bool) -> dict[str, Tensor]:
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

    def _is_finite(self, losses: dict[str, Tensor]) -> bool:
        """Tell whether losses and gradients are finite in all processes; count bad images there.

        With a scaled loss an infinite gradient is the scaler's business, which leaves the step out
        and lowers the scale.
        """
        finite = torch.stack(list(losses.values())).isfinite().all()
        if not self.grad_scaler.is_enabled():
            finite &= gradients_are_finite(self.model.parameters())
        bad_images = float(getattr(self.data_loader, "bad_images", 0))
        counts = torch.stack([1 - finite.float(), torch.tensor(bad_images, device=finite.device)])
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(counts)
        not_finite, self._bad_images = counts.tolist()
        return not not_finite

    def _write_counts(self) -> None:
        """Log how much was left out since the start of this process, where anything was."""
        counts = {
            "skipped_steps": self.non_finite.skipped,
            "bad_images": self._bad_images,
        }
        get_event_storage().put_scalars(
            smoothing_hint=False, **{name: count for name, count in counts.items() if count}
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state of optimiser, scaler and data."""
        return {
            **super().state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "data": self.data_loader.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        self.data_loader.load_state_dict(state_dict["data"])
        self._data_loader_iter_obj = None
