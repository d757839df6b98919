"""Compare panoptic fusion on artificial instances and an artificial stuff map.

H, W: Height and width of the map in pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from spatialflow.modeling.fusion import PanopticFusion
from spatialflow.reference.conversion import ReferenceLayout, stuff_order
from spatialflow.reference.parity.fixture import Fixture
from spatialflow.reference.parity.table import Row

# Settings with which the authors' code made the fixture's results; no config gives them.
_SCORE_THRESHOLD = 0.37
_OVERLAP_THRESHOLD = 0.37
_BOX_FILL_THRESHOLD = 0.5
_VARIANTS = {"plain": (False, 4900), "box_fill": (True, 4900), "box_fill_small_stuff": (True, 400)}
_FIRST_STUFF_CATEGORY = 100


def check_fusion(fixture: Fixture, layout: ReferenceLayout, num_stuff: int) -> list[Row]:
    """Compare the segments and their categories; the ids of segments may differ.

    Args:
        fixture: Values of the authors' code.
        layout: Orders of the authors' channels, with the index of things-other.
        num_stuff: Number of stuff outputs, including things-other.
    """
    semantic = torch.from_numpy(fixture.take("fusion.semantic").astype(np.int64))
    order = stuff_order(num_stuff, layout.things_other_index)
    ours_of = torch.tensor(np.argsort(order))
    height, width = semantic.shape
    instances = _instances(fixture, (height, width))
    rows = []
    for name, (box_fill, stuff_area_limit) in _VARIANTS.items():
        fusion = PanopticFusion(
            overlap_threshold=_OVERLAP_THRESHOLD,
            score_threshold=_SCORE_THRESHOLD,
            box_fill=box_fill,
            box_fill_threshold=_BOX_FILL_THRESHOLD,
            stuff_area_limit=stuff_area_limit,
        )
        ids, segments = fusion(instances, ours_of[semantic])
        categories = np.zeros(ids.shape, dtype=np.int64)
        for segment in segments:
            label = segment["category_id"]
            category = label + 1 if segment["isthing"] else _FIRST_STUFF_CATEGORY + order[label]
            categories[ids.numpy() == segment["id"]] = category
        rows.append(_partition_row(fixture, f"fusion.{name}.segment_ids", ids.numpy()))
        rows.append(_category_row(fixture, f"fusion.{name}.category_ids", categories))
    return rows


def _instances(fixture: Fixture, size: tuple[int, int]) -> Instances:
    packed = fixture.take("fusion.masks_packed")
    masks = np.unpackbits(packed, axis=1, count=size[0] * size[1]).reshape(-1, *size)
    return Instances(
        size,
        pred_boxes=Boxes(torch.from_numpy(fixture.take("fusion.boxes"))),
        scores=torch.from_numpy(fixture.take("fusion.scores")),
        pred_classes=torch.from_numpy(fixture.take("fusion.labels")),
        pred_masks=torch.from_numpy(masks.astype(bool)),
    )


def partition_difference(first: np.ndarray, second: np.ndarray) -> int:
    """Return the number of pixels whose segments do not correspond one to one.

    Args:
        first: (H, W) segment ids; 0 is void.
        second: (H, W) segment ids; 0 is void.
    """
    pairs, counts = np.unique(
        np.stack([first.reshape(-1), second.reshape(-1)]), axis=1, return_counts=True
    )
    _, first_index, first_uses = np.unique(pairs[0], return_inverse=True, return_counts=True)
    _, second_index, second_uses = np.unique(pairs[1], return_inverse=True, return_counts=True)
    one_to_one = (first_uses[first_index] == 1) & (second_uses[second_index] == 1)
    void = (pairs == 0).sum(axis=0) == 1
    return int(counts[~one_to_one | void].sum())


def _partition_row(fixture: Fixture, key: str, ids: np.ndarray) -> Row:
    different = partition_difference(ids, fixture.take(key))
    return Row(key, "same partition", f"{different} pixels differ", different == 0)


def _category_row(fixture: Fixture, key: str, categories: np.ndarray) -> Row:
    different = int((categories != fixture.take(key)).sum())
    return Row(key, "same categories", f"{different} pixels differ", different == 0)
