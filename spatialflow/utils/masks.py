"""Boxes of masks.

H, W: Height and width of an image in pixels.
"""

from __future__ import annotations

import numpy as np


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the smallest box around the set pixels of a mask.

    Columns are searched only in the rows of the box, which saves most of the time.

    Args:
        mask: (H, W) bool.

    Returns:
        Left, top, right and bottom in pixels; right and bottom are exclusive. Four zeros if no
        pixel is set.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if len(rows) == 0:
        return 0, 0, 0, 0
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[top:bottom].any(axis=0))
    return int(columns[0]), top, int(columns[-1]) + 1, bottom
