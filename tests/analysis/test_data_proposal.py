"""What is proposed for what was counted, and how well anchors fit things."""

import math

import numpy as np
import pytest

from spatialflow.analysis.anchor_coverage import measure_coverage
from spatialflow.analysis.config_text import Choice, config_text
from spatialflow.analysis.data_proposal import proposals, propose
from spatialflow.analysis.data_statistics import DataStatistics
from spatialflow.analysis.size_proposal import nearest_sizes
from spatialflow.config import get_cfg

BASE = "Base-Refined-Small.yaml"


def statistics(things, *, sizes=((300, 400),), stuff=(), deep=None, classes=1):
    """Statistics of things (image, width, height, class) and stuff (image, class, area)."""
    boxes = [(0, 0, width, height) for _, width, height, *_ in things]
    labels = [(*rest, 0)[0] for _, _, _, *rest in things]
    stuff_names = tuple(f"stuff{i}" for i in range(1 + max((c for _, c, _ in stuff), default=-1)))
    return DataStatistics(
        image_sizes=np.array(sizes),
        bits={8 if deep is None else 16: len(sizes)},
        largest_value=deep,
        thing_classes=tuple(f"thing{i}" for i in range(classes)),
        stuff_classes=stuff_names,
        image=np.array([t[0] for t in things] + [s[0] for s in stuff]),
        label=np.array(labels + [classes + s[1] for s in stuff]),
        crowd=np.zeros(len(things) + len(stuff), bool),
        area=np.array([w * h for _, _, w, h in boxes] + [s[2] for s in stuff], float),
        box=np.array([*boxes, *((0, 0, 9, 9) for _ in stuff)], float),
    )


def proposed(found):
    return {choice.key: choice.value for choice in propose(found, get_cfg(BASE))}


def squares(side, count=20):
    return [(0, side, side)] * count


def test_small_things_are_enlarged_to_three_strides():
    keys = proposed(statistics(squares(12), sizes=[(200, 200)]))
    assert keys["INPUT.MIN_SIZE_TEST"] == 384  # 400, in steps of 32
    assert "INPUT.CROP.SIZE" not in keys
    assert keys["INPUT.MIN_SIZE_TRAIN"][0] < 384 < keys["INPUT.MIN_SIZE_TRAIN"][-1]


def test_the_scale_has_limits():
    assert proposed(statistics(squares(2), sizes=[(100, 100)]))["INPUT.MIN_SIZE_TEST"] == 288
    # 0.6 million pixels
    keys = proposed(statistics(squares(4), sizes=[(1000, 1000)]))
    assert keys["INPUT.MIN_SIZE_TEST"] == 32 * round(math.sqrt(600_000) / 32)
    # Large things do not make images smaller than the base's.
    assert proposed(statistics(squares(400), sizes=[(600, 800)]))["INPUT.MIN_SIZE_TEST"] == 320
    assert proposed(statistics(squares(90), sizes=[(128, 128)]))["INPUT.MIN_SIZE_TEST"] == 128


def test_larger_images_are_cropped_before_they_are_enlarged():
    keys = proposed(statistics(squares(12), sizes=[(320, 320)]))
    assert keys["INPUT.MIN_SIZE_TEST"] == 640
    assert keys["INPUT.CROP.TYPE"] == "absolute"
    assert keys["INPUT.CROP.SIZE"] == [176, 176]
    assert keys["INPUT.MIN_SIZE_TRAIN"] == [288, 320, 352, 384, 416]
    assert keys["INPUT.MAX_SIZE_TRAIN"] >= 416


def test_things_that_fit_into_no_crop_are_seen_whole():
    things = squares(12) + [(0, 300, 20)] * 2
    keys = proposed(statistics(things, sizes=[(320, 320)]))
    assert "INPUT.CROP.SIZE" not in keys
    assert keys["INPUT.MIN_SIZE_TEST"] == 416


def test_images_of_different_sizes_come_near_to_one_scale():
    sizes = np.array([(400, 640)] * 5 + [(640, 400)] * 5 + [(640, 600)] * 5)
    shortest, longest = nearest_sizes(sizes, 1.0)
    assert longest == 640
    assert shortest >= 600
    assert nearest_sizes(np.array([(256, 256)] * 8 + [(256, 320)] * 4), 2.5) == (640, 800)
    assert nearest_sizes(np.array([(1, 5000)]), 1.0) == (64, 4992)


def test_anchors_grow_and_fit_their_level():
    for things in (squares(1), squares(12), squares(500), [(0, i, 2 * i) for i in range(1, 150)]):
        sizes = proposed(statistics(things))["MODEL.ANCHOR_GENERATOR.SIZES"]
        flat = [size for level in sizes for size in level]
        assert [len(level) for level in sizes] == [3] * 5
        assert flat == sorted(set(flat))
        for level, stride in zip(sizes, (8, 16, 32, 64, 128), strict=True):
            assert min(level) >= 2 * stride
    # At the network's scale things are of 24 px: no anchor is far below.
    assert proposed(statistics(squares(12)))["MODEL.ANCHOR_GENERATOR.SIZES"][0][0] == 24


def test_ratios_are_added_where_a_class_needs_them():
    key = "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"
    assert key not in proposed(statistics([(0, 40, 20), (0, 20, 40), (0, 30, 30)]))
    assert proposed(statistics([(0, 100, 10)]))[key] == [[0.25, 0.5, 1.0, 2.0]]
    assert proposed(statistics([(0, 10, 100)]))[key] == [[0.5, 1.0, 2.0, 4.0]]
    # One of 21 things, but one of two classes.
    things = [*((0, 30, 30, 0) for _ in range(20)), (0, 100, 10, 1)]
    assert proposed(statistics(things, classes=2))[key] == [[0.25, 0.5, 1.0, 2.0]]


def test_the_stuff_limit_spares_the_class_of_small_segments():
    key = "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT"
    large = [(i, 0, 40_000) for i in range(20)]
    sizes = [(300, 400)] * 20
    assert proposed(statistics(squares(30), sizes=sizes, stuff=large))[key] == 1000  # the base's
    small = [(i, 1, 190) for i in range(20)]
    assert proposed(statistics(squares(30), sizes=sizes, stuff=large + small))[key] == 90
    tiny = [(0, 1, 1)]
    assert proposed(statistics(squares(30), sizes=sizes, stuff=large + tiny))[key] == 0
    assert key not in proposed(statistics(squares(30)))  # no stuff


def test_detections_and_iterations_follow_the_images():
    found = statistics(
        [*squares(20, 3), *((1, 20, 20) for _ in range(151))], sizes=[(300, 400)] * 2
    )
    keys = proposed(found)
    assert keys["TEST.DETECTIONS_PER_IMAGE"] == 230
    assert keys["SOLVER.MAX_ITER"] == 1000
    many = statistics([(i, 20, 20) for i in range(400)], sizes=[(300, 400)] * 500)
    assert proposed(many)["SOLVER.MAX_ITER"] == 20 * 400 / 4
    assert proposed(many)["TEST.DETECTIONS_PER_IMAGE"] == 20


@pytest.mark.parametrize(
    ("largest", "white"),
    [(0.7, 1.0), (200, 255.0), (900, 1023.0), (4095, 4095.0), (4096, 16383.0), (1e6, 1e6)],
)
def test_deep_images_get_a_white_level(largest, white):
    assert proposed(statistics(squares(20), deep=largest))["INPUT.WHITE_LEVEL"] == white
    assert "INPUT.WHITE_LEVEL" not in proposed(statistics(squares(20)))


def test_coverage_counts_as_training_does():
    sizes = [[32] * 3, [64] * 3, [128] * 3, [256] * 3, [512] * 3]
    pairs = ["MODEL.ANCHOR_GENERATOR.SIZES", sizes, "INPUT.MIN_SIZE_TEST", 256]
    pairs += ["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]]
    adaptive = get_cfg(BASE, pairs)
    pairs += ["MODEL.SPATIALFLOW.ASSIGNMENT", "iou"]
    boxes = np.array([[112, 112, 32, 32], [0, 0, 4, 4]], float)
    found = statistics([(0, 32, 32), (0, 4, 4)], sizes=[(256, 256)])
    found.box[:] = boxes
    cover = measure_coverage(found, get_cfg(BASE, pairs), "anchors")
    # The first lies at the middle of an anchor, whose three copies on P3 it gets with the four
    # neighbours of each: those 8 px off in one direction have an IoU of 0.6. The second has its
    # best anchors only: those around nine positions cover it.
    assert cover.things == 2
    assert cover.positives == (3 * 5 + 3 * 9) / 2
    assert cover.small_positives == 3 * 9
    assert cover.missed == cover.small_missed / 2 == 0.5
    # By its own threshold the first keeps three of its level, at the middle and at two positions
    # beside it, and the second has no anchor with its centre inside: one is left to it.
    own = measure_coverage(found, adaptive, "anchors")
    assert (own.positives, own.small_positives, own.missed) == ((3 * 3 + 1) / 2, 1, 0.5)
    # At half the scale the first has its best anchors only, too.
    half = measure_coverage(found, get_cfg(BASE, [*pairs, "INPUT.MIN_SIZE_TEST", 128]), "anchors")
    assert half.missed == 1


def test_small_things_get_more_anchors_by_the_proposal():
    rng = np.random.default_rng(0)
    things = [(i % 4, *rng.integers(5, 15, 2)) for i in range(80)]
    found = statistics(things, sizes=[(256, 256)] * 4)
    found.box[:, :2] = rng.integers(0, 220, (80, 2))
    pairs = [item for c in propose(found, get_cfg(BASE)) for item in (c.key, c.value)]
    before = measure_coverage(found, get_cfg("Base-Small.yaml"), "anchors")
    after = measure_coverage(found, get_cfg(BASE, pairs), "anchors")
    assert after.small_positives > 2 * before.small_positives
    assert after.missed < before.missed
    assert after == measure_coverage(found, get_cfg(BASE, pairs), "anchors")


def test_the_text_of_a_config(tmp_path):
    path = tmp_path / "own.yaml"
    values = [
        Choice("INPUT.CROP.ENABLED", True, "why"),
        Choice("INPUT.CROP.SIZE", [5, 5], "x" * 90),
        Choice("INPUT.MIN_SIZE_TEST", 64, "two\nlines"),
        Choice("DATASETS.FOLDER.PATH", 'a: "b" # {c}\n\x7f \U0001f600', ""),
        Choice("SEED", 3, ""),
    ]
    path.write_text(config_text(values, BASE, "first\nsecond"))
    cfg = get_cfg(path, absolute=False)
    given = (cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.SIZE, cfg.INPUT.MIN_SIZE_TEST, cfg.SEED)
    assert given == (True, [5, 5], 64, 3)
    assert values[3].value == cfg.DATASETS.FOLDER.PATH
    lines = path.read_text().splitlines()
    assert lines[:3] == ["# first", "# second", f"_BASE_: {BASE}"]
    assert max(map(len, lines)) <= 100
    assert lines.count("INPUT:") == lines.count("  CROP:") == 1


def test_many_detections_need_many_proposals():
    cfg = get_cfg("Base-Refined-Small.yaml")
    assert not proposals(100, cfg)
    (choice,) = proposals(280, cfg)
    assert (choice.key, choice.value) == ("MODEL.RPN.POST_NMS_TOPK_TEST", 600)
