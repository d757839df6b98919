"""Stop a search early when the curvature of its held-out loss grows.

RobustDARTS (Zela et al. 2020, arXiv 1909.09656), section 4.3 and algorithm 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from torch import Tensor

WINDOW = 5
"""Number of measurements in a mean, and number of measurements that a stopped search goes back."""


class CurvatureWatch:
    """Watch that compares the mean dominant eigenvalue of the last two windows.

    The eigenvalue is :meth:`darts.architect.Architect.dominant_eigenvalue`. Where it grows fast,
    the search is about to find an architecture that works only inside the supernet. The search then
    stops, and takes the architecture of one window ago.
    """

    def __init__(self, ratio: float) -> None:
        """Start with no measurement.

        Args:
            ratio: Stop when (mean of the earlier window) / (mean of the later window) falls below
                this number. The paper uses 0.75; 0 never stops.
        """
        self.ratio = ratio
        self._history: deque[tuple[float, dict[str, Tensor]]] = deque(maxlen=2 * WINDOW)

    def note(self, eigenvalue: float, parameters: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Record a measurement, and decide whether the search must stop.

        Args:
            eigenvalue: Dominant eigenvalue; its magnitude counts.
            parameters: Architecture parameters by name; copies are kept.

        Returns:
            The parameters to go back to if the search must stop, else None.
        """
        copies = {name: value.detach().clone() for name, value in parameters.items()}
        self._history.append((abs(eigenvalue), copies))
        if len(self._history) < 2 * WINDOW:
            return None
        values = [value for value, _ in self._history]
        before, now = sum(values[:WINDOW]), sum(values[WINDOW:])
        return self._history[WINDOW - 1][1] if before < self.ratio * now else None

    def state_dict(self) -> dict[str, Any]:
        """Return the recorded measurements."""
        return {"history": list(self._history)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`."""
        self._history = deque(state["history"], maxlen=2 * WINDOW)
