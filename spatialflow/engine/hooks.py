"""The evaluation hook of the trainer."""

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
    """Evaluates periodically and at the end, and saves the best model as ``model_best.pth``.

    It replaces Detectron2's ``EvalHook`` and ``BestCheckpointer``. They forget the best result when
    a training is resumed, and ``--resume`` then goes on from the best model instead of the last.
    They also skip an evaluation that was interrupted, because the checkpoint before it belongs to
    a finished iteration.

    Attributes:
        best: Best value of the metric so far; None before the first evaluation.
        best_iterations: Number of iterations after which the best value was measured.
    """

    def __init__(
        self,
        period: int,
        evaluate: Callable[[], dict[str, Any] | None],
        checkpointer: Checkpointer,
        metric: str,
    ) -> None:
        """Keep the parts.

        Args:
            period: Number of iterations between evaluations; 0 to evaluate at the end only, and to
                save no best model.
            evaluate: Function that evaluates the model and returns a nested dict of results in the
                main process.
            checkpointer: Checkpointer that saves the best model.
            metric: Name in the event storage of the metric to compare; larger is better.
        """
        super().__init__(period, evaluate)
        self.checkpointer = checkpointer
        self.metric = metric
        self.best: float | None = None
        self.best_iterations: int | None = None

    def before_train(self) -> None:
        """Repeat the evaluation that belongs to the resumed checkpoint: it may be incomplete."""
        start = self.trainer.start_iter
        if start > 0 and self._is_due(start):
            self._evaluate(start)

    def after_step(self) -> None:
        """Evaluate where an evaluation is due; :meth:`after_train` makes the last one."""
        if self._is_due(self.trainer.iter + 1):
            self._evaluate(self.trainer.iter + 1)

    def after_train(self) -> None:
        """Evaluate at the end, unless the training failed."""
        if self.trainer.iter >= self.trainer.max_iter:
            self._evaluate(self.trainer.max_iter)
        # The function refers to the trainer, and the trainer to this hook.
        del self._func

    def _is_due(self, iterations: int) -> bool:
        due = self._period > 0 and iterations % self._period == 0
        return due and iterations < self.trainer.max_iter

    def _evaluate(self, iterations: int) -> None:
        """Evaluate the model after a number of iterations, and save it if it is the best."""
        self._do_eval()
        value, _ = self.trainer.storage.latest().get(self.metric, (math.nan, 0))
        # Other processes have no results. A data set without any segment gives NaN.
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
        """Return the best result so far, for a checkpoint."""
        return {"best": self.best, "best_iterations": self.best_iterations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned."""
        self.best = state_dict["best"]
        self.best_iterations = state_dict["best_iterations"]
