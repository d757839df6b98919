"""``spatialflow predict``: predict on image files and folders with a trained model."""

from __future__ import annotations

import argparse
import contextlib
import errno
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata

from spatialflow.cli.console import divert, print_line
from spatialflow.cli.errors import errors_in_one_line, program_name
from spatialflow.cli.results import ResultWriter
from spatialflow.config import get_cfg
from spatialflow.data import ensure_metadata, read_image
from spatialflow.data.images import SUFFIXES
from spatialflow.engine import Predictor, prepare_config
from spatialflow.engine.checkpoint import check_weights_file
from spatialflow.utils.errors import ConfigError, DataError, NonFiniteError, is_short_of_memory
from spatialflow.utils.files import why_no_file
from spatialflow.utils.hold import hold
from spatialflow.utils.signals import StopSignals

FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""Codes of an ``OSError`` of writing that every later image would meet, too."""


def main(args: argparse.Namespace) -> int:
    """Predict all inputs; return 0 if all images were predicted, 1 otherwise."""
    with errors_in_one_line(), StopSignals():
        paths, failures = list_images(args.input)
        cfg = read_config(args.config_file, args.opts)
        metadata = class_metadata(cfg)
        hold(args.output, "--output")
        writer = ResultWriter(Path(args.output), metadata)
        predictor = Predictor(cfg)
        try:
            predict(paths, predictor, writer, failures, white_level=cfg.INPUT.WHITE_LEVEL)
        finally:  # also after Ctrl-C, a full disk or a bug: what was done is kept
            try:
                writer.finish()
            finally:
                report(writer, failures)
    return 1 if failures else 0


def report(writer: ResultWriter, failures: Sequence[str]) -> None:
    """Print what was done, and what was not."""
    with output_may_close():
        print_line(f"{len(writer.results)} image(s) in {writer.folder}")
    for failure in failures:
        print_line(f"{program_name()}: {failure}", sys.stderr)
    if failures:
        print_line(f"{program_name()}: {len(failures)} input(s) failed", sys.stderr)


def predict(
    paths: Iterable[Path],
    predictor: Predictor,
    writer: ResultWriter,
    failures: list[str],
    *,
    white_level: float | None = None,
) -> None:
    """Predict and write images; an image that fails does not end the work on the others.

    Args:
        paths: Files of the images.
        predictor: Predictor to use.
        writer: Writer of the results.
        failures: Gets a message for each image that cannot be read, predicted or written.
        white_level: The value of ``INPUT.WHITE_LEVEL``.

    Raises:
        OSError: If the disk is full or cannot be written.
        Exception: Any other error of the model is a bug, and ends the work.
    """
    for path in paths:
        try:
            image_rgb = read_image(path, white_level=white_level)
            result = predictor(image_rgb[:, :, ::-1])["panoptic_seg"]
            segments = writer.add(path, image_rgb, result)
        except Exception as error:
            message = _of_one_image(error)
            if message is None:
                raise
            failures.append(message if str(path) in message else f"{path}: {message}")
            continue
        with output_may_close():
            print_line(f"{path}: {describe(segments, writer.metadata)}")


def _of_one_image(error: Exception) -> str | None:
    """Return the message of an error that other images need not meet, None for any other error."""
    text = " ".join(str(error).split())
    if is_short_of_memory(error):
        return "is too large for the memory of this machine"
    if isinstance(error, OSError):
        return None if error.errno in FULL_DISK else f"its result is not written: {text}"
    return text if isinstance(error, (DataError, NonFiniteError)) else None


@contextlib.contextmanager
def output_may_close() -> Iterator[None]:
    """Let the work go on where the reader of the output, such as ``head``, has ended."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        divert(sys.stdout)


def list_images(inputs: Iterable[str]) -> tuple[list[Path], list[str]]:
    """Return the files to read, and a message for each input that cannot be one.

    Args:
        inputs: Files, and folders whose images are read in the order of their names.
    """
    paths: list[Path] = []
    failures = []
    for path in map(Path, inputs):
        message = why_no_file(path)
        if message is None:
            paths.append(path)
            continue
        try:
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        except NotADirectoryError:
            failures.append(f"{path}: {message}; an image or a folder is expected")
        except OSError as error:
            is_missing = isinstance(error, FileNotFoundError)
            text = "no such file or folder" if is_missing else f"not read: {error.strerror}"
            failures.append(f"{path}: {text}")
        else:
            paths += found
            if not found:
                failures.append(f"{path}: the folder has no {', '.join(sorted(SUFFIXES))} file")
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
