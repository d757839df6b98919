"""The log of a search: how the architecture is doing, in the log, in events and in a file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from darts.relaxation import Architecture, choice_key
from spatialflow.utils.files import append_json_line, read_json_lines

logger = logging.getLogger(__name__)

LOG_FILE = "search.jsonl"
COLLAPSED = 0.5
"""Share of the present edges without weights from which the log warns of a collapse."""


class SearchLog:
    """Writes what a learner measures to the log, the event storage and ``search.jsonl``."""

    def __init__(self, architecture: Architecture, path: Path) -> None:
        """Keep the parts; nothing is written yet.

        Args:
            architecture: Architecture whose probabilities are logged.
            path: File of JSON lines, one for each call of :meth:`write`.
        """
        self.architecture = architecture
        self.path = path

    def write(
        self,
        iteration: int,
        measured: Mapping[str, float],
        storage: EventStorage,
        *,
        shown: bool = True,
    ) -> None:
        """Write one line; only the main process writes the file.

        Args:
            iteration: Iteration that has just ended, counted from 0.
            measured: Numbers of :meth:`darts.ArchitectureLearner.measure`, and ``eigenvalue`` where
                it is known.
            storage: Event storage of the trainer.
            shown: Whether the console gets a line, too.
        """
        if shown:
            self._log(iteration, measured)
        scalars = {f"search/{name}": value for name, value in measured.items()}
        storage.put_scalars(smoothing_hint=False, **scalars)
        if not comm.is_main_process():
            return
        space = self.architecture.space
        keys = {str(edge): edge.key for edge in space.edges}
        keys |= {name: choice_key(name) for name in space.choices}
        probabilities = {
            name: self.architecture.probabilities(key).cpu() for name, key in keys.items()
        }
        storage.put_image("search/probabilities", _heat_map(list(probabilities.values())))
        parameters = self.architecture.named_parameters(prefix="architecture")
        line = {
            "iteration": iteration,
            **measured,
            "alpha": {name: parameter.tolist() for name, parameter in parameters},
            "probabilities": {name: values.tolist() for name, values in probabilities.items()},
        }
        append_json_line(self.path, line)

    def _log(self, iteration: int, measured: Mapping[str, float]) -> None:
        """Write a line to the log, and a warning where the search seems to collapse."""
        edges = len(self.architecture.space.edges)
        logger.debug(
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
                "%d of %d present edges prefer an operation without weights, which is how a search "
                "collapses; SEARCH.AUXILIARY_SKIP and SEARCH.WARMUP work against it",
                round(measured["parameter_free"] * edges),
                round(present * edges),
            )


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of ``search.jsonl``, one for each iteration, the last that was written."""
    lines = {line["iteration"]: line for line in read_json_lines(path) if "iteration" in line}
    return [line for _, line in sorted(lines.items())]


def _heat_map(rows: list[Tensor], *, cell: int = 12) -> Tensor:
    """Return edges × candidates as a grey image, (3, H, W) in 0 to 1, ``cell`` pixels a number."""
    table = pad_sequence(rows, batch_first=True)  # (E, O + 1)
    pixels = table.repeat_interleave(cell, dim=0).repeat_interleave(cell, dim=1)
    return pixels.expand(3, -1, -1)
