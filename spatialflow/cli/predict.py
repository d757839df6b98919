"""``spatialflow predict``: predict on image files and folders with a trained model."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from detectron2.data.detection_utils import read_image
from PIL import Image

from spatialflow.cli.errors import errors_in_one_line, program_name
from spatialflow.cli.results import ResultWriter
from spatialflow.config import get_cfg
from spatialflow.data import ensure_metadata
from spatialflow.engine import Predictor, prepare_config
from spatialflow.engine.checkpoint import check_weights_file
from spatialflow.utils.errors import ConfigError
from spatialflow.utils.text import printable

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
# Errors of reading a file that is no image, or a part of one.
READ_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def main(args: argparse.Namespace) -> int:
    """Predict all inputs; return 0 if all images were read, 1 otherwise."""
    with errors_in_one_line():
        paths, failures = list_images(args.input)
        cfg = read_config(args.config_file, args.opts)
        metadata = class_metadata(cfg)
        predictor = Predictor(cfg)
        writer = ResultWriter(Path(args.output), metadata)
        failures += predict(paths, predictor, writer)
        writer.finish()
    print(f"{len(writer.images)} image(s) in {args.output}")
    for failure in failures:
        print(f"{program_name()}: {printable(failure)}", file=sys.stderr)
    if failures:
        print(f"{program_name()}: {len(failures)} input(s) failed", file=sys.stderr)
    return 1 if failures else 0


def predict(paths: Iterable[Path], predictor: Predictor, writer: ResultWriter) -> list[str]:
    """Predict and write images, and return a message for each that cannot be read."""
    failures = []
    for path in paths:
        try:
            image_bgr = read_image(str(path), format="BGR")
        except READ_ERRORS as error:
            failures.append(f"{path}: not read as an image: {error}")
            continue
        segments = writer.add(path, image_bgr[:, :, ::-1], predictor(image_bgr)["panoptic_seg"])
        print(printable(f"{path}: {describe(segments, writer.metadata)}"))
    return failures


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
        ConfigError: If the config is not valid.
        CheckpointError: If ``MODEL.WEIGHTS`` names no file.
    """
    cfg = get_cfg(config_file, opts)
    prepare_config(cfg)
    check_weights_file(cfg.MODEL.WEIGHTS)
    return cfg


def class_metadata(cfg: CfgNode) -> Metadata:
    """Return the metadata of the config's data set: names, colours and ids of the classes.

    Raises:
        ConfigError: If the config names no data set, or has another number of classes.
    """
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    if not names:
        raise ConfigError("DATASETS.TEST and DATASETS.TRAIN are empty: no data to name classes by")
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
