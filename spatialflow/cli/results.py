"""Write predictions of images as overlays and as a COCO panoptic data set."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from PIL import Image

from spatialflow.data.panoptic_png import segment_masks, write_panoptic_png
from spatialflow.data.registration import category_ids
from spatialflow.utils.files import check_outputs, write_atomically, write_json
from spatialflow.utils.visualize import draw_panoptic

RESULT_FILE = "panoptic.json"


class ResultWriter:
    """Writes predictions to a folder, in the order in which they are added.

    overlays/<name>.png: the image with its segments and their class names. panoptic/<name>.png:
    segment ids, R + 256 G + 65536 B. panoptic.json: the segments in COCO panoptic format, with the
    data set's category ids.

    Attributes:
        results: (image entry, annotation) of each image that is completely written.
    """

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        """Make the folders.

        Args:
            folder: Folder to write to.
            metadata: Metadata with names, colours and ids of the classes.

        Raises:
            ConfigError: If a file or a folder is in the way.
        """
        self.folder = folder
        self.metadata = metadata
        self.results: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._taken: set[str] = set()
        self._category_ids = category_ids(metadata)
        for name in ("overlays", "panoptic"):
            check_outputs(folder / name, [])
        check_outputs(folder, [RESULT_FILE])

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

        Raises:
            OSError: If a file cannot be written; the other one is removed, too.
        """
        ids, segments = result[0].cpu().numpy(), result[1]
        name = self._free_name(path.stem)
        overlay = Image.fromarray(draw_panoptic(image_rgb, ids, segments, self.metadata))
        masks = segment_masks(ids, [segment["id"] for segment in segments])
        self._write(
            name,
            overlays=functools.partial(overlay.save, format="PNG"),
            panoptic=functools.partial(write_panoptic_png, ids=ids),
        )
        image_id = len(self.results) + 1
        height, width = ids.shape
        image = {"id": image_id, "file_name": str(path), "height": height, "width": width}
        annotation = {
            "image_id": image_id,
            "file_name": name,
            "segments_info": [
                {
                    "id": segment["id"],
                    "category_id": self._category_ids[segment["isthing"]][segment["category_id"]],
                    "iscrowd": 0,
                    "area": mask["area"],
                    "bbox": mask["bbox"],
                }
                for segment, mask in zip(segments, masks, strict=True)
            ],
        }
        self._taken.add(name)
        self.results.append((image, annotation))
        return segments

    def _write(self, name: str, **contents: Callable[[IO[bytes]], object]) -> None:
        """Write a file of this name into each folder, or into none."""
        written: list[Path] = []
        try:
            for folder, write in contents.items():
                path = self.folder / folder / name
                write_atomically(path, write)
                written.append(path)
        except BaseException:
            for path in written:
                path.unlink(missing_ok=True)
            raise

    def _free_name(self, stem: str) -> str:
        """Return a file name that is not taken yet, as images of several folders may share one."""
        number = 1
        while (name := f"{stem}.png" if number == 1 else f"{stem}-{number}.png") in self._taken:
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
            "images": [image for image, _ in self.results],
            "annotations": [annotation for _, annotation in self.results],
            "categories": sorted(categories, key=lambda category: category["id"]),
        }
        write_json(self.folder / RESULT_FILE, content, indent=None)
