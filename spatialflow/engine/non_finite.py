"""What is done about a step whose loss or gradient is NaN or infinite: ``SOLVER.NON_FINITE``."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from spatialflow.utils.errors import NonFiniteError

logger = logging.getLogger(__name__)

POLICIES = ("stop", "skip")
# After so many steps in a row the weights themselves are broken, and no data will mend them.
MAX_SKIPPED_IN_A_ROW = 20

Batch = list[dict[str, Any]]


class NonFiniteSteps:
    """Stops at a step that is not finite, or has it left out and counts it."""

    def __init__(self, policy: str, *, what: str = "step") -> None:
        """Keep the policy.

        Args:
            policy: ``stop`` or ``skip``.
            what: What is left out, for the log.

        Raises:
            ValueError: If it is another.
        """
        if policy not in POLICIES:
            raise ValueError(f"SOLVER.NON_FINITE: {policy!r} given, one of {POLICIES} expected")
        self.policy = policy
        self.what = what
        self.skipped = 0
        self._in_a_row = 0

    def note_finite(self) -> None:
        """Begin to count anew what is left out in a row."""
        self._in_a_row = 0

    def note(self, iteration: int, problems: Iterable[str], batches: Iterable[Batch]) -> None:
        """Report a step that is not finite; all processes do.

        Args:
            iteration: Of the step.
            problems: What is not finite in this process, if it knows.
            batches: Of this process.

        Raises:
            NonFiniteError: If such steps are not left out, or too many are in a row.
        """
        images = list(itertools.chain.from_iterable(batches))
        mine = {
            "problems": list(problems),
            "images": [_name(image) for image in images],
            "broken": [_name(image) for image in images if not _pixels_are_finite(image)],
        }
        message = _describe(iteration, comm.all_gather(mine))
        self.skipped += 1
        self._in_a_row += 1
        if self.policy == "stop":
            raise NonFiniteError(f"{message}. SOLVER.NON_FINITE skip leaves such steps out")
        if self._in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise NonFiniteError(f"{message}; {self._in_a_row} steps in a row")
        logger.warning("%s left out, number %d: %s", self.what, self.skipped, message)


def gradients_are_finite(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Tell whether all gradients that are there are finite; a bool without waiting for a GPU."""
    return get_total_norm([p.grad for p in parameters if p.grad is not None]).isfinite()


def _name(image: dict[str, Any]) -> str:
    return str(image.get("file_name", "an image without file_name"))


def _pixels_are_finite(image: dict[str, Any]) -> bool:
    return bool(torch.isfinite(image["image"]).all())


def _describe(iteration: int, reports: list[dict[str, list[str]]]) -> str:
    """Say in a line what is not finite, from the reports of all processes."""

    def all_of(what: str) -> list[str]:
        return list(itertools.chain.from_iterable(report[what] for report in reports))

    problems = ", ".join(sorted(set(all_of("problems")))) or "a gradient is NaN or infinite"
    broken = all_of("broken")
    pixels = f"; NaN or infinite pixels in {', '.join(broken)}" if broken else ""
    return f"iteration {iteration}: {problems}; images: {', '.join(all_of('images'))}{pixels}"
