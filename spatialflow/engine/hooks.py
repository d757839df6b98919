"""The hooks of the trainer: evaluation, progress, the end by a signal, and writers."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from spatialflow.data.dataset import PanopticDataset
from spatialflow.data.evaluation_json import panoptic_json
from spatialflow.engine.checkpoint import Checkpointer
from spatialflow.utils.console import report_progress
from spatialflow.utils.errors import DataError
from spatialflow.utils.files import errors_name, read_json, write_json

logger = logging.getLogger(__name__)

RECORD_FILE = "last_evaluation.json"
"""File in ``OUTPUT_DIR`` of the last evaluation that was finished."""

WRITE_PERIOD = 20
"""Iterations between two lines of ``metrics.json`` in a long training, as in Detectron2."""

SHOWN = {"total_loss": "loss", "search/entropy": "entropy"}
"""Name in the event storage → name in the progress."""

KEYS_OF_AN_EVALUATION = ("MODEL", "DATASETS", "INPUT", "TEST")
"""Keys of the config that can change the result of an evaluation."""


class NamingWriter(EventWriter):
    """Writes by one of Detectron2's writers; the errors of the operating system name its file."""

    def __init__(self, writer: EventWriter, path: Path) -> None:
        """Keep the writer, and the file or the folder that it writes to."""
        self.writer = writer
        self.path = path

    def write(self) -> None:
        """Write what the event storage has."""
        with errors_name(self.path):
            self.writer.write()

    def close(self) -> None:
        """Close the file."""
        with errors_name(self.path):
            self.writer.close()


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
        """Make up for the evaluation that belongs to the resumed checkpoint, if it was cut off."""
        start = self.trainer.start_iter
        if start == 0 and comm.is_main_process():
            self._record_path().unlink(missing_ok=True)  # of another training
        if start > 0 and self._is_due(start) and not self._take_finished(start):
            self._evaluate(start)

    def after_step(self) -> None:
        """Evaluate where an evaluation is due; :meth:`after_train` makes the last one."""
        if self._is_due(self.trainer.iter + 1):
            self._evaluate(self.trainer.iter + 1)

    def after_train(self) -> None:
        """Evaluate at the end, unless the training failed, or a finished one is resumed."""
        start, end = self.trainer.start_iter, self.trainer.max_iter
        if self.trainer.iter >= end and not (start == end and self._take_finished(end)):
            self._evaluate(end)
        # The function refers to the trainer, and the trainer to this hook.
        del self._func

    def _is_due(self, iterations: int) -> bool:
        due = self._period > 0 and iterations % self._period == 0
        return due and iterations < self.trainer.max_iter

    def _evaluate(self, iterations: int) -> None:
        """Evaluate the model after a number of iterations, and save it if it is the best."""
        if comm.is_main_process():
            self._record_path().unlink(missing_ok=True)
        self._do_eval()
        if comm.is_main_process():  # other processes have no results
            self._keep_best(iterations)
            self._write_record(iterations)

    def _keep_best(self, iterations: int) -> None:
        value, _ = self.trainer.storage.latest().get(self.metric, (math.nan, 0))
        # A data set without any segment gives NaN.
        if math.isnan(value) or self._period == 0:
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

    def _write_record(self, iterations: int) -> None:
        """Write what a resumed training needs to know of a finished evaluation."""
        content = {
            "iterations": iterations,
            "config": self._config_digest(),
            "state": self.state_dict(),
            "results": self.trainer._last_eval_results,
        }
        write_json(self._record_path(), content)

    def _take_finished(self, iterations: int) -> bool:
        """Return whether the evaluation after these iterations was finished, and take its results.

        The main process decides for all.
        """
        record = None
        if comm.is_main_process() and self._record_path().is_file():
            with contextlib.suppress(DataError):  # a broken record is none
                found = read_json(self._record_path(), dict)
                known = found.get("iterations"), found.get("config")
                if known == (iterations, self._config_digest()):
                    record = found
        record = comm.all_gather(record)[0]
        if record is None:
            return False
        self.load_state_dict(record["state"])
        self.trainer._last_eval_results = _with_nan(record["results"])
        logger.info("the evaluation after %d iterations was finished before", iterations)
        return True

    def _record_path(self) -> Path:
        return Path(self.trainer.cfg.OUTPUT_DIR, RECORD_FILE)

    def _config_digest(self) -> str:
        """Return a digest of all keys and data that can change the result of an evaluation.

        The name of an evaluation JSON has a digest of its data. Data sets that other code has
        registered, for evaluators of its own, have none.
        """
        keys = self.trainer.cfg.clone()
        keys.defrost()
        # Without a period no best model is kept.
        keys.TEST.EVAL_PERIOD = int(self._period > 0)
        text = "".join(keys[name].dump() for name in KEYS_OF_AN_EVALUATION)
        datasets = dict(DatasetCatalog)
        for name in keys.DATASETS.TEST:
            if isinstance(datasets.get(name), PanopticDataset):
                text += str(panoptic_json(name))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def state_dict(self) -> dict[str, Any]:
        """Return the best result so far, for a checkpoint."""
        return {"best": self.best, "best_iterations": self.best_iterations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned."""
        self.best = state_dict["best"]
        self.best_iterations = state_dict["best_iterations"]


def _with_nan(results: Any) -> Any:
    """Return nested results with NaN instead of None, as :func:`write_json` has replaced it."""
    if isinstance(results, dict):
        return {name: _with_nan(value) for name, value in results.items()}
    return math.nan if results is None else results


class ProgressHook(HookBase):
    """Reports progress to the console."""

    def before_train(self) -> None:
        """Report where the training starts."""
        report_progress("training", self.trainer.start_iter, self.trainer.max_iter)

    def after_step(self) -> None:
        """Report the iteration and its loss."""
        latest = self.trainer.storage.latest()
        found = {name: latest[key][0] for key, name in SHOWN.items() if key in latest}
        text = ", ".join(f"{name} {value:.3g}" for name, value in found.items())
        report_progress("training", self.trainer.iter + 1, self.trainer.max_iter, text)

    def after_train(self) -> None:
        """Report the end, also of a training that failed."""
        done, total = self.trainer.iter, self.trainer.max_iter
        report_progress("training", done, total, ended=True)


class Writer(hooks.PeriodicWriter):
    """Detectron2's hook that writes events, from the first iterations on.

    It writes after each of the first twenty iterations, and at least twenty times in a training, so
    that short trainings have a curve, too.
    """

    def __init__(self, writers: list[EventWriter], max_iter: int) -> None:
        """Keep the writers, and choose the period.

        Args:
            writers: Detectron2's writers.
            max_iter: Number of iterations of the training.
        """
        period = min(WRITE_PERIOD, max(1, max_iter // WRITE_PERIOD))
        super().__init__(writers, period=period)
        self._written: int | None = None

    def after_step(self) -> None:
        """Write what is due."""
        done = self.trainer.iter + 1
        if done <= WRITE_PERIOD or done % self._period == 0 or done == self.trainer.max_iter:
            self._write()

    def after_train(self) -> None:
        """Write what is new, and close the writers, also of a training that failed.

        Detectron2's printer divides by zero if it is asked twice in one iteration, which would
        hide the error that has ended the training.
        """
        if self.trainer.iter != self._written:
            self._write()
        for writer in self._writers:
            writer.close()

    def _write(self) -> None:
        self._written = self.trainer.iter
        for writer in self._writers:
            writer.write()
