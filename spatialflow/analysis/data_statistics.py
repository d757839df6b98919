"""Sizes and counts of a data set's images and segments, from its JSON and the images' headers.

Nothing here decides anything: :mod:`spatialflow.analysis.data_proposal` does. All sizes are in
pixels of the original images.

Shape legend: I images, S segments, T things that are not crowds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from spatialflow.data.dataset_spec import NO_THINGS
from spatialflow.data.images import channel_bits, largest_value
from spatialflow.data.validation.defects import Defect, DefectError
from spatialflow.utils.console import report_progress
from spatialflow.utils.errors import ConfigError

MOST_DECODED = 200
"""Deep images whose pixels are read, evenly chosen: to decode all of a large set takes minutes."""


@dataclass(frozen=True)
class DataStatistics:
    """What is counted.

    Attributes:
        image_sizes: (I, 2) height and width.
        bits: Bits of a channel → number of images.
        largest_value: Largest value of a pixel in images of more than 8 bits; None without any.
        thing_classes: Names.
        stuff_classes: Names.
        image: (S,) number of each segment's image.
        label: (S,) number of its class: things first, then stuff.
        crowd: (S,) bool, whether it is a crowd.
        area: (S,) number of its pixels.
        box: (S, 4) left, top, width and height of its box, each at least 1.
    """

    image_sizes: np.ndarray
    bits: dict[int, int]
    largest_value: float | None
    thing_classes: tuple[str, ...]
    stuff_classes: tuple[str, ...]
    image: np.ndarray
    label: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    box: np.ndarray

    @cached_property
    def is_thing(self) -> np.ndarray:
        """(S,) bool, whether a segment is a thing that is not a crowd."""
        return (self.label < len(self.thing_classes)) & ~self.crowd

    @property
    def thing_sizes(self) -> np.ndarray:
        """(T,) square roots of the areas of things."""
        return np.sqrt(self.area[self.is_thing])

    @property
    def thing_boxes(self) -> np.ndarray:
        """(T, 4) left, top, width and height of things' boxes."""
        return self.box[self.is_thing]

    @property
    def things_per_image(self) -> np.ndarray:
        """(I,) number of things in each image."""
        return np.bincount(self.image[self.is_thing], minlength=len(self.image_sizes))

    @property
    def segments_per_image(self) -> np.ndarray:
        """(I,) number of segments in each image, crowds included."""
        return np.bincount(self.image, minlength=len(self.image_sizes))

    def stuff_areas(self, number: int) -> np.ndarray:
        """Return the area of a stuff class in each image that has it.

        The evaluation counts all segments of a stuff class in an image as one.

        Args:
            number: Position of the class in ``stuff_classes``.
        """
        own = self.label == len(self.thing_classes) + number
        areas = np.bincount(self.image[own], self.area[own], minlength=len(self.image_sizes))
        return areas[np.unique(self.image[own])]


def training_statistics(cfg: CfgNode) -> DataStatistics:
    """Count the training images of a config.

    Images that the config keeps for evaluation are not looked at.

    Args:
        cfg: Config that :func:`spatialflow.engine.prepare_config` has prepared.

    Raises:
        DataError: If the data are what ``spatialflow check`` refuses, as far as JSON and headers
            tell, or if no image has a thing that is not a crowd.
        ConfigError: If the config names no data to train on.
    """
    if not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN: none given, a data set to train on expected")
    name = cfg.DATASETS.TRAIN[0]
    metadata = MetadataCatalog.get(name)
    dicts = DatasetCatalog.get(name)
    found = count(dicts, metadata.thing_classes, metadata.stuff_classes[1:])
    if not found.is_thing.any():
        raise DefectError([Defect(dicts[0]["annotations_json"], NO_THINGS)])
    return found


def count(
    dicts: Sequence[dict], thing_classes: Sequence[str], stuff_classes: Sequence[str]
) -> DataStatistics:
    """Count images in the format of :mod:`spatialflow.data.dataset`.

    Args:
        dicts: One dict for each image.
        thing_classes: Names, in the order of the contiguous numbers.
        stuff_classes: The same of stuff, without "things".

    Raises:
        DataError: If a file is missing or cannot be read.
    """
    bits, largest = _depths([one["file_name"] for one in dicts])
    segments = [(i, segment) for i, one in enumerate(dicts) for segment in one["segments_info"]]
    # Stuff is numbered from 1 on: 0 is "things".
    labels = [
        s["category_id"] if s["isthing"] else len(thing_classes) + s["category_id"] - 1
        for _, s in segments
    ]
    boxes = np.array([s["bbox"] for _, s in segments], dtype=np.float64).reshape(-1, 4)
    # A JSON may say 0, which has neither a logarithm nor a ratio.
    boxes[:, 2:] = np.maximum(boxes[:, 2:], 1)
    return DataStatistics(
        image_sizes=np.array([[one["height"], one["width"]] for one in dicts], dtype=np.int64),
        bits=bits,
        largest_value=largest,
        thing_classes=tuple(thing_classes),
        stuff_classes=tuple(stuff_classes),
        image=np.array([i for i, _ in segments], dtype=np.int64),
        label=np.array(labels, dtype=np.int64),
        crowd=np.array([bool(s["iscrowd"]) for _, s in segments], dtype=bool),
        area=np.maximum(np.array([s["area"] for _, s in segments], dtype=np.float64), 1),
        box=boxes,
    )


def _depths(files: Sequence[str]) -> tuple[dict[int, int], float | None]:
    """Return bits → number of images, and the largest value of those of more than 8 bits."""
    found = [channel_bits(file) for file in files]
    deep = [file for file, bits in zip(files, found, strict=True) if bits > 8]
    chosen = evenly(len(deep), MOST_DECODED)
    values = []
    for done, i in enumerate(chosen):
        report_progress("images of more than 8 bits", done, len(chosen))
        values.append(largest_value(deep[i]))
    return dict(sorted(Counter(found).items())), max(values, default=None)


def evenly(count: int, most: int) -> list[int]:
    """Return up to ``most`` of the numbers from 0 to ``count`` - 1, evenly spaced."""
    return [i * count // most for i in range(most)] if count > most else list(range(count))
