"""When to stop a search: the curvature of the held-out loss, watched over time."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from torch import Tensor

WINDOW = 5
"""Measurements in a mean, and how many of them a search goes back (Zela et al. 2020, sec. 4.3)."""


class CurvatureWatch:
    """Compares the dominant eigenvalue with what it was a window ago (Zela et al. 2020, alg. 1).

    A search whose eigenvalue grows fast is about to find what works only in the supernet: it is
    stopped, and the architecture of a window ago is taken.
    """

    def __init__(self, ratio: float) -> None:
        """Begin to watch.

        Args:
            ratio: Stop where the mean of a window over that of the next falls below this; 0.75 in
                the paper, 0 for never.
        """
        self.ratio = ratio
        self._history: deque[tuple[float, dict[str, Tensor]]] = deque(maxlen=2 * WINDOW)

    def note(self, eigenvalue: float, parameters: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Take a measurement, and return the parameters to go back to, if it is time to."""
        copies = {name: value.detach().clone() for name, value in parameters.items()}
        self._history.append((abs(eigenvalue), copies))
        if len(self._history) < 2 * WINDOW:
            return None
        values = [value for value, _ in self._history]
        before, now = sum(values[:WINDOW]), sum(values[WINDOW:])
        return self._history[WINDOW - 1][1] if before < self.ratio * now else None

    def state_dict(self) -> dict[str, Any]:
        """Return what was noted."""
        return {"history": list(self._history)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._history = deque(state["history"], maxlen=2 * WINDOW)
