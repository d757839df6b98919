"""The hook that alternates steps of the architecture with those of the weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor

from darts.curvature import WINDOW, CurvatureWatch
from darts.learner import ArchitectureLearner, NotFiniteError
from spatialflow.data.loader import TrainLoader
from spatialflow.engine.non_finite import Batch, NonFiniteSteps
from spatialflow.engine.trainer import Trainer
from spatialflow.search.log import SearchLog
from spatialflow.search.supernet import FixedProposalBatch
from spatialflow.utils.randomness import mix_seeds, seed_generators

logger = logging.getLogger(__name__)

LOG_PERIOD = 20
"""Iterations between two lines of the log; the file has one for each of the first ones, too."""


class ArchitectureHook(HookBase):
    """Takes one step of the architecture, on held-out images, for each step of the weights.

    A first-order step comes before the weights' step (:meth:`before_step`). A second-order step
    (arXiv 1806.09055, eq. 6) needs the gradients of the weights' step, so it comes between their
    backward pass and their update (:meth:`after_backward`); the authors' code computes these
    gradients a second time instead.

    All processes do the same: gradients are averaged, and parameters are compared at each step.
    """

    trainer: Trainer

    def __init__(
        self,
        learner: ArchitectureLearner,
        loader: TrainLoader,
        *,
        seed: int,
        log: SearchLog,
        non_finite: str = "stop",
        eigenvalue_period: int = 0,
        stop_ratio: float = 0.0,
    ) -> None:
        """Keep the parts.

        Args:
            learner: Learner of the supernet's architecture.
            loader: Batches of held-out images.
            seed: Seed of the random numbers in a step.
            log: Log that a line is written to in each of the first :data:`LOG_PERIOD` iterations,
                and then once in as many.
            non_finite: What happens to a step that is not finite, as ``SOLVER.NON_FINITE``.
            eigenvalue_period: Iterations between measurements of the dominant eigenvalue; 0 for
                none.
            stop_ratio: Ratio of :class:`darts.curvature.CurvatureWatch`; 0 for never.
        """
        self.learner = learner
        self.loader = loader
        self.seed = seed
        self.log = log
        self.non_finite = NonFiniteSteps(non_finite, what="step of the architecture")
        self.eigenvalue_period = eigenvalue_period
        self.watch = CurvatureWatch(stop_ratio)
        self._eigenvalue: float | None = None
        self._batches: Iterator[Batch] | None = None
        self._learns = False
        self._differs: Tensor | None = None

    def before_step(self) -> None:
        """Take a first-order step, unless the architecture is frozen."""
        iteration = self.trainer.iter
        warmup = self.learner.settings.warmup
        if iteration == 0 and warmup:
            logger.info("the architecture is frozen until iteration %d", warmup)
        self._learns = self.learner.begin(iteration)
        if self._learns and self.learner.settings.order == 1:
            held_out = self._held_out(iteration)
            self._step(iteration, held_out)
            self._conclude(iteration, held_out)

    def after_backward(self) -> None:
        """Take a second-order step: the weights' gradients are computed, the update is not done."""
        if not self._learns or self.learner.settings.order == 1:
            return
        weights, iteration = self.trainer.step_trainer, self.trainer.iter
        held_out = self._held_out(iteration)
        # With too large a loss scale neither weights nor architecture step.
        if weights.unscale_gradients():
            # Repeat the random numbers of the pass that computed the gradients.
            weights.seed_step()
            self._step(
                iteration,
                FixedProposalBatch(held_out),
                train=FixedProposalBatch(weights.batches[0]),
                optimizer=weights.optimizer,
            )
        self._conclude(iteration, held_out)

    def _held_out(self, iteration: int) -> Batch:
        """Seed the random numbers of the architecture's step, and return its batch."""
        seed_generators(mix_seeds(self.seed, iteration, comm.get_rank(), 3))
        if self._batches is None:
            self._batches = iter(self.loader)
        return next(self._batches)

    def _step(
        self,
        iteration: int,
        held_out: Batch,
        *,
        train: Batch | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Take the learner's step, or handle one that is not finite."""
        try:
            self.learner.step(iteration, held_out, train=train, optimizer=optimizer)
            self.non_finite.note_finite()
        except NotFiniteError as error:
            self.non_finite.note(iteration, [str(error)], [held_out, train or []])
            self.trainer.storage.put_scalar(
                "skipped_architecture_steps", self.non_finite.skipped, smoothing_hint=False
            )

    def _conclude(self, iteration: int, batch: Batch) -> None:
        """Compare the processes, watch the curvature and write the log, each when it is due."""
        self._compare_processes()
        if self.eigenvalue_period and (iteration + 1) % self.eigenvalue_period == 0:
            self._watch_curvature(iteration, batch)
        done = iteration + 1
        # A short search has a course, too, which the first lines show.
        shown = done % LOG_PERIOD == 0 or done == self.trainer.max_iter
        if shown or done < LOG_PERIOD:
            self._write(iteration, shown=shown)

    def _compare_processes(self) -> None:
        """Note whether the processes' parameters differ: whether a maximum is above a minimum.

        The answer is read when the log is written, so that no step waits for a GPU.
        """
        if comm.get_world_size() == 1:
            return
        values = torch.cat([p.detach().flatten() for p in self.learner.parameters.values()])
        extremes = torch.cat([values, -values])
        torch.distributed.all_reduce(extremes, torch.distributed.ReduceOp.MAX)
        differs = (extremes != torch.cat([values, -values])).any()
        self._differs = differs if self._differs is None else self._differs | differs

    def _watch_curvature(self, iteration: int, batch: Batch) -> None:
        """Measure the dominant eigenvalue, and freeze the architecture if it grows too fast."""
        fixed = FixedProposalBatch(batch)
        eigenvalue = float(self.learner.architect.dominant_eigenvalue(fixed))
        # One number for all processes: one that froze the architecture alone would wait for ever.
        eigenvalue = comm.all_gather(eigenvalue)[0]
        if not math.isfinite(eigenvalue):
            return
        self._eigenvalue = eigenvalue
        earlier = self.watch.note(self._eigenvalue, self.learner.parameters)
        if earlier is None:
            return
        with torch.no_grad():
            for name, parameter in self.learner.parameters.items():
                parameter.copy_(earlier[name])
        self.learner.frozen = True
        logger.warning(
            "iteration %d: the dominant eigenvalue of the architecture's loss has grown to %.3g; "
            "the architecture goes back by %d measurements and is frozen from now on",
            iteration,
            self._eigenvalue,
            WINDOW,
        )

    def _write(self, iteration: int, *, shown: bool) -> None:
        """Measure the search, and log it; ``shown`` says whether on the console, too.

        Raises:
            RuntimeError: If the processes' architectures have differed since the last time.
        """
        if self._differs is not None and bool(self._differs):
            raise RuntimeError("the architecture parameters of the processes differ")
        measured = self.learner.measure()
        if self._eigenvalue is not None:
            measured["eigenvalue"] = self._eigenvalue
        self.log.write(iteration, measured, self.trainer.storage, shown=shown)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of learner, curvature and data loader, for a checkpoint."""
        return {
            "learner": self.learner.state_dict(),
            "watch": self.watch.state_dict(),
            "eigenvalue": self._eigenvalue,
            "data": self.loader.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.learner.load_state_dict(state_dict["learner"])
        self.watch.load_state_dict(state_dict["watch"])
        self._eigenvalue = state_dict["eigenvalue"]
        self.loader.load_state_dict(state_dict["data"])
        self._batches = None
