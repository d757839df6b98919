"""A panoptic PNG beside the segments that the JSON lists for it.

H, W: height and width; S: number of segments that the JSON lists for the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spatialflow.data.panoptic_png import index_map
from spatialflow.data.validation.defects import Problem, enumeration, shown
from spatialflow.data.validation.file_rules import ImageFiles, read_ids

# Boxes of some converters count the last pixel, those of others do not.
_BOX_TOLERANCE = 1


@dataclass(frozen=True)
class SegmentMap:
    """A panoptic PNG beside the segments that the JSON lists for it.

    Attributes:
        ids: (H, W) int32 segment ids.
        index: (H, W) positions in the JSON's list, S where an id is 0; of an unsigned type.
    """

    ids: np.ndarray
    index: np.ndarray


def read_segments(
    path: str, segments: Sequence[dict], image: ImageFiles
) -> SegmentMap | list[Problem]:
    """Reads a panoptic PNG and compares it with the segments of the JSON.

    Args:
        path: the PNG.
        segments: the JSON's `segments_info`, with unique ids; `area` and `bbox` may be missing.
        image: what the JSON says of the image.

    Returns:
        the ids and where they are listed, or all that is wrong.
    """
    ids = read_ids(path, image)
    if isinstance(ids, Problem):
        return [ids]
    index = index_map(ids, [s["id"] for s in segments])
    counts = np.bincount(index.ravel(), minlength=len(segments) + 1)
    areas, unlisted = counts[:-1], counts[-1] - np.count_nonzero(ids == 0)
    messages = []
    if unlisted:
        found = np.unique(ids[index == len(segments)])
        text = enumeration([int(i) for i in found if i != 0])
        messages.append(f"has segment ids that {image.where} does not list: {text}")
    empty = [s["id"] for s, area in zip(segments, areas, strict=True) if area == 0]
    if empty:
        text = enumeration(empty)
        messages.append(f"has no pixel of segments that {image.where} lists: {text}")
    other = [
        f"{s['id']} (has {area}, listed {shown(s['area'])})"
        for s, area in zip(segments, areas.tolist(), strict=True)
        if area and s.get("area", area) != area
    ]
    if other:
        text = enumeration(other)
        messages.append(f"has other areas than {image.where} lists for its segments: {text}")
    if not messages:
        moved = _moved_boxes(index, segments)
        if moved:
            text = enumeration(moved)
            messages.append(f"has other boxes than {image.where} lists for its segments: {text}")
    if messages:
        return [Problem(path, m, image.name) for m in messages]
    return SegmentMap(ids=ids, index=index)


def _moved_boxes(index: np.ndarray, segments: Sequence[dict]) -> list[str]:
    """Segments whose box in the JSON is another than in the PNG, which may be turned or shifted."""
    count = len(segments) + 1
    # One pass of flat indices for rows and one for columns: a mask of each segment would take long.
    seen = []
    for axis, length in enumerate(index.shape):
        lines = np.arange(length).reshape((-1, 1) if axis == 0 else (1, -1))
        touched = np.zeros(length * count, dtype=bool)
        touched[lines * count + index] = True
        seen.append(touched.reshape(length, count))
    in_row, in_column = seen
    moved = []
    for i, segment in enumerate(segments):
        if "bbox" not in segment:
            continue
        (xs,), (ys,) = in_column[:, i].nonzero(), in_row[:, i].nonzero()
        left, top, right, bottom = (int(v) for v in (xs[0], ys[0], xs[-1] + 1, ys[-1] + 1))
        x, y, width, height = segment["bbox"]
        pairs = ((left, x), (top, y), (right, x + width), (bottom, y + height))
        if max(abs(measured - listed) for measured, listed in pairs) > _BOX_TOLERANCE:
            box = [left, top, right - left, bottom - top]
            moved.append(f"{segment['id']} (has {box}, listed {shown(segment['bbox'])})")
    return moved
