"""Rows of the parity table, and how far a value may be from the authors'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spatialflow.reference.parity.fixture import Fixture


@dataclass(frozen=True)
class Tolerances:
    """How far a value may be from the authors'.

    Attributes:
        dense: maps of the network, largest absolute difference.
        loss: losses, relative.
        gradient: gradient norms, relative.
        box: corners of boxes, pixels.
        score: scores, absolute.
        mask_logit: mask logits at the detections, absolute.
        mask_iou: intersection over union of two masks, at least.
        stuff: share of pixels with the same stuff label, at least.
    """

    dense: float = 1e-4
    loss: float = 1e-4
    gradient: float = 1e-3
    box: float = 1e-2
    score: float = 1e-4
    mask_logit: float = 1e-3
    mask_iou: float = 0.99
    stuff: float = 0.999


FULL = Tolerances()
"""For weights exactly as the authors' code saved them."""

COMPACT = Tolerances(dense=3e-3, score=5e-4, mask_logit=3e-3, mask_iou=0.98)
"""For a compact fixture: its weights are rounded, while the expected values are not."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        key: the name in the fixture.
        required: what has to hold, in words.
        measured: what was found.
        holds: whether it does.
    """

    key: str
    required: str
    measured: str
    holds: bool


def at_most(key: str, measured: float, limit: float, what: str) -> Row:
    """Return a row for a difference; NaN does not hold."""
    return Row(key, f"{what} <= {limit:g}", f"{measured:.2e}", bool(measured <= limit))


def at_least(key: str, measured: float, limit: float, what: str) -> Row:
    """Return a row for an agreement; NaN does not hold."""
    return Row(key, f"{what} >= {limit:g}", f"{measured:.5f}", bool(measured >= limit))


def equal(key: str, measured: object, expected: object, what: str) -> Row:
    """Return a row for two values that have to be the same."""
    return Row(key, f"{what} = {expected}", str(measured), measured == expected)


def max_difference(fixture: Fixture, key: str, ours: np.ndarray, limit: float) -> Row:
    """Compare an array with the authors' by the largest absolute difference.

    Args:
        fixture: holds the authors' array, or a sample of it.
        key: its name.
        ours: our array, in the authors' order.
        limit: how large the difference may be.
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
    """Return a row, which does not hold, for each array of the fixture that nothing looked at."""
    return [Row(key, "known to this tool", "not compared", False) for key in fixture.unused()]


def format_table(rows: Sequence[Row]) -> str:
    """Return the rows as a table in text, one line each."""
    cells = [("key", "required", "measured", "ok")] + [
        (row.key, row.required, row.measured, "yes" if row.holds else "NO") for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
