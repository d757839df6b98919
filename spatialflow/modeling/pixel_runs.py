"""What covers each pixel of an image, as a small table on the CPU.

Shape legend: M masks, H and W the size of the image, R runs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BYTE = 8


class PixelRuns:
    """Runs of neighbouring pixels, row after row, with one label and under the same masks.

    A decision that is made on runs holds for their pixels, and there are few of them: thousands in
    a photograph. The device of the pixels finds them, the CPU decides, and the device gets one
    value a run. The CPU waits for the device three times, whatever the number of masks.

    Attributes:
        labels: Label of each run, (R,) int64.
        lengths: Number of pixels of each run, (R,) int64.
    """

    def __init__(self, labels: Tensor, masks: Tensor) -> None:
        """Find the runs.

        Args:
            labels: Label of each pixel, (H, W) int64.
            masks: (M, H, W) bool, on the device of the labels.
        """
        self._size = labels.shape
        flat, cover = labels.flatten(), _pack(masks.flatten(1))
        begins = torch.ones_like(flat, dtype=torch.bool)
        torch.ne(flat[1:], flat[:-1], out=begins[1:])
        for eight in cover:
            begins[1:] |= eight[1:] != eight[:-1]
        starts = begins.nonzero()[:, 0]
        self._lengths = torch.diff(starts, append=starts.new_full((1,), len(flat)))
        self.labels, self.lengths = torch.stack([flat[starts], self._lengths]).cpu().numpy()
        self._cover = cover[:, starts].cpu().numpy()

    def under(self, mask: int) -> np.ndarray:
        """Return the indices of the runs that a mask covers."""
        # NumPy searches bools three times as fast as numbers.
        return np.flatnonzero((self._cover[mask // BYTE] & (1 << mask % BYTE)) != 0)

    def image(self, values: np.ndarray) -> np.ndarray:
        """Return an image (H, W) from one value a run (R,)."""
        return values.repeat(self.lengths).reshape(self._size)

    def image_on_device(self, values: np.ndarray) -> Tensor:
        """Return an image (H, W) from one value a run (R,), on the device of the labels."""
        there = torch.from_numpy(values).to(self._lengths.device, non_blocking=True)
        pixels = self._size.numel()
        return there.repeat_interleave(self._lengths, output_size=pixels).view(self._size)


def _pack(sets: Tensor) -> Tensor:
    """Return the bits of sets in bytes, the first one in the lowest bit.

    Args:
        sets: (M, pixels) bool.

    Returns:
        (⌈M / 8⌉, pixels) uint8.
    """
    packed = sets.new_zeros((-(-len(sets) // BYTE), sets.shape[1]), dtype=torch.uint8)
    for bit in range(min(BYTE, len(sets))):
        every_eighth = sets[bit::BYTE]
        if not torch.jit.is_tracing():  # which has no such view; it halves the time
            every_eighth = every_eighth.view(torch.uint8)
        packed[: len(every_eighth)].add_(every_eighth, alpha=2**bit)
    return packed
