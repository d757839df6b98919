"""An image's segments, completed where the JSON is short, and in the form a model gives them."""

import numpy as np
import torch
from detectron2.data.catalog import Metadata

from spatialflow.data.panoptic_png import segment_masks
from spatialflow.data.validation.file_rules import ImageFiles
from spatialflow.data.validation.segment_map import SegmentMap, read_segments


def are_complete(segments: list[dict]) -> bool:
    """Says whether segments can be completed without looking into the PNG."""
    return all("area" in s and "bbox" in s for s in segments)


def complete_segments(
    segments: list[dict], mapping: dict[int, int], ids: np.ndarray | None = None
) -> list[dict]:
    """Returns an image's segments with remapped classes and every field that is used later.

    Args:
        segments: the image's `segments_info` in the JSON.
        mapping: source category id → class id.
        ids: (H, W) segment ids of the PNG; needed unless `are_complete`.

    Returns:
        dicts with `id`, `category_id`, `iscrowd`, `area` and `bbox`. Where the JSON leaves out
        `area` or `bbox`, they are measured in the PNG; `iscrowd` is 0 where it is left out.
    """
    if ids is not None and not are_complete(segments):
        measured = segment_masks(ids, [s["id"] for s in segments])
        segments = [
            {**s, "area": m["area"], "bbox": m["bbox"]}
            for s, m in zip(segments, measured, strict=True)
        ]
    return [
        {
            "id": s["id"],
            "category_id": mapping[s["category_id"]],
            "iscrowd": int(s.get("iscrowd", 0)),
            "area": s["area"],
            "bbox": s["bbox"],
        }
        for s in segments
    ]


def checked_segments(dataset_dict: dict) -> SegmentMap:
    """Reads an image's PNG.

    Args:
        dataset_dict: one dict of `DatasetCatalog.get`.

    Returns:
        its ids, and which pixel belongs to which of the `segments_info`.

    Raises:
        DataError: if the PNG cannot be read, or it and the JSON disagree.
    """
    found = read_segments(
        dataset_dict["pan_seg_file_name"],
        dataset_dict["segments_info"],
        image_files(dataset_dict),
    )
    if isinstance(found, list):
        raise found[0].error()
    return found


def image_files(dataset_dict: dict) -> ImageFiles:
    """Returns what the rules of files need of one dict of `DatasetCatalog.get`."""
    return ImageFiles(
        name=dataset_dict["file_name"],
        size=(dataset_dict["height"], dataset_dict["width"]),
        # Data sets registered by other code do not say which file their dicts come from.
        where=dataset_dict.get("annotations_json", "the JSON"),
    )


def panoptic_ground_truth(
    dataset_dict: dict, metadata: Metadata
) -> tuple[torch.Tensor, list[dict]]:
    """Returns an image's ground truth in the form in which a model gives its panoptic result.

    For `Visualizer.draw_panoptic_seg_predictions`, and for passing the truth off as a result.

    Args:
        dataset_dict: one dict of `DatasetCatalog.get`.
        metadata: the data set's metadata.

    Returns:
        (H, W) int32 segment ids (0 where nothing is labelled), and segments with `id`, `isthing`,
        `category_id` (contiguous; stuff 1, 2, …) and `area`. Crowds are left out.

    Raises:
        DataError: if the PNG cannot be read, or it and the JSON disagree.
    """
    ids = checked_segments(dataset_dict).ids
    segments = []
    for segment in dataset_dict["segments_info"]:
        if segment["iscrowd"]:
            ids[ids == segment["id"]] = 0
            continue
        contiguous = (
            metadata.thing_dataset_id_to_contiguous_id
            if segment["isthing"]
            else metadata.stuff_dataset_id_to_contiguous_id
        )
        segments.append(
            {
                "id": segment["id"],
                "isthing": segment["isthing"],
                "category_id": contiguous[segment["category_id"]],
                "area": segment["area"],
            }
        )
    return torch.from_numpy(ids), segments
