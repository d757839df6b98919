"""An image's segments, completed where the JSON is short, and in the form a model gives them."""

from pathlib import Path

import torch
from detectron2.data.catalog import Metadata

from .panoptic_png import read_panoptic_png, segment_masks
from .source import PanopticSource


def complete_segments(
    source: PanopticSource, annotation: dict, mapping: dict[int, int]
) -> list[dict]:
    """Returns an image's segments with remapped classes and every field that is used later.

    Args:
        source: the registration.
        annotation: the image's annotation in the JSON.
        mapping: source category id → class id.

    Returns:
        dicts with `id`, `category_id`, `iscrowd`, `area` and `bbox`. Where the JSON leaves out
        `area` or `bbox`, they are measured in the PNG; `iscrowd` is 0 where it is left out.

    Raises:
        ValueError: if a segment's category is unknown.
    """
    segments = annotation["segments_info"]
    unknown = {s["category_id"] for s in segments} - mapping.keys()
    if unknown:
        raise ValueError(
            f"{source.annotations_json}: segments of {annotation['file_name']} have category ids "
            f"{sorted(unknown)}, which its 'categories' do not list"
        )
    if not all("area" in s and "bbox" in s for s in segments):
        ids = read_panoptic_png(Path(source.panoptic_root) / annotation["file_name"])
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
    """
    ids = read_panoptic_png(dataset_dict["pan_seg_file_name"])
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
