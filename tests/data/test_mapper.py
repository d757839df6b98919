"""The mapper: image, masks, boxes and semantic map agree after every augmentation."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from PIL import Image

from spatialflow.data import PanopticMapper, panoptic_ground_truth, read_image
from spatialflow.data.augmentation import RandomCrop, ResizeShortestEdge
from spatialflow.utils.errors import DataError

SIZE = (40, 60)


def scene_ids():
    """Draw a cat (3) and a dog (4) on grass (1) below sky (2), a crowd of cats (5) and void (0)."""
    ids = np.ones(SIZE, dtype=np.int32)
    ids[:15] = 2
    ids[10:25, 5:20] = 3
    ids[20:32, 30:45] = 4
    ids[2:8, 40:55] = 5
    ids[36:, :10] = 0
    return ids


CLASSES = {1: 9, 2: 15, 3: 7, 4: 3, 5: (7, 1)}


@pytest.fixture
def one_image(write_dataset, register_folder):
    name = register_folder(write_dataset([(scene_ids(), CLASSES)]))
    return DatasetCatalog.get(name)[0]


def make_mapper(*augmentations, **options):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("tiny",)
    cfg.INPUT.FORMAT = "RGB"
    return PanopticMapper(cfg, True, augmentations=augmentations, **options)


def expected_parts(ids):
    """Return the labels, and the masks of cat and dog, of a map of ids."""
    labels = np.full(ids.shape, 255)
    for segment_id, label in {1: 1, 2: 3, 3: 0, 4: 0, 5: 0}.items():
        labels[ids == segment_id] = label
    return labels, np.stack([ids == 3, ids == 4])


def assert_parts(mapped, ids):
    labels, masks = expected_parts(ids)
    np.testing.assert_array_equal(mapped["sem_seg"].numpy(), labels)
    instances = mapped["instances"]
    assert instances.gt_classes.tolist() == [1, 0]
    np.testing.assert_array_equal(instances.gt_masks.tensor.numpy(), masks)
    for mask, box in zip(masks, instances.gt_boxes.tensor.tolist(), strict=True):
        rows, columns = np.nonzero(mask)
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_ground_truth_without_augmentation(one_image):
    mapped = make_mapper()(one_image)
    assert_parts(mapped, scene_ids())
    picture = np.asarray(Image.open(one_image["file_name"]))
    np.testing.assert_array_equal(mapped["image"].numpy().transpose(1, 2, 0), picture)
    assert mapped["image"].dtype == torch.uint8
    assert mapped["sem_seg"].dtype == torch.int64
    assert mapped["instances"].image_size == SIZE
    assert {k: mapped[k] for k in ("image_id", "height", "width")} == {
        "image_id": 1,
        "height": 40,
        "width": 60,
    }


@pytest.mark.parametrize(
    ("options", "flip"),
    [({"horizontal": True}, np.fliplr), ({"horizontal": False, "vertical": True}, np.flipud)],
)
def test_flips_move_everything_together(one_image, options, flip):
    mapped = make_mapper(T.RandomFlip(prob=1.0, **options))(one_image)
    assert_parts(mapped, flip(scene_ids()))
    picture = flip(np.asarray(Image.open(one_image["file_name"])))
    np.testing.assert_array_equal(mapped["image"].numpy().transpose(1, 2, 0), picture)


@pytest.mark.parametrize("factor", [2, 3])
def test_enlarging_repeats_pixels(one_image, factor):
    height, width = (factor * s for s in SIZE)
    mapped = make_mapper(T.Resize((height, width)))(one_image)
    assert_parts(mapped, scene_ids().repeat(factor, axis=0).repeat(factor, axis=1))
    assert mapped["image"].shape == (3, height, width)
    assert (mapped["height"], mapped["width"]) == SIZE


def test_shrinking_drops_what_vanishes(write_dataset, register_folder):
    ids = np.ones(SIZE, dtype=np.int32)
    ids[0, 0] = 3
    ids[10:30, 10:30] = 4
    (one,) = DatasetCatalog.get(register_folder(write_dataset([(ids, {1: 9, 3: 7, 4: 3})])))
    mapped = make_mapper(T.Resize((10, 15)))(one)
    assert mapped["instances"].gt_classes.tolist() == [0]
    assert set(mapped["sem_seg"].unique().tolist()) == {0, 1}


def test_a_crop_keeps_what_is_left(one_image):
    mapped = make_mapper(T.CropTransform(12, 5, 30, 20))(one_image)
    assert_parts(mapped, scene_ids()[5:25, 12:42])


def test_what_an_augmentation_pads_is_void(one_image):
    mapped = make_mapper(T.FixedSizeCrop((50, 70)))(one_image)
    ids = np.zeros((50, 70), dtype=np.int32)
    ids[: SIZE[0], : SIZE[1]] = scene_ids()
    assert_parts(mapped, ids)


def test_augmentations_see_the_semantic_map(one_image):
    seen = []

    class Look(T.Augmentation):
        def get_transform(self, image, sem_seg):
            seen.append(sem_seg)
            return T.NoOpTransform()

    make_mapper(Look())(one_image)
    np.testing.assert_array_equal(seen[0], expected_parts(scene_ids())[0])


def test_crowds_are_no_instances_but_things_in_the_semantic_map(one_image):
    mapped = make_mapper()(one_image)
    assert len(mapped["instances"]) == 2
    assert (mapped["sem_seg"][2:8, 40:55] == 0).all()


def test_ids_that_only_the_png_has_are_an_error(write_dataset, register_folder):
    classes = {k: v for k, v in CLASSES.items() if k != 4}
    (one,) = DatasetCatalog.get(register_folder(write_dataset([(scene_ids(), classes)])))
    with pytest.raises(DataError, match=r"000\.png: has segment ids that .*json does not list: 4$"):
        make_mapper()(one)


def test_segments_without_a_pixel_are_an_error(write_dataset, register_folder):
    classes = {**CLASSES, 6: 7, 7: (7, 1)}
    (one,) = DatasetCatalog.get(register_folder(write_dataset([(scene_ids(), classes)])))
    with pytest.raises(DataError, match=r"000\.png: has no pixel of segments .*json lists: 6, 7$"):
        make_mapper()(one)


def test_at_test_time_the_image_alone_is_checked(one_image):
    cfg = get_cfg()
    mapper = PanopticMapper(cfg, is_train=False, augmentations=[])
    Path(one_image["pan_seg_file_name"]).unlink()
    assert mapper(one_image)["image"].shape == (3, *SIZE)
    data = Path(one_image["file_name"]).read_bytes()
    Path(one_image["file_name"]).write_bytes(data[:-100])
    with pytest.raises(DataError, match=r"images/000\.png: is truncated: the file ends inside"):
        mapper(one_image)


def test_sizes_are_compared_as_exif_turns_the_image(write_dataset, register_folder):
    root = write_dataset([(scene_ids(), CLASSES)])
    (one,) = DatasetCatalog.get(register_folder(root))
    exif = Image.Exif()
    exif[274] = 6
    path = one["file_name"]
    Image.new("RGB", SIZE).save(path, exif=exif)  # 40 wide, 60 high, lying on its side
    assert make_mapper()(one)["image"].shape == (3, *SIZE)
    Image.new("RGB", SIZE[::-1]).save(path, exif=exif)
    with pytest.raises(DataError, match=r"is 40 x 60 px after the turn .* says 60 x 40, as before"):
        make_mapper()(one)


@pytest.mark.parametrize("count", [254, 255, 256, 257, 600])
def test_any_number_of_segments(write_dataset, register_folder, count):
    ids = np.arange(30 * 40).reshape(30, 40) % (count + 1)  # 0 is void
    root = write_dataset([(ids, dict.fromkeys(range(1, count + 1), 7))])
    (one,) = DatasetCatalog.get(register_folder(root))
    augmentations = T.RandomFlip(prob=1.0), T.Resize((60, 80)), T.FixedSizeCrop((62, 84))
    mapped = make_mapper(*augmentations)(one)
    expected = np.zeros((62, 84), dtype=int)
    expected[:60, :80] = np.fliplr(ids).repeat(2, axis=0).repeat(2, axis=1)
    assert len(mapped["instances"]) == count
    for number in (0, count // 2, count - 1):
        mask = mapped["instances"].gt_masks.tensor[number].numpy()
        np.testing.assert_array_equal(mask, expected == number + 1)
    np.testing.assert_array_equal(mapped["sem_seg"] == 255, expected == 0)


def test_images_without_things_or_without_segments(write_dataset, register_folder):
    root = write_dataset([(np.ones(SIZE, int), {1: 9}), (np.zeros(SIZE, int), {})])
    first, second = DatasetCatalog.get(register_folder(root))
    mapper = make_mapper(T.Resize((80, 120)))
    for one, label in ((first, 1), (second, 255)):
        mapped = mapper(one)
        instances = mapped["instances"]
        assert instances.gt_masks.tensor.shape == (0, 80, 120)
        assert instances.gt_boxes.tensor.shape == (0, 4)
        assert instances.gt_classes.dtype == torch.int64
        assert (mapped["sem_seg"] == label).all()


def test_configured_augmentations(one_image):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("tiny",)
    cfg.INPUT.MIN_SIZE_TRAIN = (20,)
    cfg.INPUT.MIN_SIZE_TEST = 80
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = [20, 20]
    mapper = PanopticMapper(cfg, is_train=True)
    kinds = [type(a) for a in mapper.augmentations.augs]
    assert kinds == [RandomCrop, ResizeShortestEdge, T.RandomFlip]
    mapped = mapper(one_image)
    assert mapped["image"].shape == (3, 20, 20)
    assert mapped["sem_seg"].shape == mapped["instances"].image_size == (20, 20)

    cfg.DATASETS.TRAIN = ()  # at test time no classes are needed
    mapped = PanopticMapper(cfg, is_train=False)(one_image)
    assert set(mapped) == {"file_name", "image_id", "height", "width", "image"}
    assert mapped["image"].shape == (3, 80, 120)


def test_channel_order_follows_the_config(one_image):
    cfg = get_cfg()
    cfg.INPUT.FORMAT = "BGR"
    mapped = PanopticMapper(cfg, is_train=False, augmentations=[])(one_image)
    picture = np.asarray(Image.open(one_image["file_name"]))
    np.testing.assert_array_equal(mapped["image"].numpy(), picture[..., ::-1].transpose(2, 0, 1))


def test_the_dict_is_left_as_it_was(one_image):
    before = repr(one_image)
    make_mapper(T.RandomFlip(prob=1.0))(one_image)
    assert repr(one_image) == before


def test_sizes_that_disagree_are_named(one_image):
    with pytest.raises(DataError, match=r"images/000\.png: is 60 x 40 px, but .* says 60 x 41"):
        make_mapper()({**one_image, "height": 41})
    Image.new("RGB", (8, 8)).save(one_image["pan_seg_file_name"])
    with pytest.raises(DataError, match=r"panoptic/000\.png: is 8 x 8 px, but .* says 60 x 40$"):
        make_mapper()(one_image)


def test_training_sets_have_to_agree(one_image, write_dataset, register_folder):
    register_folder(
        write_dataset([(scene_ids(), CLASSES)], folder="b"), "other", remap={"cat": "pet"}
    )
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("tiny", "other")
    with pytest.raises(ValueError, match=r"DATASETS.TRAIN: 'tiny' and 'other' have different"):
        PanopticMapper(cfg, is_train=True)
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN is empty"):
        PanopticMapper(cfg, is_train=True)


def test_a_dict_without_a_size_is_read_once_and_as_others(one_image, tmp_path, monkeypatch):
    for key in ("height", "width"):
        del one_image[key]
    mapper = make_mapper(white_level=65535)
    deep = np.full(SIZE, 32768, dtype=np.uint16)
    Image.fromarray(deep).save(one_image["file_name"])
    reads = []
    monkeypatch.setattr(
        "spatialflow.data.mapper.read_image", lambda *a, **k: reads.append(a) or read_image(*a, **k)
    )
    mapped = mapper(one_image)
    assert (mapped["height"], mapped["width"]) == SIZE
    assert len(reads) == 1
    assert panoptic_ground_truth(one_image, MetadataCatalog.get("tiny"))[0].shape == SIZE
    os.mkfifo(tmp_path / "fifo.png")
    with pytest.raises(DataError, match=r"fifo\.png: is a FIFO"):
        mapper({**one_image, "file_name": str(tmp_path / "fifo.png")})
