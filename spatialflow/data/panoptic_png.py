"""Panoptic PNGs: segment id = R + 256 G + 65536 B, 0 is void.

H, W: height and width; S: number of segments asked for.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from spatialflow.data.validation.defects import Problem
from spatialflow.data.validation.entry_rules import MAX_SEGMENT_ID
from spatialflow.data.validation.file_rules import read_ids

# Masks are encoded this many at a time, so that a large image with hundreds of segments does not
# need gigabytes.
_MASKS_AT_A_TIME = 32


def read_panoptic_png(path: str | Path) -> np.ndarray:
    """Reads the segment ids of a panoptic PNG.

    Args:
        path: the PNG file.

    Returns:
        (H, W) int32 segment ids.

    Raises:
        DataError: if the file does not exist, is broken, or is no 8-bit RGB PNG.
    """
    ids = read_ids(str(path))
    if isinstance(ids, Problem):
        raise ids.error()
    return ids


def write_panoptic_png(path: str | Path | IO[bytes], ids: np.ndarray) -> None:
    """Writes segment ids as a panoptic PNG.

    Args:
        path: the PNG file, or an open one.
        ids: (H, W) integers from 0 to 2**24 - 1.
    """
    channels = np.stack([ids & 255, (ids >> 8) & 255, (ids >> 16) & 255], axis=-1)
    Image.fromarray(channels.astype(np.uint8)).save(path, format="PNG")


def index_map(ids: np.ndarray, segment_ids: Sequence[int]) -> np.ndarray:
    """Replaces segment ids by their position in a list.

    Args:
        ids: (H, W) segment ids.
        segment_ids: the S ids listed in the JSON, unique, in any order.

    Returns:
        (H, W) positions 0 to S - 1, and S where an id is not in the list (void, or a segment that
        the JSON does not know), in the smallest unsigned type that holds S.
    """
    count = len(segment_ids)
    dtype = np.min_scalar_type(count)
    # A table of all ids there can be, of which only the pages that are used take memory: they come
    # as zeros, so it holds positions less S, which wraps around.
    shifted = np.zeros(MAX_SEGMENT_ID + 1, dtype=dtype)
    shifted[list(segment_ids)] = np.arange(-count, 0).astype(dtype)
    return shifted[ids] + dtype.type(count)


def segment_masks(ids: np.ndarray, segment_ids: Sequence[int]) -> list[dict]:
    """Encodes segments as COCO run-length masks.

    Args:
        ids: (H, W) segment ids.
        segment_ids: the S ids wanted.

    Returns:
        S dicts with `segmentation` (compressed RLE, `counts` as str), `bbox` (x, y, width, height
        in pixels) and `area` (pixels; 0 for an id that is not in the picture).
    """
    index = index_map(ids, segment_ids)
    described: list[dict] = []
    for start in range(0, len(segment_ids), _MASKS_AT_A_TIME):
        stop = min(start + _MASKS_AT_A_TIME, len(segment_ids))
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
