"""Batches depend on seed and position only."""

import itertools
from collections import Counter

import pytest
import torch
from detectron2.utils import comm
from hypothesis import given
from hypothesis import strategies as st

from spatialflow.data.sampler import ResumableBatchSampler


def take(sampler, count):
    return list(itertools.islice(sampler, count))


def images(batches):
    return [sample.image for batch in batches for sample in batch]


@given(
    size=st.integers(1, 20),
    batch_size=st.integers(1, 7),
    seed=st.integers(0, 2**31),
    start=st.integers(0, 30),
    kinds=st.integers(1, 3),
    repeated=st.booleans(),
)
def test_starting_anywhere_is_continuing(size, batch_size, seed, start, kinds, repeated):
    def sampler():
        return ResumableBatchSampler(
            size,
            batch_size=batch_size,
            seed=seed,
            groups=[i % kinds for i in range(size)],
            repeat_factors=1 + torch.arange(size) % 4 / 3 if repeated else None,
        )

    later = sampler()
    later.position = start
    assert take(later, 5) == take(sampler(), start + 5)[start:]


def test_an_epoch_has_every_image_once_and_is_shuffled():
    sampler = ResumableBatchSampler(12, batch_size=4, seed=0)
    first, second = images(take(sampler, 3)), images(take(sampler, 6))[12:]
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    assert first != list(range(12))


def test_batches_share_a_group_and_no_image_waits_for_ever():
    groups = [0] * 7 + [1] * 3
    batches = take(ResumableBatchSampler(10, batch_size=4, seed=1, groups=groups), 50)
    for batch in batches:
        assert len({groups[sample.image] for sample in batch}) == 1
    counts = Counter(images(batches)).values()
    assert len(counts) == 10
    assert max(counts) - min(counts) <= 1


def test_every_sample_has_a_seed_of_its_own():
    seeds = [
        sample.seed
        for seed in (0, 1)
        for batch in take(ResumableBatchSampler(5, batch_size=5, seed=seed), 20)
        for sample in batch
    ]
    assert len(set(seeds)) == len(seeds) == 200


def test_repeat_factors_are_means_over_epochs():
    factors = torch.tensor([1.0, 1.5, 3.0, 0.25])
    epochs = 400
    sampler = ResumableBatchSampler(4, batch_size=1, seed=0, repeat_factors=factors)
    drawn = Counter(images(take(sampler, int(epochs * factors.sum()))))
    for image, factor in enumerate(factors.tolist()):
        assert drawn[image] / epochs == pytest.approx(factor, rel=0.15)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_batches_of_one(monkeypatch, processes):
    def sampler():
        return ResumableBatchSampler(10, batch_size=6, seed=4, groups=[i % 2 for i in range(10)])

    whole = take(sampler(), 8)
    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    parts = []
    for rank in range(processes):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(take(sampler(), 8))
    assert [list(itertools.chain(*batch)) for batch in zip(*parts, strict=True)] == whole


def test_batches_that_cannot_be_shared(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"SOLVER.IMS_PER_BATCH: 3 given.*processes, 2"):
        ResumableBatchSampler(10, batch_size=3, seed=0)


def test_no_image():
    with pytest.raises(ValueError, match="at least one image"):
        ResumableBatchSampler(0, batch_size=1, seed=0)
