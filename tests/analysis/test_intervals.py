"""PQ with bootstrap intervals over seeds and images, and paired differences."""

import json

import numpy as np
import pytest

from spatialflow.analysis.intervals import ResampledPQ, paired_difference, pq_from_counts


def result(contestant, seed, counts, rate=0.001, **changes):
    classes = [{"name": "dot", "isthing": 1, "PQ": 1.0}, {"name": "sky", "isthing": 0, "PQ": 2.0}]
    images = [f"{i}.png" for i in range(len(counts))]
    means = pq_from_counts(np.sum(counts, axis=0), np.array([True, False]))
    return {
        "dataset": "scenes",
        "contestant": contestant,
        "seed": seed,
        "rate": rate,
        "PQ": means[0],
        "parameters": 1000,
        "seconds": 2.0,
        "classes": classes,
        "images": images,
        "counts": counts,
        **changes,
    }


def random_counts(seed, images=12):
    rng = np.random.default_rng(seed)
    tp = rng.integers(1, 4, (images, 2))
    iou = tp * rng.uniform(0.5, 1, (images, 2))
    return np.stack([iou, tp, rng.integers(0, 2, (images, 2)), tp * 0], axis=-1).tolist()


def test_pq_by_hand():
    # Class 1: 1.5 / (2 + 0.5) = 60 %; class 2: 0.9 / 1 = 90 %; class 3 does not occur.
    counts = np.array([[1.5, 2, 1, 0], [0.9, 1, 0, 0], [0, 0, 0, 0]])
    assert pq_from_counts(counts, np.array([True, False, False])) == pytest.approx([75, 60, 90])


def test_a_contestant_equals_itself_and_a_better_one_is_found():
    mine = [result("parallel", seed, random_counts(seed)) for seed in range(3)]
    sampled = ResampledPQ(mine)
    assert np.abs(sampled.minus(ResampledPQ(mine)).draws).max() == 0
    better = json.loads(json.dumps(mine))
    for item in better:
        for image in item["counts"]:
            for entry in image:
                entry[0] *= 0.9
    difference = sampled.minus(ResampledPQ(better))
    low, high = np.percentile(difference.draws[:, 0], [2.5, 97.5])
    assert 0 < low < difference.mean[0] < high
    assert difference.mean[0] == pytest.approx(0.1 * sampled.mean[0])
    assert difference.cell(0, sign=True).startswith("+")


def test_intervals_grow_with_the_spread_of_seeds():
    def seeds(factors):
        counts = [np.array(random_counts(0)) * [factor, 1, 1, 1] for factor in factors]
        return [result("parallel", i, item.tolist()) for i, item in enumerate(counts)]

    same, spread = seeds([0.8, 0.8, 0.8]), seeds([0.6, 0.8, 1.0])
    assert ResampledPQ(spread).mean == pytest.approx(ResampledPQ(same).mean)
    assert ResampledPQ(spread).draws[:, 0].std() > ResampledPQ(same).draws[:, 0].std()


def test_other_images_are_not_compared():
    mine = [result("parallel", 0, random_counts(0)), result("parallel", 1, random_counts(1, 5))]
    with pytest.raises(ValueError, match="different images"):
        ResampledPQ(mine)


def test_differences_pair_the_seeds_by_number():
    mine = [result("parallel", seed, random_counts(seed)) for seed in (0, 1, 2)]
    difference, seeds = paired_difference(mine, [mine[2]])
    assert seeds == 1
    assert np.abs(difference.draws).max() == 0
    with pytest.raises(ValueError, match=r"seeds \[0\] .* and seeds \[2\] .* the same seeds"):
        ResampledPQ([mine[0]]).minus(ResampledPQ([mine[2]]))
    with pytest.raises(ValueError, match="no seed in common"):
        paired_difference([mine[0]], [mine[2]])
