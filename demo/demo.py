#!/usr/bin/env python
"""Predict on image files and folders with a trained model.

    python demo/demo.py --config-file output/demo/config.yaml --input IMAGE_OR_FOLDER ... \
        --output output/predictions MODEL.WEIGHTS output/demo/model_final.pth

Writes to the output folder, in the order of the inputs:

    overlays/<name>.png   the image with its segments and their class names
    panoptic/<name>.png   segment ids, R + 256 G + 65536 B
    panoptic.json         the segments in COCO panoptic format, with the data set's category ids

The exit status is 0 if all images were read, 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from detectron2.data.detection_utils import read_image
from detectron2.utils.file_io import PathManager
from PIL import Image

import spatialflow
from spatialflow.data import ensure_metadata
from spatialflow.data.panoptic_png import segment_masks, write_panoptic_png
from spatialflow.engine import Predictor, prepare_config
from spatialflow.utils.visualize import draw_panoptic

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
# Errors of reading a file that is no image, or a part of one.
READ_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict all inputs, and return the exit status."""
    args = parse_arguments(arguments)
    paths, failures = list_images(args.input)
    try:
        cfg = read_config(args.config_file, args.opts)
        metadata = class_metadata(cfg)
        predictor = Predictor(cfg)
    except ValueError as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 1
    writer = ResultWriter(Path(args.output), metadata)
    for path in paths:
        try:
            image_bgr = read_image(str(path), format="BGR")
        except READ_ERRORS as error:
            failures.append(f"{path}: not read as an image: {error}")
            continue
        segments = writer.add(path, image_bgr[:, :, ::-1], predictor(image_bgr)["panoptic_seg"])
        print(f"{path}: {describe(segments, metadata)}")
    writer.finish()
    print(f"{len(writer.images)} image(s) in {args.output}")
    for failure in failures:
        print(f"demo.py: {failure}", file=sys.stderr)
    if failures:
        print(f"demo.py: {len(failures)} input(s) failed", file=sys.stderr)
    return 1 if failures else 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--input", required=True, nargs="+", metavar="FILE_OR_FOLDER")
    parser.add_argument("--output", required=True, metavar="FOLDER")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args(arguments)
    keys = [item for item in args.input if item.startswith(("MODEL.", "TEST.", "INPUT."))]
    if keys:
        parser.error(
            f"{keys[0]} follows --input and is taken for a file; give KEY VALUE pairs last"
        )
    return args


def list_images(inputs: Iterable[str]) -> tuple[list[Path], list[str]]:
    """Return the files to read, and a message for each input that is missing.

    Args:
        inputs: Files, and folders whose images are read in the order of their names.
    """
    paths: list[Path] = []
    failures = []
    for path in map(Path, inputs):
        found = [path] if path.is_file() else []
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not found:
                failures.append(f"{path}: the folder has no {', '.join(sorted(SUFFIXES))} file")
        elif not found:
            failures.append(f"{path}: no such file or folder")
        paths += found
    return paths, failures


def read_config(config_file: str, opts: Sequence[str]) -> CfgNode:
    """Return the complete config.

    Raises:
        ValueError: If the config is not valid, or ``MODEL.WEIGHTS`` names no file.
    """
    cfg = spatialflow.get_cfg(config_file, opts)
    prepare_config(cfg)
    weights = cfg.MODEL.WEIGHTS
    if not weights:
        raise ValueError("MODEL.WEIGHTS is empty; give a checkpoint: MODEL.WEIGHTS model_final.pth")
    if not PathManager.isfile(weights) and "://" not in weights:
        raise ValueError(f"MODEL.WEIGHTS: no such file: {weights}")
    return cfg


def class_metadata(cfg: CfgNode) -> Metadata:
    """Return the metadata of the config's data set: names, colours and ids of the classes.

    Raises:
        ValueError: If the config names no data set, or has another number of classes.
    """
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    if not names:
        raise ValueError("DATASETS.TEST and DATASETS.TRAIN are empty: no data to name classes by")
    metadata = ensure_metadata(names[0])
    # The classes of a built-in data set can be checked only after its metadata are loaded.
    prepare_config(cfg)
    return metadata


def describe(segments: Iterable[dict[str, Any]], metadata: Metadata) -> str:
    """Return a summary of segments, such as ``2 disc, 1 star; cloud, water``."""
    names = (metadata.stuff_classes, metadata.thing_classes)
    counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for segment in segments:
        counts[segment["isthing"]][names[segment["isthing"]][segment["category_id"]]] += 1
    things = ", ".join(f"{count} {name}" for name, count in counts[True].items())
    return f"{things or 'no things'}; {', '.join(counts[False]) or 'no stuff'}"


class ResultWriter:
    """Writes predictions as overlays and as a COCO panoptic data set."""

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
        things, stuff = (
            {contiguous: category_id for category_id, contiguous in mapping.items()}
            for mapping in (
                metadata.thing_dataset_id_to_contiguous_id,
                metadata.stuff_dataset_id_to_contiguous_id,
            )
        )
        self._category_ids = {True: things, False: stuff}
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
        categories = [
            {
                "id": category_id,
                "name": names[contiguous],
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


if __name__ == "__main__":
    sys.exit(main())
