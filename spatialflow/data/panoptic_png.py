"""The panoptic PNG format: segment id = R + 256 G + 65536 B, id 0 is void.

`validation/file_rules.py` reads these PNGs. H, W: height and width; S: number of segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

MAX_SEGMENT_ID = 2**24 - 1

# Encode this many masks at once: a large image with hundreds of segments would need gigabytes.
_MASKS_PER_CHUNK = 32


def write_panoptic_png(path: str | Path | IO[bytes], ids: np.ndarray) -> None:
    """Write segment ids as a panoptic PNG.

    Args:
        path: PNG file to write, or an open binary file.
        ids: (H, W) integers from 0 to `MAX_SEGMENT_ID`.
    """
    channels = np.stack([ids & 255, (ids >> 8) & 255, (ids >> 16) & 255], axis=-1)
    Image.fromarray(channels.astype(np.uint8)).save(path, format="PNG")


def index_map(ids: np.ndarray, segment_ids: Sequence[int]) -> np.ndarray:
    """Replace segment ids by their positions in a list.

    Args:
        ids: (H, W) segment ids.
        segment_ids: S unique ids in any order.

    Returns:
        (H, W) positions 0 … S - 1, and S where an id is not in the list (void or unknown), in the
        smallest unsigned type that holds S.
    """
    count = len(segment_ids)
    dtype = np.min_scalar_type(count)
    # The table has an element for each possible id. The system gives its pages as zeros and only
    # the pages in use need memory. So the table holds position - S, which wraps around.
    shifted = np.zeros(MAX_SEGMENT_ID + 1, dtype=dtype)
    shifted[list(segment_ids)] = np.arange(-count, 0).astype(dtype)
    return shifted[ids] + dtype.type(count)


def segment_masks(ids: np.ndarray, segment_ids: Sequence[int]) -> list[dict]:
    """Encode segments as COCO run-length masks.

    Args:
        ids: (H, W) segment ids.
        segment_ids: S ids of the segments to encode.

    Returns:
        S dicts with `segmentation` (compressed RLE, `counts` as str), `bbox` (x, y, width, height
        in pixels) and `area` (in pixels; 0 for an id without a pixel).
    """
    index = index_map(ids, segment_ids)
    described: list[dict] = []
    for start in range(0, len(segment_ids), _MASKS_PER_CHUNK):
        stop = min(start + _MASKS_PER_CHUNK, len(segment_ids))
        masks = index[..., None] == np.arange(start, stop)
        rles = mask_util.encode(np.asfortranarray(masks.astype(np.uint8)))
        boxes, areas = mask_util.toBbox(rles), mask_util.area(rles)
        described.extend(
            {
                "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
                "bbox": [int(v) for v in box],
                "area": int(area),
            }
            for rle, box, area in zip(rles, boxes, areas, strict=True)
        )
    return described
