"""Batches are the same with any number of workers, from any position, and with bad data."""

import random
import shutil

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog

from spatialflow.data import register_panoptic
from spatialflow.data.loader import (
    MAX_ATTEMPTS,
    EvaluationLoader,
    TrainLoader,
    build_train_loader,
)
from spatialflow.data.sampler import ResumableBatchSampler
from spatialflow.utils.errors import DataError

AUGMENTED = {
    "INPUT.CROP.ENABLED": True,
    "INPUT.CROP.TYPE": "absolute",
    "INPUT.CROP.SIZE": (64, 48),
    "INPUT.MIN_SIZE_TRAIN": (48, 64, 80),
}


def draw(loader, count):
    batches = []
    for batch in loader:
        batches.append(batch)
        if len(batches) == count:
            return batches
    return batches


def same(first, second):
    """Compare batches bit by bit."""
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a["file_name"] == b["file_name"]
            assert torch.equal(a["image"], b["image"])
            assert torch.equal(a["sem_seg"], b["sem_seg"])
            assert torch.equal(a["instances"].gt_masks.tensor, b["instances"].gt_masks.tensor)
            assert torch.equal(a["instances"].gt_classes, b["instances"].gt_classes)


@pytest.fixture
def build(scenes_cfg):
    def build(changes=None):
        return build_train_loader(scenes_cfg({**AUGMENTED, **(changes or {})}), seed=5)

    return build


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_change_the_batches(build, workers):
    same(draw(build({"DATALOADER.NUM_WORKERS": workers}), 5), draw(build(), 5))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("grouping", [True, False])
def test_a_saved_position_continues_the_batches(build, workers, grouping):
    keys = {"DATALOADER.NUM_WORKERS": workers, "DATALOADER.ASPECT_RATIO_GROUPING": grouping}
    whole = draw(build(keys), 7)
    interrupted = build(keys)
    same(draw(interrupted, 3), whole[:3])
    state = interrupted.state_dict()
    assert state == {"images": 6}
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    resumed = build(keys)
    resumed.load_state_dict(state)
    same(draw(resumed, 4), whole[3:])


def test_augmentations_differ_between_epochs(build):
    batches = draw(build({"SOLVER.IMS_PER_BATCH": 6}), 4)
    views = {}
    for batch in batches:
        for image in batch:
            views.setdefault(image["file_name"], []).append(image["image"])
    for seen in views.values():
        assert not all(torch.equal(seen[0], other) for other in seen[1:])


def test_the_global_generators_are_left_alone(build):
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    draw(build(), 2)
    assert random.getstate() == expected[0]
    assert np.random.get_state()[1].tolist() == expected[1]
    assert torch.equal(torch.get_rng_state(), expected[2])


def test_sampler_by_class_frequency(build):
    keys = {
        "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
        "DATALOADER.REPEAT_THRESHOLD": 1.0,
    }
    factors = build(keys).sampler.repeat_factors
    assert (factors >= 1).all()
    assert (factors > 1).any()
    without_root = build({**keys, "DATALOADER.REPEAT_SQRT": False}).sampler.repeat_factors
    torch.testing.assert_close(without_root, factors**2)


@pytest.mark.parametrize(
    ("key", "value"), [("DATALOADER.SAMPLER_TRAIN", "Mine"), ("DATALOADER.BAD_DATA", "ignore")]
)
def test_wrong_keys_are_named(build, key, value):
    with pytest.raises(ValueError, match=f"{key}: '{value}' given"):
        build({key: value})


def mapper_of(bad):
    def mapper(item):
        if item["number"] in bad:
            raise DataError(f"{item['number']}.png: broken")
        return {"file_name": item["number"], "draw": torch.rand(()).item()}

    return mapper


def loader_of(size, bad, **options):
    sampler = ResumableBatchSampler(size, batch_size=4, seed=2)
    return TrainLoader([{"number": i} for i in range(size)], mapper_of(bad), sampler, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_stops_with_its_own_message(workers):
    with pytest.raises(DataError) as raised:
        draw(loader_of(8, {3}, num_workers=workers), 2)
    assert str(raised.value) == "3.png: broken"


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_replaced_and_counted(workers, caplog):
    loader = loader_of(8, {3, 5}, num_workers=workers, bad_data="skip")
    with caplog.at_level("WARNING"):
        batches = draw(loader, 4)
    names = [image["file_name"] for batch in batches for image in batch]
    assert len(names) == 16
    assert not {3, 5} & set(names)
    assert loader.bad_images >= 4  # each twice in two epochs, and replacements may be bad too
    told = sorted(r.message for r in caplog.records if r.name.startswith("spatialflow"))
    assert told == ["left out: 3.png: broken", "left out: 5.png: broken"]
    again = draw(loader_of(8, {3, 5}, bad_data="skip"), 4)
    assert batches == again
    # All other images are those that the sampler chose.
    whole = draw(loader_of(8, set()), 4)
    for batch, other in zip(batches, whole, strict=True):
        for image, original in zip(batch, other, strict=True):
            assert image == original or original["file_name"] in {3, 5}


def test_nothing_but_bad_images_is_an_error():
    with pytest.raises(DataError, match=f"{MAX_ATTEMPTS} bad images in a row; .*broken"):
        draw(loader_of(3, {0, 1, 2}, bad_data="skip"), 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_other_errors_keep_their_trace(workers):
    def mapper(item):
        raise KeyError("a bug")

    loader = TrainLoader(
        [{}], mapper, ResumableBatchSampler(1, batch_size=1, seed=0), num_workers=workers
    )
    with pytest.raises(KeyError, match="a bug"):
        draw(loader, 1)


def test_a_broken_file_of_a_registered_set(scenes_cfg, scenes_root, tmp_path, scenes):
    root = tmp_path / "broken"
    shutil.copytree(scenes_root, root)
    register_panoptic("broken_scenes", root / "images", root / "panoptic.json", root / "panoptic")
    victim = sorted((root / "panoptic").glob("*.png"))[2]
    victim.write_bytes(victim.read_bytes()[:200])
    keys = {"DATASETS.TRAIN": ("broken_scenes",)}
    with pytest.raises(DataError, match=victim.name):
        draw(build_train_loader(scenes_cfg(keys), seed=0), 3)
    skipping = build_train_loader(scenes_cfg({**keys, "DATALOADER.BAD_DATA": "skip"}), seed=0)
    batches = draw(skipping, 6)
    assert victim.stem not in {
        image["file_name"].split("/")[-1][:-4] for b in batches for image in b
    }
    assert skipping.bad_images >= 2
    # Defects that need no reading of images are found before training starts.
    victim.unlink()
    skipping = build_train_loader(scenes_cfg({**keys, "DATALOADER.BAD_DATA": "skip"}), seed=0)
    assert skipping.sampler.size == len(DatasetCatalog.get(scenes)) - 1
    with pytest.raises(DataError, match=victim.name):
        build_train_loader(scenes_cfg(keys), seed=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_stops_an_evaluation_with_its_own_message(
    scenes_cfg, scenes_root, tmp_path, scenes, workers
):
    root = tmp_path / "broken"
    shutil.copytree(scenes_root, root)
    register_panoptic("broken_scenes", root / "images", root / "panoptic.json", root / "panoptic")
    victim = sorted((root / "images").iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:200])
    loader = EvaluationLoader(scenes_cfg({"DATALOADER.NUM_WORKERS": workers}), "broken_scenes")
    assert len(loader) == 6
    with pytest.raises(DataError) as raised:
        list(loader)
    assert str(raised.value).startswith(f"{victim}: ")
    assert "Traceback" not in str(raised.value)
