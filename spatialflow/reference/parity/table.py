"""Rows of the parity table, and tolerances of its comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spatialflow.reference.parity.fixture import Fixture


@dataclass(frozen=True)
class Tolerances:
    """Largest differences from the authors' values, and smallest agreements.

    Attributes:
        maps: Largest absolute difference in a map of the network.
        loss: Largest relative difference of a loss.
        gradient: Largest relative difference of a gradient norm.
        box: Largest difference of a box corner in pixels.
        score: Largest absolute difference of a score.
        mask_logit: Largest absolute difference of a detection's mask logit.
        mask_iou: Smallest intersection over union of two masks.
        stuff: Smallest share of pixels with the same stuff label.
    """

    maps: float = 1e-4
    loss: float = 1e-4
    gradient: float = 1e-3
    box: float = 1e-2
    score: float = 1e-4
    mask_logit: float = 1e-3
    mask_iou: float = 0.99
    stuff: float = 0.999


FULL = Tolerances()
"""Tolerances for weights as the authors' code saved them."""

COMPACT = Tolerances(maps=3e-3, score=5e-4, mask_logit=3e-3, mask_iou=0.98)
"""Tolerances for a compact fixture, whose weights are rounded and expected values are not."""


@dataclass(frozen=True)
class Row:
    """One comparison, a line of the table.

    Attributes:
        key: Name of the array in the fixture.
        required: Requirement as text.
        measured: Measured value as text.
        holds: Whether the measured value meets the requirement.
    """

    key: str
    required: str
    measured: str
    holds: bool


def at_most(key: str, measured: float, limit: float, what: str) -> Row:
    """Return a row that holds if a difference is at most ``limit``; NaN does not hold."""
    return Row(key, f"{what} <= {limit:g}", f"{measured:.2e}", bool(measured <= limit))


def at_least(key: str, measured: float, limit: float, what: str) -> Row:
    """Return a row that holds if an agreement is at least ``limit``; NaN does not hold."""
    return Row(key, f"{what} >= {limit:g}", f"{measured:.5f}", bool(measured >= limit))


def equal(key: str, measured: object, expected: object, what: str) -> Row:
    """Return a row that holds if two values are equal."""
    return Row(key, f"{what} = {expected}", str(measured), measured == expected)


def max_difference(fixture: Fixture, key: str, ours: np.ndarray, limit: float) -> Row:
    """Return a row for the largest absolute difference between an array and the authors' array.

    Args:
        fixture: Fixture with the authors' array or a sample of it.
        key: Name of the array.
        ours: Our array, in the authors' order.
        limit: Largest difference at which the row holds.
    """
    expected = fixture.take(key)
    if ours.shape != fixture.shape(key):
        return equal(key, ours.shape, fixture.shape(key), "shape")
    difference = np.abs(fixture.sample(key, ours).astype(np.float64) - expected)
    what = "max abs difference"
    if key in fixture.sampled:
        what += f" (1 value of {fixture.sampled[key][1]})"
    return at_most(key, float(difference.max(initial=0)), limit, what)


def rows_not_compared(fixture: Fixture) -> list[Row]:
    """Return a row that does not hold for each array of the fixture that was never read."""
    return [Row(key, "known to this tool", "not compared", False) for key in fixture.unused()]


def format_table(rows: Sequence[Row]) -> str:
    """Return a table as text, with one line per row."""
    cells = [("key", "required", "measured", "ok")] + [
        (row.key, row.required, row.measured, "yes" if row.holds else "NO") for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
