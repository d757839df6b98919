"""Training batches that are the same after every restart, with any number of workers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.data.build import (
    filter_images_with_only_crowd_annotations,
    print_instances_class_histogram,
)
from detectron2.data.common import DatasetFromList
from detectron2.data.samplers import RepeatFactorTrainingSampler
from torch.utils.data import DataLoader, Dataset

from spatialflow.data.mapper import PanopticMapper
from spatialflow.data.registration import DatasetEntry, ensure_metadata
from spatialflow.data.sampler import BatchStream, Sample
from spatialflow.utils.errors import DataError
from spatialflow.utils.randomness import seeded

logger = logging.getLogger(__name__)

POLICIES = ("stop", "skip")
SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")
# Images drawn in the place of a bad one before all of them are taken to be bad.
MAX_REPLACEMENTS = 100


class TrainLoader:
    """Endless batches of mapped images, from any position on.

    Its state is a position: how many images have been handed out. A run that starts at that
    position with the same seed continues the stream exactly.
    """

    def __init__(
        self,
        dataset_dicts: Sequence[dict[str, Any]],
        mapper: Callable[[dict[str, Any]], dict[str, Any]],
        stream: BatchStream,
        *,
        num_workers: int = 0,
        bad_data: str = "stop",
    ) -> None:
        """Keep the parts; workers start when iteration does.

        Args:
            dataset_dicts: What the stream's indices point to.
            mapper: From a data set's dict to the model's input; may use the global random
                generators, which are seeded for each image.
            stream: Which images make which batch.
            num_workers: Processes that map images; 0 for none. Does not change the batches.
            bad_data: ``stop`` raises a ``DataError`` of the mapper; ``skip`` puts another image
                in the place of a bad one and counts it.
        """
        if bad_data not in POLICIES:
            raise ValueError(f"DATALOADER.BAD_DATA: {bad_data!r} given, one of {POLICIES} expected")
        self.stream = stream
        self.num_workers = num_workers
        self.skip_bad = bad_data == "skip"
        self.bad_images = 0
        """Images that were replaced since the start of this process."""
        self._reported: set[str] = set()
        self._images = _MappedImages(
            DatasetFromList(list(dataset_dicts), copy=False),
            mapper,
            attempts=MAX_REPLACEMENTS if self.skip_bad else 1,
        )

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        """Yield batches of this process, from the stream's position on.

        Raises:
            DataError: If an image is bad and none may take its place.
        """
        batches = DataLoader(
            self._images,
            batch_sampler=self.stream,
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            # Else it would draw a seed for workers, which need none, from the global generator.
            generator=torch.Generator(),
        )
        for batch in batches:
            self.stream.position += 1
            yield [self._checked(image) for image in batch]

    def _checked(self, image: _Mapped) -> dict[str, Any]:
        for problem in image.problems:
            self.bad_images += 1
            if self.skip_bad and problem not in self._reported:
                self._reported.add(problem)
                logger.warning("left out: %s", problem)
        if image.content is None:
            last = image.problems[-1]
            if self.skip_bad:
                raise DataError(f"{MAX_REPLACEMENTS} bad images in a row; the last: {last}")
            raise DataError(last)
        return image.content

    def state_dict(self) -> dict[str, int]:
        """Return the position, in images of all processes."""
        return {"images": self.stream.position * self.stream.batch_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Set the position; takes effect when iteration starts."""
        self.stream.position = state["images"] // self.stream.batch_size


class _Mapped:
    """A mapped image, and what was wrong with those that it replaces."""

    def __init__(self) -> None:
        self.content: dict[str, Any] | None = None
        self.problems: list[str] = []


class _MappedImages(Dataset[_Mapped]):
    """Maps samples; errors travel as values, as PyTorch wraps those that workers raise."""

    def __init__(
        self, dicts: DatasetFromList, mapper: Callable[..., dict[str, Any]], *, attempts: int
    ) -> None:
        self.dicts = dicts
        self.mapper = mapper
        self.attempts = attempts

    def __getitem__(self, sample: Sample) -> _Mapped:
        mapped = _Mapped()
        substitutes = np.random.default_rng(sample.seed)
        index = sample.image
        with seeded(sample.seed):
            for _ in range(self.attempts):
                try:
                    mapped.content = self.mapper(self.dicts[index])
                    break
                except DataError as error:
                    mapped.problems.append(str(error))
                    index = int(substitutes.integers(len(self.dicts)))
        return mapped


def _as_it_is(batch: list[_Mapped]) -> list[_Mapped]:
    return batch


class EvaluationLoader:
    """Batches of a data set's images in order, whose errors are their own also with workers."""

    def __init__(self, cfg: CfgNode, name: str) -> None:
        """Load a data set; workers start when iteration does.

        Args:
            cfg: ``DATALOADER.NUM_WORKERS`` and ``INPUT``.
            name: Of a registered data set.

        Raises:
            DataError: If data are bad.
        """
        self._batches = build_detection_test_loader(
            DatasetCatalog.get(name),
            mapper=_ErrorsAsValues(PanopticMapper(cfg, is_train=False)),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )

    def __len__(self) -> int:
        """Return the number of batches of this process."""
        return len(self._batches)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        """Yield batches of one image.

        Raises:
            DataError: If an image is bad.
        """
        for batch in self._batches:
            for item in batch:
                if isinstance(item, DataError):
                    raise item
            yield batch


class _ErrorsAsValues:
    """Returns what a mapper raises, as PyTorch rewrites errors that come from workers."""

    def __init__(self, mapper: Callable[..., dict[str, Any]]) -> None:
        self.mapper = mapper

    def __call__(self, item: dict[str, Any]) -> dict[str, Any] | DataError:
        try:
            return self.mapper(item)
        except DataError as error:
            return error


def build_train_loader(
    cfg: CfgNode, seed: int, *, keep: Callable[[dict[str, Any]], bool] | None = None
) -> TrainLoader:
    """Build the loader that a config describes.

    Args:
        cfg: ``DATASETS.TRAIN``, ``DATALOADER``, ``INPUT`` and ``SOLVER.IMS_PER_BATCH``.
        seed: Of the stream, the same in every process.
        keep: Tells of a data set's dict whether it is to be trained on; None keeps all.

    Raises:
        DataError: If data are bad and may not be skipped.
        ValueError: If a key has a value that is not allowed, or no image is left.
    """
    keys = cfg.DATALOADER
    mapper = PanopticMapper(cfg, is_train=True)
    dicts = [image for image in training_dicts(cfg) if keep is None or keep(image)]
    groups = None
    if keys.ASPECT_RATIO_GROUPING:
        groups = [int(image["width"] > image["height"]) for image in dicts]
    if keys.SAMPLER_TRAIN not in SAMPLERS:
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN: {keys.SAMPLER_TRAIN!r} given, one of {SAMPLERS} expected"
        )
    factors = None
    if keys.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dicts, keys.REPEAT_THRESHOLD, sqrt=keys.REPEAT_SQRT
        )
    stream = BatchStream(
        len(dicts),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        seed=seed,
        groups=groups,
        repeat_factors=factors,
    )
    return TrainLoader(dicts, mapper, stream, num_workers=keys.NUM_WORKERS, bad_data=keys.BAD_DATA)


def training_dicts(cfg: CfgNode) -> list[dict[str, Any]]:
    """Return the images of ``DATASETS.TRAIN`` that are to be trained on.

    Raises:
        DataError: If data are bad and ``DATALOADER.BAD_DATA`` is ``stop``.
        ValueError: If no image is left.
    """
    dicts = [image for name in cfg.DATASETS.TRAIN for image in dataset_dicts(name, cfg)]
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        dicts = filter_images_with_only_crowd_annotations(dicts)
    if not dicts:
        raise ValueError(
            f"DATASETS.TRAIN: {list(cfg.DATASETS.TRAIN)}: no image to train on. "
            "Images without a thing that is not crowd are left out while "
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS is True."
        )
    print_instances_class_histogram(dicts, ensure_metadata(cfg.DATASETS.TRAIN[0]).thing_classes)
    return dicts


def dataset_dicts(name: str, cfg: CfgNode) -> list[dict[str, Any]]:
    """Return a data set's images; those with problems are left out by ``DATALOADER.BAD_DATA skip``.

    Raises:
        DataError: If data are bad and ``DATALOADER.BAD_DATA`` is ``stop``.
    """
    entry = dict(DatasetCatalog).get(name)
    if cfg.DATALOADER.BAD_DATA != "skip" or not isinstance(entry, DatasetEntry):
        return DatasetCatalog.get(name)
    dicts, problems = entry.load()
    for problem in problems:
        logger.warning("left out: %s", problem)
    if problems:
        logger.warning("%s: %d images with problems are left out", name, len(problems))
    return dicts
