import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata

from spatialflow.utils.visualize import (
    LEGIBLE_SIDE,
    NAMED,
    TITLE_HEIGHT,
    draw_panoptic,
    side_by_side,
)


@pytest.fixture
def metadata():
    return Metadata(
        name="drawn",
        thing_classes=["disc"],
        thing_colors=[(250, 0, 0)],
        stuff_classes=["things", "water"],
        stuff_colors=[(0, 0, 0), (0, 0, 250)],
    )


@pytest.fixture
def scene():
    """A grey image, ids with a thing (5) at the left and stuff (9) in the right half, segments."""
    image = np.full((60, 120, 3), 128, dtype=np.uint8)
    ids = np.zeros((60, 120), dtype=np.int32)
    ids[10:50, 10:50] = 5
    ids[:, 60:] = 9
    segments = [
        {"id": 5, "isthing": True, "category_id": 0, "score": 0.9},
        {"id": 9, "isthing": False, "category_id": 1},
    ]
    return image, ids, segments


def test_small_image_is_drawn_larger_in_the_colours_of_its_classes(scene, metadata):
    image, ids, segments = scene
    drawn = draw_panoptic(image, torch.from_numpy(ids), segments, metadata)
    assert drawn.shape == (LEGIBLE_SIDE // 2, LEGIBLE_SIDE, 3)
    assert drawn.dtype == np.uint8
    factor = LEGIBLE_SIDE / 120
    thing, stuff, nothing = (
        drawn[round(y * factor), round(x * factor)].astype(int)
        for y, x in ((15, 15), (5, 110), (5, 55))
    )
    assert thing[0] > thing[2] + 50
    assert stuff[2] > stuff[0] + 50
    assert nothing.tolist() == [128, 128, 128]


def test_large_image_keeps_its_size(metadata):
    image = np.zeros((700, 900, 3), dtype=np.uint8)
    drawn = draw_panoptic(image, np.zeros((700, 900), dtype=np.int32), [], metadata)
    assert drawn.shape == image.shape


def test_drawing_repeats_and_leaves_its_inputs_and_the_global_generator_alone(scene, metadata):
    image, ids, segments = scene
    before = ([dict(s) for s in segments], ids.copy(), np.random.get_state()[1].copy())
    pictures = [draw_panoptic(image, ids, segments, metadata) for _ in range(2)]
    np.testing.assert_array_equal(*pictures)
    assert segments == before[0]
    np.testing.assert_array_equal(ids, before[1])
    np.testing.assert_array_equal(np.random.get_state()[1], before[2])


@pytest.mark.parametrize(("count", "named"), [(NAMED, True), (NAMED + 1, False)])
def test_names_are_left_out_where_they_would_hide_segments(metadata, count, named):
    image = np.full((LEGIBLE_SIDE, LEGIBLE_SIDE, 3), 128, dtype=np.uint8)
    ids = np.zeros(image.shape[:2], dtype=np.int32)
    for i in range(count):
        top, left = 80 * (i // 8), 80 * (i % 8)
        ids[top + 10 : top + 60, left + 10 : left + 60] = i + 1
    segments = [{"id": i + 1, "isthing": True, "category_id": 0} for i in range(count)]
    renamed = Metadata(
        name="renamed",
        thing_classes=["circular"],
        thing_colors=metadata.thing_colors,
        stuff_classes=metadata.stuff_classes,
        stuff_colors=metadata.stuff_colors,
    )
    drawn, other = (draw_panoptic(image, ids, segments, data) for data in (metadata, renamed))
    assert (drawn != other).any() == named
    assert (drawn != image).any()


def test_other_size_is_refused(scene, metadata):
    image, ids, segments = scene
    with pytest.raises(ValueError, match=r"\(60, 119\).*\(60, 120\)"):
        draw_panoptic(image, ids[:, 1:], segments, metadata)


def test_pictures_of_different_sizes_share_the_cells_of_a_table():
    red, green, blue = (
        np.zeros((*size, 3), np.uint8) for size in ((50, 100), (100, 200), (80, 40))
    )
    for channel, picture in enumerate((red, green, blue)):
        picture[..., channel] = 255
    table = side_by_side([(red, green), (blue, blue)], titles=("left", "right"))
    left, right = table.shape[1] // 4, 3 * table.shape[1] // 4
    first, second = TITLE_HEIGHT + 50, TITLE_HEIGHT + 160
    assert table[first, left].tolist() == [255, 0, 0]
    assert table[first, right].tolist() == [0, 255, 0]
    assert table[second, left].tolist() == [0, 0, 255]
    # The small picture fills its cell, as the large one does, and the titles are drawn.
    for channel in (0, 1):
        others = [c for c in range(3) if c != channel]
        assert (table[..., others].max(axis=2) == 0).sum(where=table[..., channel] == 255) == 20000
    assert (table[:TITLE_HEIGHT] < 128).any()


@pytest.mark.parametrize(
    ("rows", "message"), [([], "no rows"), ([[np.zeros((2, 2, 3), np.uint8)]], "a row of 1")]
)
def test_wrong_tables_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        side_by_side(rows)
