"""The architecture's step, as a hook: before each step of the weights, or inside it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from darts.curvature import WINDOW, CurvatureWatch
from darts.learner import ArchitectureLearner, NotFiniteError
from darts.relaxation import choice_key
from spatialflow.data.loader import TrainLoader
from spatialflow.engine.non_finite import Batch, NonFiniteSteps
from spatialflow.engine.trainer import Trainer
from spatialflow.search.supernet import FixedProposalBatch
from spatialflow.utils.files import append_json_line
from spatialflow.utils.randomness import mix_seeds, seed_generators

logger = logging.getLogger(__name__)

LOG_PERIOD = 20
LOG_FILE = "search.jsonl"
COLLAPSED = 0.5
"""Share of edges without weights, of those that are present, that is worth a warning."""


class ArchitectureHook(HookBase):
    """Takes one step of the architecture on held-out images for each step of the weights.

    A first-order step comes before that of the weights (:meth:`before_step`). A second-order step
    looks ahead by the step that the weights are about to take, so it comes between their backward
    pass and their update (:meth:`after_backward`). DARTS computes those gradients a second time,
    after the architecture has changed.

    All processes take part alike: gradients are averaged, and parameters are compared at each step.
    """

    trainer: Trainer

    def __init__(
        self,
        learner: ArchitectureLearner,
        loader: TrainLoader,
        *,
        seed: int,
        log_file: Path,
        non_finite: str = "stop",
        eigenvalue_period: int = 0,
        stop_ratio: float = 0.0,
    ) -> None:
        """Keep the parts.

        Args:
            learner: Learner of the supernet's architecture.
            loader: Batches of held-out images.
            seed: Seed of the random numbers in a step.
            log_file: JSON lines, one for each log step.
            non_finite: What happens to a step that is not finite, as ``SOLVER.NON_FINITE``.
            eigenvalue_period: Iterations between measurements of the dominant eigenvalue; 0 for
                none.
            stop_ratio: Ratio of :class:`darts.curvature.CurvatureWatch`; 0 for never.
        """
        self.learner = learner
        self.loader = loader
        self.seed = seed
        self.log_file = log_file
        self.non_finite = NonFiniteSteps(non_finite, what="step of the architecture")
        self.eigenvalue_period = eigenvalue_period
        self.watch = CurvatureWatch(stop_ratio)
        self._eigenvalue: float | None = None
        self._batches: Iterator[Batch] | None = None
        self._learns = False
        self._differs: Tensor | None = None

    def before_step(self) -> None:
        """Take the first-order step, unless the architecture is frozen."""
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
        """Take the second-order step, with the weights' gradients and optimiser as they are now."""
        if not self._learns or self.learner.settings.order == 1:
            return
        weights, iteration = self.trainer.step_trainer, self.trainer.iter
        held_out = self._held_out(iteration)
        # With too large a loss scale neither weights nor architecture step.
        if weights.unscale_gradients():
            # The random numbers of the pass that gave the gradients are drawn again.
            weights.seed_step()
            self._step(
                iteration,
                FixedProposalBatch(held_out),
                train=FixedProposalBatch(weights.batches[0]),
                optimizer=weights.optimizer,
            )
        self._conclude(iteration, held_out)

    def _held_out(self, iteration: int) -> Batch:
        """Seed the architecture's step, and return its batch."""
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
        """Step, or leave the step out where it is not finite."""
        try:
            self.learner.step(iteration, held_out, train=train, optimizer=optimizer)
            self.non_finite.note_finite()
        except NotFiniteError as error:
            self.non_finite.note(iteration, [str(error)], [held_out, train or []])
            self.trainer.storage.put_scalar(
                "skipped_architecture_steps", self.non_finite.skipped, smoothing_hint=False
            )

    def _conclude(self, iteration: int, batch: Batch) -> None:
        """Compare, measure and write after a step."""
        self._compare_processes()
        if self.eigenvalue_period and (iteration + 1) % self.eigenvalue_period == 0:
            self._watch_curvature(iteration, batch)
        if (iteration + 1) % LOG_PERIOD == 0 or iteration + 1 == self.trainer.max_iter:
            self._write(iteration)

    def _compare_processes(self) -> None:
        """Note whether the processes' parameters differ; asked at each log, as it waits for them.

        The largest and the smallest of each value over processes are the same where all are.
        """
        if comm.get_world_size() == 1:
            return
        values = torch.cat([p.detach().flatten() for p in self.learner.parameters.values()])
        extremes = torch.cat([values, -values])
        torch.distributed.all_reduce(extremes, torch.distributed.ReduceOp.MAX)
        differs = (extremes != torch.cat([values, -values])).any()
        self._differs = differs if self._differs is None else self._differs | differs

    def _watch_curvature(self, iteration: int, batch: Batch) -> None:
        """Measure the dominant eigenvalue; freeze the architecture where it grows too fast."""
        fixed = FixedProposalBatch(batch)
        eigenvalue = float(self.learner.architect.dominant_eigenvalue(fixed))
        # One number for all: a process that froze the architecture alone would wait for ever.
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

    def _write(self, iteration: int) -> None:
        """Write a line of ``search.jsonl``, and the same to the trainer's storage.

        Raises:
            RuntimeError: If the processes' architectures have differed since the last time.
        """
        if self._differs is not None and bool(self._differs):
            raise RuntimeError("the architecture parameters of the processes differ")
        measured = self.learner.measure()
        if self._eigenvalue is not None:
            measured["eigenvalue"] = self._eigenvalue
        self._say(iteration, measured)
        storage = self.trainer.storage
        storage.put_scalars(
            smoothing_hint=False, **{f"search/{name}": value for name, value in measured.items()}
        )
        if not comm.is_main_process():
            return
        architecture = self.learner.architecture
        space = architecture.space
        keys = {str(edge): edge.key for edge in space.edges}
        keys |= {name: choice_key(name) for name in space.choices}
        probabilities = {what: architecture.probabilities(k).cpu() for what, k in keys.items()}
        storage.put_image("search/probabilities", _image(list(probabilities.values())))
        line = {
            "iteration": iteration,
            **measured,
            "alpha": {name: p.tolist() for name, p in self.learner.parameters.items()},
            "probabilities": {what: p.tolist() for what, p in probabilities.items()},
        }
        append_json_line(self.log_file, line)

    def _say(self, iteration: int, measured: dict[str, float]) -> None:
        """Tell how the search is doing, and what does not look well."""
        edges = len(self.learner.architecture.space.edges)
        logger.info(
            "architecture after iteration %d: entropy %.3f, expected cost %.2f of the budget, "
            "%d of %d edges absent, %d flips, none for %d iterations%s",
            iteration,
            measured["entropy"],
            measured["expected_cost"],
            round(measured["absent"] * edges),
            edges,
            measured["flips"],
            measured["unchanged"],
            f", eigenvalue {measured['eigenvalue']:.3g}" if "eigenvalue" in measured else "",
        )
        present = 1 - measured["absent"]
        if measured["parameter_free"] > COLLAPSED * present > 0:
            logger.warning(
                "%d of %d present edges are likeliest to be carried by an operation without "
                "weights: a search that collapses looks like this (SEARCH.AUXILIARY_SKIP, WARMUP)",
                round(measured["parameter_free"] * edges),
                round(present * edges),
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the learner and of the watch, and the position in the data."""
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


def _image(rows: list[Tensor], *, cell: int = 12) -> Tensor:
    """Return edges × candidates as a grey image, (3, H, W) in 0 to 1, ``cell`` pixels a number."""
    table = pad_sequence(rows, batch_first=True)  # (E, O + 1)
    pixels = table.repeat_interleave(cell, dim=0).repeat_interleave(cell, dim=1)
    return pixels.expand(3, -1, -1)
