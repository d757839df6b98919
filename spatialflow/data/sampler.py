"""Which samples make which batch: a function of seed and position, and of nothing else.

Detectron2's training samplers start again when a training is resumed, its grouping by aspect ratio
keeps images back in buckets, and its workers seed themselves anew. Here shuffling, grouping and the
seed of each sample's augmentation are decided in one place that can start at any batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from detectron2.utils import comm
from torch import Tensor
from torch.utils.data import Sampler

from spatialflow.utils.randomness import mix_seeds


class Sample(NamedTuple):
    """One image of a batch: its position in the data set, and the seed of its augmentation."""

    image: int
    seed: int


class BatchStream(Sampler[list[Sample]]):
    """An endless stream of batches that several processes share.

    Each epoch is a permutation of the data set. With groups, images of one group wait until there
    are enough for a batch, over the ends of epochs, so that none is lost. Every process computes
    the whole batch and takes its own part: N processes see what one would see.
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
        """Describe the stream; iteration starts at :attr:`position`.

        Args:
            size: Number of images.
            batch_size: Images of a batch, over all processes.
            seed: Of everything.
            groups: For each image the group that it shares batches with; None for one group.
            repeat_factors: (size,) how often an image comes in an epoch on average (Gupta et al.
                2019, LVIS, sec. 4.1); None for once.

        Raises:
            ValueError: If there is no image, or the batch cannot be shared evenly.
        """
        processes = comm.get_world_size()
        if size < 1:
            raise ValueError("a stream of batches needs at least one image")
        if batch_size < 1 or batch_size % processes:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH: {batch_size} given, a multiple of the number of "
                f"processes, {processes}, expected"
            )
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.groups = groups
        self.repeat_factors = repeat_factors
        self.position = 0
        """Number of the batch that iteration starts with."""

    def __iter__(self) -> Iterator[list[Sample]]:
        """Yield this process's part of each batch.

        Earlier batches are gone through without reading an image, at at some million images a
        second.
        """
        share = self.batch_size // comm.get_world_size()
        mine = slice(comm.get_rank() * share, (comm.get_rank() + 1) * share)
        for batch in itertools.islice(self._batches(), self.position, None):
            yield [Sample(index, self._sample_seed(count)) for count, index in batch[mine]]

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        """Yield whole batches of (how many images came before, index)."""
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
                # The fraction of a factor is drawn anew in each epoch.
                chance = torch.rand(self.size, generator=generator)
                times = self.repeat_factors.floor() + (chance < self.repeat_factors.frac())
                indices = indices.repeat_interleave(times.long())
            yield from indices[torch.randperm(len(indices), generator=generator)].tolist()
            epoch += 1

    def _sample_seed(self, count: int) -> int:
        # The third number keeps samples and epochs apart.
        return mix_seeds(self.seed, count, 1)
