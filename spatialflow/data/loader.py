"""Loaders whose batches are the same after every restart and with any number of workers."""

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

from spatialflow.data.dataset import PanopticDataset
from spatialflow.data.mapper import PanopticMapper
from spatialflow.data.registration import ensure_metadata, find_dataset, view_of
from spatialflow.data.sampler import ResumableBatchSampler, Sample
from spatialflow.utils.console import report_progress
from spatialflow.utils.errors import ConfigError, DataError
from spatialflow.utils.randomness import seeded
from spatialflow.utils.signals import outlive_signals

logger = logging.getLogger(__name__)

POLICIES = ("stop", "skip")
SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")
NEEDED_KEYS = ("image_id", "height", "width", "pan_seg_file_name", "segments_info")
"""What training needs of the dicts of a data set that other code registered."""
MAX_ATTEMPTS = 100
"""Bad images in a row, the first and those that replace it, after which a training stops."""


class TrainLoader:
    """Yield endless batches of mapped images, from any position on.

    The state is one number: the images of all batches that were yielded. A run that loads it and
    has the same seed continues with exactly the next batch.

    Attributes:
        sampler: Sampler of the batches; its position advances with each yielded batch.
        num_images: Number of different images.
        num_workers: Number of worker processes.
        skip_bad: Whether another image replaces a bad one.
        bad_images: Number of images that were replaced since the start of this process.
    """

    def __init__(
        self,
        dataset_dicts: Sequence[dict[str, Any]],
        mapper: Callable[[dict[str, Any]], dict[str, Any]],
        sampler: ResumableBatchSampler,
        *,
        num_workers: int = 0,
        bad_data: str = "stop",
    ) -> None:
        """Keep the parts; workers start when iteration starts.

        Args:
            dataset_dicts: Images in Detectron2's format, which the sampler's positions index.
            mapper: Function from a dict to the model's input. It may use the global random
                generators, which are seeded before each image.
            sampler: Sampler of the batches.
            num_workers: Number of processes that map images; 0 maps them in this process. The
                batches do not depend on it.
            bad_data: ``stop`` raises the mapper's ``DataError``; ``skip`` takes another image
                instead of the bad one, and counts it.

        Raises:
            ConfigError: If ``bad_data`` has another value.
        """
        if bad_data not in POLICIES:
            raise ConfigError(
                f"DATALOADER.BAD_DATA: {bad_data!r} given, one of {POLICIES} expected"
            )
        self.sampler = sampler
        self.num_images = len(dataset_dicts)
        self.num_workers = num_workers
        self.skip_bad = bad_data == "skip"
        self.bad_images = 0
        self._reported: set[str] = set()
        self._images = _MappedImages(
            DatasetFromList(list(dataset_dicts), copy=False),
            mapper,
            attempts=MAX_ATTEMPTS if self.skip_bad else 1,
        )

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        """Yield this process's part of each batch, from the sampler's position on.

        Raises:
            DataError: If an image is bad and may not be replaced.
        """
        batches = DataLoader(
            self._images,
            batch_sampler=self.sampler,
            num_workers=self.num_workers,
            collate_fn=_identity,
            worker_init_fn=outlive_signals,
            # Without a generator of its own it would draw a seed from the global generator.
            generator=torch.Generator(),
        )
        for batch in batches:
            self.sampler.position += 1
            yield [self._checked(image) for image in batch]

    def _checked(self, image: _Mapped) -> dict[str, Any]:
        for message in image.errors:
            self.bad_images += 1
            if self.skip_bad and message not in self._reported:
                self._reported.add(message)
                logger.warning("left out: %s", message)
        if image.content is None:
            last = image.errors[-1]
            if self.skip_bad:
                raise DataError(f"{MAX_ATTEMPTS} bad images in a row; the last: {last}")
            raise DataError(last)
        return image.content

    def state_dict(self) -> dict[str, int]:
        """Return the number of images in all batches of all processes so far."""
        return {"images": self.sampler.position * self.sampler.batch_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Set the position; it takes effect when iteration starts."""
        self.sampler.position = state["images"] // self.sampler.batch_size


class _Mapped:
    """A mapped image, and the errors of the bad images that it replaces.

    Attributes:
        content: Input of the model; None if no image could be mapped.
        errors: Messages of the bad images, in the order of the attempts.
    """

    def __init__(self) -> None:
        self.content: dict[str, Any] | None = None
        self.errors: list[str] = []


class _MappedImages(Dataset[_Mapped]):
    """Map samples, and return errors as values: PyTorch changes those that a worker raises."""

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
                    mapped.errors.append(str(error))
                    index = int(substitutes.integers(len(self.dicts)))
        return mapped


def _identity(batch: list[_Mapped]) -> list[_Mapped]:
    return batch


class EvaluationLoader:
    """Yield a data set's images in order, and raise errors unchanged, also with workers."""

    def __init__(self, cfg: CfgNode, name: str) -> None:
        """Load a data set; workers start when iteration starts.

        Args:
            cfg: Config; ``DATALOADER.NUM_WORKERS`` and ``INPUT`` are read.
            name: Name of a registered data set.

        Raises:
            DataError: If the JSON is wrong or a file is missing.
        """
        self._name = name
        self._batches = build_detection_test_loader(
            DatasetCatalog.get(view_of(name)),
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
        total = len(self)
        logger.info("evaluation: %s, %d images", self._name, len(self._batches.dataset))
        report_progress("evaluation", 0, total)
        done = 0
        try:
            for batch in self.batches():
                yield batch
                done += 1
                report_progress("evaluation", done, total)
        finally:
            report_progress("evaluation", done, total, ended=True)

    def batches(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the same batches, and report no evaluation.

        Raises:
            DataError: If an image is bad.
        """
        for batch in self._batches:
            for item in batch:
                if isinstance(item, DataError):
                    raise item
            yield batch


class _ErrorsAsValues:
    """Return the mapper's result or its error: PyTorch changes errors that a worker raises."""

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
    """Build the training loader of a config.

    Args:
        cfg: Config; ``DATASETS.TRAIN``, ``DATALOADER``, ``INPUT`` and ``SOLVER.IMS_PER_BATCH``
            are read.
        seed: Seed of order and augmentations, the same in every process.
        keep: Function that returns whether to train on a data set's dict; None keeps all.

    Raises:
        DataError: If data are bad and may not be skipped.
        ConfigError: If a key has a value that is not allowed, or no image is left.
    """
    cfg = _with_views(cfg)
    keys = cfg.DATALOADER
    mapper = PanopticMapper(cfg, is_train=True)
    dicts = [image for image in training_dicts(cfg) if keep is None or keep(image)]
    groups = None
    if keys.ASPECT_RATIO_GROUPING:
        groups = [int(image["width"] > image["height"]) for image in dicts]
    if keys.SAMPLER_TRAIN not in SAMPLERS:
        raise ConfigError(
            f"DATALOADER.SAMPLER_TRAIN: {keys.SAMPLER_TRAIN!r} given, one of {SAMPLERS} expected"
        )
    factors = None
    if keys.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dicts, keys.REPEAT_THRESHOLD, sqrt=keys.REPEAT_SQRT
        )
    sampler = ResumableBatchSampler(
        len(dicts),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        seed=seed,
        groups=groups,
        repeat_factors=factors,
    )
    return TrainLoader(dicts, mapper, sampler, num_workers=keys.NUM_WORKERS, bad_data=keys.BAD_DATA)


def _with_views(cfg: CfgNode) -> CfgNode:
    """Return a config that names data sets of other code as this package reads them."""
    clone = cfg.clone()
    clone.defrost()
    clone.DATASETS.TRAIN = tuple(map(view_of, cfg.DATASETS.TRAIN))
    return clone


def training_dicts(cfg: CfgNode) -> list[dict[str, Any]]:
    """Return the images of ``DATASETS.TRAIN`` to train on.

    Args:
        cfg: Config; ``DATASETS.TRAIN``, ``DATALOADER.BAD_DATA`` and
            ``DATALOADER.FILTER_EMPTY_ANNOTATIONS`` are read.

    Raises:
        DataError: If data are bad and ``DATALOADER.BAD_DATA`` is ``stop``.
        ConfigError: If no image is left.
    """
    cfg = _with_views(cfg)
    dicts = [image for name in cfg.DATASETS.TRAIN for image in dataset_dicts(name, cfg)]
    has_annotations = bool(dicts) and "annotations" in dicts[0]  # as in Detectron2
    if has_annotations and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        dicts = filter_images_with_only_crowd_annotations(dicts)
    if not dicts:
        raise ConfigError(
            f"DATASETS.TRAIN: {list(cfg.DATASETS.TRAIN)}: no image to train on. "
            "Images without a thing that is not crowd are left out while "
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS is True."
        )
    if has_annotations:
        names = ensure_metadata(cfg.DATASETS.TRAIN[0]).thing_classes
        print_instances_class_histogram(dicts, names)
    return dicts


def dataset_dicts(name: str, cfg: CfgNode) -> list[dict[str, Any]]:
    """Return a data set's images; ``DATALOADER.BAD_DATA skip`` leaves out images with defects.

    Args:
        name: Name of a registered data set.
        cfg: Config; ``DATALOADER.BAD_DATA`` is read.

    Raises:
        DataError: If data are bad and ``DATALOADER.BAD_DATA`` is ``stop``.
    """
    dataset = dict(DatasetCatalog).get(name)
    if not isinstance(dataset, PanopticDataset):
        return _checked_dicts(name)
    if cfg.DATALOADER.BAD_DATA != "skip":
        return dataset()
    dicts, defects = dataset.load()
    for defect in defects:
        logger.warning("left out: %s", defect)
    if defects:
        logger.warning("%s: %d images with problems are left out", name, len(defects))
    return dicts


def _checked_dicts(name: str) -> list[dict[str, Any]]:
    """Return the dicts of a data set of other code, if they have what training needs.

    Raises:
        ConfigError: If they are not those of a panoptic data set, or the name is unknown.
    """
    dicts: list[dict[str, Any]] = DatasetCatalog.get(name) if name in DatasetCatalog else []
    lacking = [key for key in NEEDED_KEYS if not all(key in image for image in dicts)]
    if lacking and "segments_info" not in lacking:
        raise ConfigError(
            f"data set {name!r}: its dicts lack {', '.join(lacking)}; register it with "
            "spatialflow.register_panoptic"
        )
    if lacking or not dicts:
        find_dataset(name)  # raises: it is unknown, or not panoptic
    return dicts
