"""Detectron2's tools on data that are registered here, and its data sets in this package."""

import json

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets.cityscapes_panoptic import load_cityscapes_panoptic
from detectron2.data.datasets.coco import load_coco_json
from detectron2.data.datasets.coco_panoptic import (
    register_coco_panoptic,
    register_coco_panoptic_separated,
)
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, SemSegEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils.file_io import PathManager
from detectron2.utils.visualizer import Visualizer
from PIL import Image

import spatialflow
from spatialflow.data import PanopticMapper, ensure_metadata, panoptic_ground_truth
from spatialflow.data.registration import view_of
from spatialflow.engine import Trainer, prepare_config
from spatialflow.evaluation import PanopticEvaluator, build_evaluator
from spatialflow.utils.errors import ConfigError, DataError
from tests.conftest import TINY
from tests.data.conftest import CATEGORIES

THINGS, STUFF = ([c for c in CATEGORIES if c["isthing"] == k] for k in (1, 0))
SIZE = (40, 60)


def picture(shift=0):
    """Draw a cat (3) and a dog (4) on grass (1) below sky (2), a crowd of cats (5) and void (0)."""
    ids = np.ones(SIZE, dtype=np.int32)
    ids[: 15 + shift] = 2
    ids[10:25, 5:20] = 3
    ids[20:32, 30:45] = 4
    ids[2:8, 40:55] = 5
    ids[36:, :10] = 0
    return ids


PICTURES = [(picture(i), {1: 9, 2: 15, 3: 7, 4: 3, 5: (7, 1)}) for i in range(3)]


@pytest.fixture
def ours(write_dataset, register_folder):
    return register_folder(write_dataset(PICTURES), name="ours")


def config(name, **keys):
    counts = {"MODEL.RETINANET.NUM_CLASSES": -1, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": -1}
    data = {"DATASETS.TRAIN": (name,), "DATASETS.TEST": (name,)}
    keys = {**TINY, **counts, **data, "INPUT.FORMAT": "RGB", **keys}
    return spatialflow.get_cfg(None, [item for pair in keys.items() for item in pair])


def semantic(one):
    return np.asarray(Image.open(PathManager.open(one["sem_seg_file_name"], "rb")))


def test_detectron2_draws_our_dicts(ours):
    metadata = MetadataCatalog.get(ours)
    for one in DatasetCatalog.get(ours):
        rgb = np.asarray(Image.open(one["file_name"]))
        drawn = Visualizer(rgb, metadata).draw_dataset_dict(one).get_image()
        assert drawn.shape == rgb.shape


def test_semantic_maps_are_those_of_training(ours, write_dataset, register_folder):
    mapper = PanopticMapper(config(ours), True, augmentations=[])
    for one in DatasetCatalog.get(ours):
        np.testing.assert_array_equal(semantic(one), mapper(one)["sem_seg"].numpy())
    with pytest.raises(DataError, match=r"panoptic.json: does not list the PNG 'no.png'"):
        PathManager.open("spatialflow://ours/sem_seg/no.png", "rb")
    merged = register_folder(write_dataset(PICTURES, folder="m"), "m", remap="supercategories")
    assert set(semantic(DatasetCatalog.get(merged)[0]).flat) == {0, 1, 2, 255}


def test_a_semantic_map_of_8_bits_has_at_most_254_classes(write_dataset, register_folder):
    for count, there in ((254, True), (255, False)):
        many = [{"id": i + 20, "name": str(i), "isthing": 0} for i in range(count - len(STUFF))]
        root = write_dataset(PICTURES[:1], [*CATEGORIES, *many], folder=str(count))
        (one,) = DatasetCatalog.get(register_folder(root, f"of {count}"))
        assert ("sem_seg_file_name" in one) == there


def test_detectron2s_mapper_gives_what_ours_gives(ours):
    mine = PanopticMapper(config(ours), True, augmentations=[])
    theirs = DatasetMapper(is_train=True, augmentations=[], image_format="RGB")
    for one in DatasetCatalog.get(ours):
        a, b = mine(one), theirs(one)
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["sem_seg"], b["sem_seg"])
        assert torch.equal(a["instances"].gt_classes, b["instances"].gt_classes)
        assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)


def test_masks_for_detectron2s_models_come_from_the_derived_json(ours):
    metadata = MetadataCatalog.get(ours)
    dicts = load_coco_json(metadata.json_file, metadata.image_root, "with_masks")
    assert [len(one["annotations"]) for one in dicts] == [3, 3, 3]
    theirs = DatasetMapper(
        is_train=True,
        augmentations=[T.NoOpTransform()],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
    )
    masks = theirs(dicts[0])["instances"].gt_masks.tensor.numpy()
    np.testing.assert_array_equal(masks, [picture() == 3, picture() == 4])


def as_outputs(one, metadata):
    """The truth as the outputs of a model."""
    ids, segments = panoptic_ground_truth(one, metadata)
    things = [s for s in segments if s["isthing"]]
    found = Instances(SIZE)
    found.pred_masks = torch.stack([ids == s["id"] for s in things])
    found.pred_boxes = Boxes(torch.tensor([[5.0, 10, 20, 25], [30, 20, 45, 32]]))
    found.pred_classes = torch.tensor([s["category_id"] for s in things])
    found.scores = torch.ones(len(things))
    labels = torch.from_numpy(np.where(semantic(one) == 255, 0, semantic(one)).astype(np.int64))
    scores = torch.nn.functional.one_hot(labels, len(metadata.stuff_classes)).permute(2, 0, 1)
    return {"panoptic_seg": (ids, segments), "instances": found, "sem_seg": scores}


def test_detectron2s_evaluators_know_our_truth(ours, tmp_path):
    metadata, folder = MetadataCatalog.get(ours), str(tmp_path / "out")
    semantics = SemSegEvaluator(
        ours,
        output_dir=folder,
        # Detectron2's own reader needs NumPy 1.
        sem_seg_loading_fn=lambda f, dtype: np.array(Image.open(PathManager.open(f, "rb")), dtype),
    )
    instances = COCOEvaluator(ours, ("bbox", "segm"), use_fast_impl=False, output_dir=folder)
    panoptic = COCOPanopticEvaluator(ours, folder)
    results = {}
    for evaluator in (semantics, instances, panoptic):
        evaluator.reset()
        for one in DatasetCatalog.get(ours):
            evaluator.process([one], [as_outputs(one, metadata)])
        results |= evaluator.evaluate()
    assert results["sem_seg"]["IoU-grass"] == results["sem_seg"]["IoU-things"] == 100
    assert [results[k]["AP"] for k in ("bbox", "segm")] == pytest.approx([100, 100])
    assert results["panoptic_seg"]["PQ"] == 100


def numbers(categories, first):
    return {c["id"]: i for i, c in enumerate(categories, start=first)}


def standard(things=THINGS, stuff=STUFF, first=None):
    """Metadata that number things and stuff jointly, in the order of two lists."""
    both = [*things, *stuff] if first is None else [*stuff, *things]
    fields = {f"{k}_classes": [c["name"] for c in both] for k in ("thing", "stuff")}
    fields |= {f"{k}_colors": [c["color"] for c in both] for k in ("thing", "stuff")}
    fields["thing_dataset_id_to_contiguous_id"] = numbers(things, both.index(things[0]))
    fields["stuff_dataset_id_to_contiguous_id"] = numbers(stuff, both.index(stuff[0]))
    return fields


def separated():
    """Metadata that number things from 0 and stuff from 1, 0 being "things"."""
    return {
        "thing_classes": [c["name"] for c in THINGS],
        "stuff_classes": ["things", *(c["name"] for c in STUFF)],
        "thing_dataset_id_to_contiguous_id": numbers(THINGS, 0),
        "stuff_dataset_id_to_contiguous_id": {**numbers(STUFF, 1), 0: 0},
    }


KINDS = {
    "standard": standard(),
    "turned around": standard(THINGS[::-1], STUFF[::-1]),
    "stuff first": standard(first="stuff"),
    "separated": separated(),
}


@pytest.fixture(params=KINDS)
def theirs(request, write_dataset):
    """The name of a data set that Detectron2 registered, with JPEGs as it expects."""
    root = write_dataset(PICTURES, folder="theirs")
    content = json.loads((root / "panoptic.json").read_text())
    for image in content["images"]:
        path = root / "images" / image["file_name"]
        Image.open(path).save(path.with_suffix(".jpg"), quality=100, subsampling=0)
        path.unlink()
        image["file_name"] = path.with_suffix(".jpg").name
    (root / "panoptic.json").write_text(json.dumps(content))
    metadata = KINDS[request.param]
    places = [str(root / name) for name in ("images", "panoptic", "panoptic.json")]
    if request.param != "separated":
        register_coco_panoptic("theirs", metadata, *places)
        return "theirs"
    register_coco_panoptic_separated("theirs", metadata, *places, str(root / "no"), "no.json")
    return "theirs_separated"


def test_data_of_detectron2_are_ours(theirs, tmp_path):
    cfg = config(theirs)
    prepare_config(cfg)
    (name,) = cfg.DATASETS.TRAIN
    assert cfg.DATASETS.TEST == (name,) == (f"{theirs}@spatialflow",)
    assert (cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (2, 4)
    metadata, registered = MetadataCatalog.get(name), MetadataCatalog.get(theirs)
    dicts = DatasetCatalog.get(name)
    for kind in ("thing", "stuff"):
        ids = registered.get(f"{kind}_dataset_id_to_contiguous_id")
        known = {c["id"]: c["name"] for c in CATEGORIES if c["isthing"] == (kind == "thing")}
        own = metadata.get(f"{kind}_dataset_id_to_contiguous_id")
        assert [i for i in sorted(own, key=own.get) if i] == [
            i for i in sorted(ids, key=ids.get) if i
        ]
        classes = metadata.get(f"{kind}_classes")
        assert {i: classes[own[i]] for i in known} == known
    assert ensure_metadata(theirs) is registered
    mapper = PanopticMapper(cfg, True, augmentations=[])
    assert mapper(dicts[0])["instances"].gt_classes.unique().numel() == 2
    evaluator = build_evaluator(cfg, theirs, tmp_path / "found")
    evaluator.reset()
    for one in dicts:
        evaluator.process([one], [as_outputs(one, metadata)])
    results = evaluator.evaluate()
    assert results["panoptic_seg"]["PQ"] == 100
    assert [results[k]["AP"] for k in ("bbox", "segm")] == pytest.approx([100, 100])
    prepare_config(cfg)  # of a saved config
    assert list(cfg.DATASETS.TRAIN) == [name]


@pytest.mark.parametrize("theirs", ["standard", "turned around", "stuff first"], indirect=True)
def test_dicts_of_detectron2_are_mapped_and_evaluated_by_their_numbers(theirs):
    raw, own = DatasetCatalog.get(theirs), DatasetCatalog.get(view_of(theirs))
    mappers = [PanopticMapper(config(n), True, augmentations=[]) for n in (theirs, view_of(theirs))]
    evaluator = PanopticEvaluator(theirs)
    for one, other in zip(raw, own, strict=True):
        mapped = [m(d) for m, d in zip(mappers, (one, other), strict=True)]
        assert torch.equal(mapped[0]["sem_seg"], mapped[1]["sem_seg"])
        found = [m["instances"] for m in mapped]
        assert torch.equal(found[0].gt_classes, found[1].gt_classes)
        assert torch.equal(found[0].gt_masks.tensor, found[1].gt_masks.tensor)
        truth = panoptic_ground_truth(one, MetadataCatalog.get(theirs))
        evaluator.process([one], [{"panoptic_seg": truth}])
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == 100


@pytest.mark.parametrize("theirs", ["standard"], indirect=True)
def test_a_training_on_data_of_detectron2(theirs, tmp_path):
    """The config is not prepared; the trainer knows the data all the same."""
    counts = {"MODEL.RETINANET.NUM_CLASSES": 2, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4}
    solver = {"SOLVER.MAX_ITER": 1, "SOLVER.IMS_PER_BATCH": 2, "SEED": 1}
    cfg = config(theirs, OUTPUT_DIR=str(tmp_path / "run"), **counts, **solver)
    Trainer(cfg).train()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0 <= results["panoptic_seg"]["PQ"] <= 100


def test_cityscapes_of_detectron2(write_dataset):
    root = write_dataset(PICTURES[:1])
    content = json.loads((root / "panoptic.json").read_text())
    content["images"][0] |= {"id": "ulm_1_2", "file_name": "ulm_1_2_gtFine_leftImg8bit.png"}
    content["annotations"][0]["image_id"] = "ulm_1_2"
    (root / "panoptic.json").write_text(json.dumps(content))
    images, labels = root / "leftImg8bit" / "ulm", root / "gtFine" / "ulm"
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    (root / "images" / "000.png").rename(images / "ulm_1_2_leftImg8bit.png")
    (labels / "ulm_1_2_gtFine_labelTrainIds.png").touch()
    metadata = standard(first="stuff")
    places = {
        "image_root": str(root / "leftImg8bit"),
        "panoptic_root": str(root / "panoptic"),
        "panoptic_json": str(root / "panoptic.json"),
    }
    MetadataCatalog.get("city").set(
        **metadata, **places, evaluator_type="cityscapes_panoptic_seg", label_divisor=1000
    )
    DatasetCatalog.register("city", lambda: load_cityscapes_panoptic(*places.values(), metadata))
    (one,) = DatasetCatalog.get(view_of("city"))
    assert one["file_name"].endswith("leftImg8bit/ulm/ulm_1_2_leftImg8bit.png")
    assert [s["category_id"] for s in one["segments_info"]] == [1, 3, 0, 1, 0]


@pytest.mark.parametrize(
    "name",
    [
        "coco_2017_train",
        "keypoints_coco_2017_val",
        "coco_2017_train_panoptic_stuffonly",
        "ade20k_sem_seg_train",
        "cityscapes_fine_instance_seg_val",
        "cityscapes_fine_sem_seg_val",
        "lvis_v1_val",
        "voc_2007_test",
    ],
)
def test_data_that_are_not_panoptic_are_refused(name, tmp_path):
    message = (
        f"data set '{name}' is not panoptic: its metadata have no (image_root, )?panoptic_json"
    )
    with pytest.raises(ConfigError, match=message):
        build_evaluator(get_cfg(), name, tmp_path)
    if "stuff" not in name:
        with pytest.raises(ConfigError, match=message):
            prepare_config(config(name))


def test_metadata_that_contradict_the_json_are_refused(write_dataset):
    root = write_dataset(PICTURES[:1])
    places = [str(root / name) for name in ("images", "panoptic", "panoptic.json")]
    for name, metadata, message in (
        ("short", standard(stuff=STUFF[:2]), "category 15 'sky' is stuff, but not listed in the"),
        ("swapped", standard(THINGS[:1], [*STUFF, THINGS[1]]), "category 3 'dog' is a thing, but"),
        ("nameless", {**standard(), "stuff_classes": []}, "number 2 for category 9, but 0 names"),
    ):
        register_coco_panoptic(name, metadata, *places)
        with pytest.raises((ConfigError, DataError), match=message):
            prepare_config(config(name))
