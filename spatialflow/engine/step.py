"""One step of the weights: mixed precision, gradient accumulation, a check for finite numbers."""

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
from spatialflow.utils.errors import CheckpointError
from spatialflow.utils.randomness import mix_seeds, seed_generators


class StepTrainer(SimpleTrainer):
    """Detectron2's ``SimpleTrainer``, with autocast on any device and gradient accumulation.

    Detectron2's ``AMPTrainer`` needs CUDA. The heads compute their losses in float32 with and
    without autocast. The random numbers of the model in a step are a function of seed, iteration
    and process, so a checkpoint needs no state of a random generator.

    ``SimpleTrainer.run_step`` is split in two, so that a trainer can call hooks between them:
    :meth:`compute_gradients` and :meth:`update_weights`.

    Attributes:
        batches: Batches of the current step, one for each accumulation.
        grad_scaler: Scaler of the loss; it acts with float16 only.
        non_finite: Policy and counters for steps that are not finite.
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
        """Keep the parts of a step.

        Args:
            model: Model that returns a dict of losses in training.
            data_loader: Loader of training batches; its state is saved with the trainer's.
            optimizer: Optimiser of the model's parameters.
            seed: Seed from which the random numbers of every step are derived.
            amp_dtype: Data type of autocast; None for full precision. With float16 the loss is
                scaled.
            accumulation_steps: Number of batches whose mean gradient makes one step.
            non_finite: Policy for a loss or a gradient that is NaN or infinite: ``stop`` raises an
                error, ``skip`` leaves the step out and counts it.
        """
        super().__init__(model, data_loader, optimizer)
        self.seed = seed
        self.amp_dtype = amp_dtype
        self.accumulation_steps = accumulation_steps
        self.non_finite = NonFiniteSteps(non_finite)
        self._bad_images = 0.0
        self.batches: list[Batch] = []
        self.device_type = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(
            self.device_type, enabled=amp_dtype == torch.float16
        )

    def run_step(self) -> None:
        """Take one step without the hooks of an outer trainer, as ``SimpleTrainer.run_step`` does.

        :meth:`spatialflow.engine.Trainer.run_step` calls both parts itself.

        Raises:
            NonFiniteError: If a loss or a gradient is not finite and the policy is ``stop``.
        """
        if self.compute_gradients():
            self.after_backward()
            self.update_weights()

    def seed_step(self) -> None:
        """Seed the random generators for the forward passes of this iteration.

        A second call repeats the numbers, for another pass that must make the same random choices.
        """
        seed_generators(mix_seeds(self.seed, self.iter, comm.get_rank()))

    def compute_gradients(self) -> bool:
        """Read the batches of a step, and accumulate their mean gradient in the parameters.

        This is ``SimpleTrainer.run_step`` up to ``loss.backward()``; the losses are logged, too.
        With float16, gradients are still multiplied by the loss scale.

        Returns:
            True if the optimiser may use the gradients; False if a loss or a gradient is not finite
            and the policy is ``skip``. The gradients are cleared then.

        Raises:
            NonFiniteError: If a loss or a gradient is not finite and the policy is ``stop``.
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
        """Divide the gradients by the loss scale of float16, for a reader between the two parts.

        At most one call in a step; :meth:`update_weights` does not divide them again.

        Returns:
            False if the scaled gradients overflowed, so that :meth:`update_weights` will skip the
            optimiser's step and lower the scale; True otherwise, and always without float16.
        """
        self.grad_scaler.unscale_(self.optimizer)
        if not self.grad_scaler.is_enabled():
            return True
        weights = (p for group in self.optimizer.param_groups for p in group["params"])
        return bool(gradients_are_finite(weights))

    def update_weights(self) -> None:
        """Step the optimiser with the parameters' gradients, and update the loss scale."""
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _backward(self, data: Batch, *, last: bool) -> dict[str, Tensor]:
        """Add one batch's share of the mean gradient, and return its share of the mean losses.

        Args:
            data: One batch.
            last: Whether this is the last batch of the step; gradients are averaged over processes
                at the last one only.
        """
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
        """Return whether losses and gradients are finite in all processes.

        The same exchange sums the numbers of bad images, for the log. With float16, gradients are
        not checked here: the scaler skips a step with an infinite one and lowers the scale.
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
        """Log the numbers of skipped steps and bad images since the start, unless they are 0."""
        counts = {
            "skipped_steps": self.non_finite.skipped,
            "bad_images": self._bad_images,
        }
        get_event_storage().put_scalars(
            smoothing_hint=False, **{name: count for name, count in counts.items() if count}
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state of optimiser, loss scaler and data loader, for a checkpoint."""
        return {
            **super().state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "data": self.data_loader.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, torch.Tensor) and value.shape not in (parameter.shape, ()):
                    raise CheckpointError(
                        f"{name} of the optimiser is {tuple(value.shape)}, and its parameter "
                        f"{tuple(parameter.shape)}; the state of the same model expected"
                    )
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        self.data_loader.load_state_dict(state_dict["data"])
        self._data_loader_iter_obj = None
