"""A batch sampler that can start at any batch, so that a resumed training continues exactly.

Detectron2's training samplers start again when a training resumes, its grouping by aspect ratio
keeps images back in buckets, and its workers choose new seeds. Here seed and position alone decide
the order, the groups, and the seed of each image's augmentation.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from detectron2.utils import comm
from torch import Tensor
from torch.utils.data import Sampler

from spatialflow.utils.errors import ConfigError
from spatialflow.utils.randomness import mix_seeds


class Sample(NamedTuple):
    """One image of a batch.

    Attributes:
        image: Position of the image in the data set.
        seed: Seed of the image's augmentation.
    """

    image: int
    seed: int


class ResumableBatchSampler(Sampler[list[Sample]]):
    """Yield endless batches that several processes share.

    Each epoch is a permutation of the data set. With groups, images wait until their group has
    enough for a batch, also across epochs, so no image is lost. Every process computes the whole
    batch and takes its own part: N processes together see the same batches as one process.

    Attributes:
        position: Number of the batch that iteration starts with.
        size: Number of images in the data set.
        batch_size: Number of images in a batch of all processes.
        seed: Seed of order and augmentations.
        repeat_factors: (size,) mean number of times that an image comes in an epoch, or None.
    """

    def __init__(
        self,
        size: int,
        *,
        batch_size: int,
        seed: int,
        groups: Sequence[int] | None = None,
        repeat_factors: Tensor | None = None,
    ) -> None:
        """Keep the settings; iteration starts at :attr:`position`.

        Args:
            size: Number of images in the data set, 1 or more.
            batch_size: Number of images in a batch of all processes.
            seed: Seed of order and augmentations, the same in every process.
            groups: Group of each image; all images of a batch have the same. None for one group.
            repeat_factors: (size,) mean number of times that an image comes in an epoch (LVIS,
                arXiv 1908.03195, appendix B.2). None for once.

        Raises:
            ConfigError: If there is no image, or the batch cannot be divided among the processes.
        """
        processes = comm.get_world_size()
        if size < 1:
            raise ConfigError("a batch sampler needs at least one image")
        if batch_size < 1 or batch_size % processes:
            raise ConfigError(
                f"SOLVER.IMS_PER_BATCH: {batch_size} given, a multiple of the number of "
                f"processes, {processes}, expected"
            )
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.groups = groups
        self.repeat_factors = repeat_factors
        self.position = 0

    def __iter__(self) -> Iterator[list[Sample]]:
        """Yield this process's part of each batch.

        Batches before :attr:`position` are skipped without reading an image.
        """
        share = self.batch_size // comm.get_world_size()
        mine = slice(comm.get_rank() * share, (comm.get_rank() + 1) * share)
        for batch in itertools.islice(self._batches(), self.position, None):
            yield [Sample(index, self._sample_seed(count)) for count, index in batch[mine]]

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        """Yield whole batches of (number of images before this one, position in the data set)."""
        waiting: dict[int, list[tuple[int, int]]] = {}
        for item in enumerate(self._indices()):
            group = 0 if self.groups is None else self.groups[item[1]]
            bucket = waiting.setdefault(group, [])
            bucket.append(item)
            if len(bucket) == self.batch_size:
                yield bucket
                del waiting[group]

    def _indices(self) -> Iterator[int]:
        epoch = 0
        while True:
            generator = torch.Generator().manual_seed(mix_seeds(self.seed, epoch))
            indices = torch.arange(self.size)
            if self.repeat_factors is not None:
                # A factor of 1.3 means once, and with probability 0.3 once more, in each epoch.
                chance = torch.rand(self.size, generator=generator)
                times = self.repeat_factors.floor() + (chance < self.repeat_factors.frac())
                indices = indices.repeat_interleave(times.long())
            yield from indices[torch.randperm(len(indices), generator=generator)].tolist()
            epoch += 1

    def _sample_seed(self, count: int) -> int:
        # The third number makes these seeds differ from those of the epochs.
        return mix_seeds(self.seed, count, 1)
