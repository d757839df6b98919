"""Write predictions of images as overlays and as a COCO panoptic data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from PIL import Image

from spatialflow.data.panoptic_png import segment_masks, write_panoptic_png
from spatialflow.data.registration import category_ids
from spatialflow.utils.visualize import draw_panoptic


class ResultWriter:
    """Writes predictions to a folder, in the order in which they are added.

    overlays/<name>.png: the image with its segments and their class names. panoptic/<name>.png:
    segment ids, R + 256 G + 65536 B. panoptic.json: the segments in COCO panoptic format, with the
    data set's category ids.
    """

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        """Make the folders.

        Args:
            folder: Folder to write to.
            metadata: Metadata with names, colours and ids of the classes.
        """
        self.folder = folder
        self.metadata = metadata
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self._category_ids = category_ids(metadata)
        for name in ("overlays", "panoptic"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def add(
        self, path: Path, image_rgb: np.ndarray, result: tuple[torch.Tensor, list[dict[str, Any]]]
    ) -> list[dict[str, Any]]:
        """Write the result of one image.

        Args:
            path: File of the image.
            image_rgb: The image, (H, W, 3) uint8.
            result: Segment ids (H, W) and ``segments_info``, as the model returns them.

        Returns:
            The ``segments_info``.
        """
        ids, segments = result[0].cpu().numpy(), result[1]
        name = self._free_name(path.stem)
        overlay = draw_panoptic(image_rgb, ids, segments, self.metadata)
        Image.fromarray(overlay).save(self.folder / "overlays" / name)
        write_panoptic_png(self.folder / "panoptic" / name, ids)
        masks = segment_masks(ids, [segment["id"] for segment in segments])
        image_id = len(self.images) + 1
        height, width = ids.shape
        self.images.append(
            {"id": image_id, "file_name": str(path), "height": height, "width": width}
        )
        self.annotations.append(
            {
                "image_id": image_id,
                "file_name": name,
                "segments_info": [
                    {
                        "id": segment["id"],
                        "category_id": self._category_ids[segment["isthing"]][
                            segment["category_id"]
                        ],
                        "iscrowd": 0,
                        "area": mask["area"],
                        "bbox": mask["bbox"],
                    }
                    for segment, mask in zip(segments, masks, strict=True)
                ],
            }
        )
        return segments

    def _free_name(self, stem: str) -> str:
        """Return a file name that is not taken yet, as images of several folders may share one."""
        taken = {annotation["file_name"] for annotation in self.annotations}
        number = 1
        while (name := f"{stem}.png" if number == 1 else f"{stem}-{number}.png") in taken:
            number += 1
        return name

    def finish(self) -> None:
        """Write ``panoptic.json``."""
        metadata = self.metadata
        own_names = metadata.get("category_names", {})
        categories = [
            {
                "id": category_id,
                "name": own_names.get(category_id, names[contiguous]),
                "isthing": int(isthing),
                "color": list(colors[contiguous]),
            }
            for isthing, names, colors in (
                (True, metadata.thing_classes, metadata.thing_colors),
                (False, metadata.stuff_classes, metadata.stuff_colors),
            )
            for contiguous, category_id in self._category_ids[isthing].items()
        ]
        content = {
            "images": self.images,
            "annotations": self.annotations,
            "categories": sorted(categories, key=lambda category: category["id"]),
        }
        (self.folder / "panoptic.json").write_text(json.dumps(content))
