"""Hooks of the trainer that Detectron2 lacks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from detectron2.engine import hooks
from detectron2.utils import comm

from spatialflow.engine.checkpoint import Checkpointer

logger = logging.getLogger(__name__)


class EvaluationHook(hooks.EvalHook):
    """Evaluates every so often and at the end, and keeps the best model as ``model_best.pth``.

    Detectron2's pair of ``EvalHook`` and ``BestCheckpointer`` forgets the best result when a
    training is resumed, makes ``--resume`` go on from the best model instead of the last, and
    never makes up for an evaluation that was cut off, since the checkpoint before it is that of a
    finished iteration.
    """

    def __init__(
        self,
        period: int,
        evaluate: Callable[[], dict[str, Any] | None],
        checkpointer: Checkpointer,
        metric: str,
    ) -> None:
        """Keep what an evaluation needs.

        Args:
            period: Iterations between evaluations; 0 for one at the end only.
            evaluate: Returns a nested dict of results in the main process.
            checkpointer: Saves the best model.
            metric: The number that makes a model the best, as the event storage names it.
        """
        super().__init__(period, evaluate)
        self.checkpointer = checkpointer
        self.metric = metric
        self.best: float | None = None
        self.best_iterations: int | None = None

    def before_train(self) -> None:
        """Make up for the evaluation after which the checkpoint that is resumed stands."""
        start = self.trainer.start_iter
        if start > 0 and self._is_due(start):
            self._evaluate(start)

    def after_step(self) -> None:
        """Evaluate where it is due; the last evaluation comes after the training."""
        if self._is_due(self.trainer.iter + 1):
            self._evaluate(self.trainer.iter + 1)

    def after_train(self) -> None:
        """Evaluate at the end, unless the training failed."""
        if self.trainer.iter >= self.trainer.max_iter:
            self._evaluate(self.trainer.max_iter)
        # It holds a reference to the trainer.
        del self._func

    def _is_due(self, iterations: int) -> bool:
        due = self._period > 0 and iterations % self._period == 0
        return due and iterations < self.trainer.max_iter

    def _evaluate(self, iterations: int) -> None:
        """Evaluate the model that so many iterations have made."""
        self._do_eval()
        value, _ = self.trainer.storage.latest().get(self.metric, (math.nan, 0))
        # Only the main process has results; nan is a data set without anything to count.
        if not comm.is_main_process() or math.isnan(value) or self._period == 0:
            return
        if self.best is None or value > self.best:
            self.best, self.best_iterations = value, iterations
            self.checkpointer.save("model_best", resumable=False, iteration=iterations - 1)
        logger.info(
            "best %s so far: %.2f after %d iterations",
            self.metric,
            self.best,
            self.best_iterations,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the best result so far."""
        return {"best": self.best, "best_iterations": self.best_iterations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.best = state_dict["best"]
        self.best_iterations = state_dict["best_iterations"]
