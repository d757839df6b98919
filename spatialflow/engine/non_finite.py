"""Stop at a step whose loss or gradient is NaN or infinite, or skip it: ``SOLVER.NON_FINITE``."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from spatialflow.utils.errors import ConfigError, NonFiniteError
from spatialflow.utils.text import printable

logger = logging.getLogger(__name__)

POLICIES = ("stop", "skip")
# After so many steps in a row the weights themselves are broken, and other data will not help.
MAX_SKIPPED_IN_A_ROW = 20

Batch = list[dict[str, Any]]


class NonFiniteSteps:
    """Counts steps with a loss or a gradient that is not finite, and stops a run by its policy.

    Attributes:
        policy: ``stop`` or ``skip``.
        what: Name of the steps in the log.
        skipped: Number of skipped steps since this process started.
    """

    def __init__(self, policy: str, *, what: str = "step") -> None:
        """Keep the policy.

        Args:
            policy: ``stop`` to raise an error at the first such step; ``skip`` to leave it out.
            what: Name of the steps in the log.

        Raises:
            ConfigError: If the policy is neither ``stop`` nor ``skip``.
        """
        if policy not in POLICIES:
            raise ConfigError(f"SOLVER.NON_FINITE: {policy!r} given, one of {POLICIES} expected")
        self.policy = policy
        self.what = what
        self.skipped = 0
        self._in_a_row = 0

    def note_finite(self) -> None:
        """Note a finite step: the count of skipped steps in a row starts again at 0."""
        self._in_a_row = 0

    def note(self, iteration: int, problems: Iterable[str], batches: Iterable[Batch]) -> None:
        """Note a step that is not finite; every process has to call this, as they exchange reports.

        Args:
            iteration: Iteration of the step.
            problems: Descriptions of what is not finite in this process; may be empty.
            batches: Batches that this process used in the step.

        Raises:
            NonFiniteError: If the policy is ``stop``, or after :data:`MAX_SKIPPED_IN_A_ROW` skipped
                steps in a row.
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
    """Return whether all gradients are finite; parameters without a gradient are ignored.

    Returns:
        A scalar bool tensor, so that a GPU computes it without a wait.
    """
    return get_total_norm([p.grad for p in parameters if p.grad is not None]).isfinite()


def _name(image: dict[str, Any]) -> str:
    return printable(str(image.get("file_name", "an image without file_name")))


def _pixels_are_finite(image: dict[str, Any]) -> bool:
    return bool(torch.isfinite(image["image"]).all())


def _describe(iteration: int, reports: list[dict[str, list[str]]]) -> str:
    """Return in one line what is not finite, from the reports of all processes."""

    def all_of(what: str) -> list[str]:
        return list(itertools.chain.from_iterable(report[what] for report in reports))

    problems = ", ".join(sorted(set(all_of("problems")))) or "a gradient is NaN or infinite"
    broken = all_of("broken")
    pixels = f"; NaN or infinite pixels in {', '.join(broken)}" if broken else ""
    return f"iteration {iteration}: {problems}; images: {', '.join(all_of('images'))}{pixels}"
