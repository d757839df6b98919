"""Configs load, wrong keys and values are named, and each config of ours works."""

import json
import os

import pytest
import torch
from detectron2.config import get_cfg as detectron2_get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from spatialflow import add_spatialflow_config, get_cfg
from spatialflow.config import configs_root, find_config, load_genotype
from spatialflow.config.options import SUPERNET
from spatialflow.data import unregister
from spatialflow.engine import Trainer, prepare_config

FILES = sorted(
    str(path.relative_to(configs_root()))
    for path in configs_root().rglob("*.yaml")
    # Keys for others to inherit, no config of their own.
    if path.parent.name != "methods"
)
GENOTYPES = sorted(path.stem for path in (configs_root() / "genotypes").glob("*.json"))
# Reference settings of full width build in seconds; their widths and depths are given small.
NARROW = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.FPN.OUT_CHANNELS": 64,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.RETINANET.NUM_CLASSES": 2,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 2,
    "MODEL.WEIGHTS": "",
    "MODEL.SPATIALFLOW.TRUNK_PRETRAINED": False,
}


def options(keys):
    return [item for pair in keys.items() for item in pair]


def test_defaults_are_the_references():
    cfg = get_cfg()
    assert cfg.MODEL.META_ARCHITECTURE == "SpatialFlow"
    assert cfg.MODEL.SPATIALFLOW.GENOTYPE == "spatialflow"
    combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
    assert (combine.INSTANCES_CONFIDENCE_THRESH, combine.OVERLAP_THRESH) == (0.37, 0.37)
    assert (combine.STUFF_AREA_LIMIT, cfg.MODEL.SPATIALFLOW.BOX_FILL.ENABLED) == (4900, True)
    retinanet = cfg.MODEL.RETINANET
    assert (retinanet.SCORE_THRESH_TEST, retinanet.NMS_THRESH_TEST) == (0.05, 0.4)
    assert (retinanet.TOPK_CANDIDATES_TEST, cfg.TEST.DETECTIONS_PER_IMAGE) == (1000, 100)
    assert tuple(retinanet.BBOX_REG_WEIGHTS) == (1.0, 1.0, 1.0, 1.0)
    assert (retinanet.FOCAL_LOSS_ALPHA, retinanet.FOCAL_LOSS_GAMMA) == (0.25, 2.0)
    assert (retinanet.IOU_THRESHOLDS, retinanet.PRIOR_PROB) == ([0.4, 0.5], 0.01)
    assert cfg.MODEL.ANCHOR_GENERATOR.OFFSET == 0.0
    assert cfg.MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO == 0
    assert (cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT, cfg.MODEL.SEM_SEG_HEAD.NORM) == (0.25, "GN")
    assert (cfg.INPUT.FORMAT, cfg.INPUT.MASK_FORMAT) == ("RGB", "bitmask")
    assert cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    for sizes, stride in zip(cfg.MODEL.ANCHOR_GENERATOR.SIZES, (8, 16, 32, 64, 128), strict=True):
        assert sizes == pytest.approx([4 * stride * 2 ** (i / 3) for i in range(3)], rel=1e-5)


@pytest.mark.parametrize("file", [f for f in FILES if f.endswith(("_20e.yaml", "_dcn_ms.yaml"))])
def test_reference_schedule(file):
    solver = get_cfg(file).SOLVER
    assert (solver.BASE_LR, solver.IMS_PER_BATCH, solver.MOMENTUM) == (0.005, 8, 0.9)
    assert (solver.WEIGHT_DECAY, solver.WARMUP_ITERS, solver.WARMUP_FACTOR) == (1e-4, 500, 0.001)
    assert [step / solver.MAX_ITER for step in solver.STEPS] == [16 / 20, 19 / 20]
    assert (solver.GAMMA, solver.OPTIMIZER, solver.CLIP_GRADIENTS.ENABLED) == (0.1, "SGD", False)


@pytest.mark.parametrize("file", FILES)
def test_every_config_builds_its_model(file):
    cfg = get_cfg(file, options(NARROW))
    assert load_genotype(cfg.MODEL.SPATIALFLOW.GENOTYPE).name
    model = build_model(cfg).eval()
    size = model.backbone.size_divisibility
    result = model([{"image": torch.zeros(3, 2 * size, 2 * size)}])[0]
    assert result["sem_seg"].shape == (2, 2 * size, 2 * size)


@pytest.mark.parametrize(
    "file", [f for f in FILES if f.startswith(("coco/spatialflow_r", "coco/refined", "cit", "ade"))]
)
def test_the_rate_follows_the_batch(file):
    solver = get_cfg(file).SOLVER
    assert solver.BASE_LR / solver.IMS_PER_BATCH == 0.005 / 8
    assert solver.REFERENCE_WORLD_SIZE in (4, 8)
    assert max(solver.STEPS) < solver.MAX_ITER


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_every_config_trains_a_step(file, scenes, tmp_path):
    keys = {
        **NARROW,
        "MODEL.RETINANET.NUM_CLASSES": 5,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5,
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "DATASETS.TRAIN": (scenes,),
        "DATASETS.TEST": (),
        "INPUT.CROP.ENABLED": False,
        "INPUT.MIN_SIZE_TRAIN": (64,),
        "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
        "INPUT.MAX_SIZE_TRAIN": 96,
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.REFERENCE_WORLD_SIZE": 0,
        "SOLVER.MAX_ITER": 1,
        "SOLVER.STEPS": (),
        "OUTPUT_DIR": str(tmp_path),
    }
    cfg = get_cfg(file, options(keys))
    prepare_config(cfg)
    trainer = Trainer(cfg)
    before = trainer.model.stuff_head.predictor.weight.detach().clone()
    trainer.train()
    assert trainer.iter == 1
    # A first step in float16 may be left out, as its scale of the loss is found by trying.
    if not cfg.SOLVER.AMP.ENABLED:
        assert not torch.equal(trainer.model.stuff_head.predictor.weight, before)


@pytest.mark.parametrize("name", GENOTYPES)
def test_genotype_by_name_and_by_path(name, tmp_path):
    path = tmp_path / "copy.json"
    by_name = load_genotype(name)
    assert by_name.name == name
    by_name.save(path)
    assert load_genotype(str(path)) == by_name


def test_genotype_of_a_path_reaches_the_model(tmp_path, tiny_cfg):
    path = tmp_path / "own.json"
    flow = {"from": "box.2", "to": "stuff.2", "port": "gate", "operation": "conv_1x1"}
    path.write_text(json.dumps({"version": 1, "name": "own", "flows": [flow]}))
    model = build_model(tiny_cfg({"MODEL.SPATIALFLOW.GENOTYPE": str(path)}))
    assert list(model.flow_graph.flows) == ["box_2_to_stuff_2_gate"]


@pytest.mark.parametrize("name", ["absent", "", "/absent.json"])
def test_unknown_genotype(name):
    with pytest.raises(ValueError, match=r"MODEL\.SPATIALFLOW\.GENOTYPE.*parallel, .*spatialflow"):
        load_genotype(name)


def test_device_auto(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert get_cfg().MODEL.DEVICE == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert get_cfg().MODEL.DEVICE == "cuda"
    assert get_cfg(opts=["MODEL.DEVICE", "cpu"]).MODEL.DEVICE == "cpu"


@pytest.mark.parametrize(
    ("opts", "problem"),
    [
        (["MODEL.SPATIALFLOW.GENOTYP", "parallel"], "GENOTYP"),
        (["MODEL.SPATIALFLOW.BOX_FILL.THRESH", "half"], "THRESH"),
        (["SOLVER.MAX_ITER", "many"], "MAX_ITER"),
        (["SOLVER.MAX_ITER"], "KEY VALUE"),
        (["SOLVER", "1"], "SOLVER"),
        (["SOLVER.MAX_ITER", "3", "--resume"], "--resume has to come before"),
    ],
)
def test_wrong_options_are_named(opts, problem):
    with pytest.raises(ValueError, match=problem):
        get_cfg(opts=opts)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("MODEL: {SPATIALFLOW: {GENOTYP: parallel}}", "GENOTYP"),
        ("SOLVER: {MAX_ITER: many}", "MAX_ITER"),
        ("SOLVER: {MAX_ITER: 3", "own.yaml"),
        ("_BASE_: absent.yaml", "absent.yaml"),
        ("- 1", "own.yaml"),
    ],
    ids=["unknown key", "type", "not YAML", "no base", "not a mapping"],
)
def test_wrong_files_are_named(tmp_path, text, problem):
    path = tmp_path / "own.yaml"
    path.write_text(text + "\n")
    with pytest.raises(ValueError, match=problem) as error:
        get_cfg(path)
    assert "own.yaml" in str(error.value)


@pytest.mark.parametrize("enabled", [True, False])
def test_configs_that_version_0_1_saved_load(tmp_path, enabled):
    saved = get_cfg("search/demo.yaml")
    saved.SEARCH.ENABLED = enabled
    path = tmp_path / "config.yaml"
    path.write_text(saved.dump())
    models = {True: SUPERNET, False: "SpatialFlow"}
    cfg = get_cfg(path)
    assert models[enabled] == cfg.MODEL.META_ARCHITECTURE
    assert "ENABLED" not in cfg.SEARCH
    cfg = get_cfg(path, ["SEARCH.ENABLED", str(not enabled)])
    assert models[not enabled] == cfg.MODEL.META_ARCHITECTURE
    with pytest.raises(ValueError, match="SEARCH.ENABLED"):
        get_cfg(path, ["SEARCH.ENABLED", "maybe"])
    cfg = get_cfg(path, ["MODEL.META_ARCHITECTURE", "SpatialFlow"])
    assert cfg.MODEL.META_ARCHITECTURE == "SpatialFlow"
    cfg = detectron2_get_cfg()
    add_spatialflow_config(cfg)
    cfg.merge_from_file(path)
    assert "ENABLED" not in cfg.SEARCH


def test_detectron2s_users_add_all_keys_at_once():
    cfg = detectron2_get_cfg()
    add_spatialflow_config(cfg)
    cfg.merge_from_file(find_config("search/demo.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.OUTPUT_DIR = os.path.abspath(cfg.OUTPUT_DIR)
    assert cfg == get_cfg("search/demo.yaml", ["MODEL.DEVICE", "cpu"])


def test_a_file_is_looked_for_here_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("SOLVER: {MAX_ITER: 7}\n")
    assert get_cfg("own.yaml").SOLVER.MAX_ITER == 7
    assert find_config("Base-SpatialFlow.yaml") == configs_root() / "Base-SpatialFlow.yaml"
    (tmp_path / "Base-SpatialFlow.yaml").write_text("SOLVER: {MAX_ITER: 8}\n")
    assert get_cfg("Base-SpatialFlow.yaml").SOLVER.MAX_ITER == 8


def test_missing_file():
    with pytest.raises(ValueError, match=r"absent\.yaml.*configs"):
        find_config("absent.yaml")


def test_numbers_of_classes_come_from_the_data(tiny_cfg, scenes):
    cfg = tiny_cfg({"DATASETS.TRAIN": (scenes,), "DATASETS.TEST": (scenes,)})
    cfg.MODEL.RETINANET.NUM_CLASSES = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = -1
    prepare_config(cfg)
    assert (cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (5, 5)


@pytest.mark.parametrize("key", ["MODEL.RETINANET.NUM_CLASSES", "MODEL.SEM_SEG_HEAD.NUM_CLASSES"])
@pytest.mark.parametrize("other", [-1, 5])
def test_numbers_of_classes_that_do_not_fit_the_data(tiny_cfg, scenes, key, other):
    counts = {f"MODEL.{node}.NUM_CLASSES": other for node in ("RETINANET", "SEM_SEG_HEAD")}
    cfg = tiny_cfg({"DATASETS.TRAIN": (scenes,), "DATASETS.TEST": (), **counts, key: 7})
    with pytest.raises(ValueError, match=f"{key}: 7 given.* 5 "):
        prepare_config(cfg)


def test_folder_of_data(tiny_cfg, scenes, scenes_root):
    cfg = tiny_cfg(
        {
            "DATASETS.FOLDER.PATH": str(scenes_root),
            "DATASETS.FOLDER.REMAP": "supercategories",
            "DATASETS.TRAIN": ("folder_train",),
            "DATASETS.TEST": ("folder_val", "folder_all"),
            "MODEL.RETINANET.NUM_CLASSES": -1,
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES": -1,
        }
    )
    prepare_config(cfg)
    assert (cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (2, 3)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"DATASETS.FOLDER.PATH": "/absent"}, "DATASETS.FOLDER.PATH.*/absent"),
        ({"DATASETS.TRAIN": (), "DATASETS.TEST": ()}, "DATASETS.TRAIN"),
        ({"DATASETS.TRAIN": ("unheard_of",)}, "unheard_of"),
        ({"DATASETS.TRAIN": ("folder_train",)}, "DATASETS.FOLDER.PATH: none given.*folder_train"),
    ],
)
def test_data_that_is_not_there(tiny_cfg, scenes, changes, problem):
    unregister("folder_train")
    unknown = {"MODEL.RETINANET.NUM_CLASSES": -1, "DATASETS.TRAIN": (scenes,), "DATASETS.TEST": ()}
    with pytest.raises(ValueError, match=problem):
        prepare_config(tiny_cfg({**unknown, **changes}))


def rewritten_folder(scenes_root, target, change):
    """Copy a data set's folder with changed categories and segments."""
    content = json.loads((scenes_root / "panoptic.json").read_text())
    change(content)
    target.mkdir()
    for name in ("images", "panoptic"):
        (target / name).symlink_to(scenes_root / name)
    (target / "panoptic.json").write_text(json.dumps(content))
    return target


def drop_things(content):
    content["categories"] = [c for c in content["categories"] if not c["isthing"]]
    stuff = {c["id"] for c in content["categories"]}
    for annotation in content["annotations"]:
        segments = annotation["segments_info"]
        annotation["segments_info"] = [s for s in segments if s["category_id"] in stuff]


def all_things_crowd(content):
    things = {c["id"] for c in content["categories"] if c["isthing"]}
    for annotation in content["annotations"]:
        for segment in annotation["segments_info"]:
            segment["iscrowd"] = int(segment["category_id"] in things)


@pytest.fixture
def folder_cfg(scenes_root, tiny_cfg, tmp_path, monkeypatch):
    """Return a function that builds the config of a changed copy of the scenes."""
    monkeypatch.setenv("SPATIALFLOW_CACHE", str(tmp_path / "cache"))
    before = set(DatasetCatalog) | set(MetadataCatalog)

    def build(change):
        folder = rewritten_folder(scenes_root, tmp_path / "folder", change)
        names = {"DATASETS.TRAIN": ("folder_all",), "DATASETS.TEST": ("folder_all",)}
        classes = {"MODEL.RETINANET.NUM_CLASSES": -1, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": -1}
        return tiny_cfg({"DATASETS.FOLDER.PATH": str(folder), **names, **classes})

    yield build
    for name in (set(DatasetCatalog) | set(MetadataCatalog)) - before:
        unregister(name)


def test_data_without_thing_classes_is_named(folder_cfg):
    with pytest.raises(ValueError, match="'folder_all' has no thing classes"):
        prepare_config(folder_cfg(drop_things))


def test_data_of_crowds_only_names_the_filter(folder_cfg):
    cfg = folder_cfg(all_things_crowd)
    prepare_config(cfg)
    with pytest.raises(ValueError, match="FILTER_EMPTY_ANNOTATIONS"):
        Trainer.build_train_loader(cfg)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    batch = next(iter(Trainer.build_train_loader(cfg)))
    assert all(len(item["instances"]) == 0 for item in batch)


def test_a_folder_is_limited_and_split_as_the_config_says(tiny_cfg, scenes, scenes_root):
    folder = {"PATH": str(scenes_root), "LIMIT": 2, "VAL_FRACTION": 0.5, "SPLIT_SEED": 5}
    keys = {f"DATASETS.FOLDER.{key}": value for key, value in folder.items()}
    counts = {"MODEL.RETINANET.NUM_CLASSES": -1, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": -1}
    prepare_config(tiny_cfg({**keys, **counts, "DATASETS.TRAIN": ("folder_train",)}))
    assert len(DatasetCatalog.get("folder_all")) == 2
    assert dict(DatasetCatalog)["folder_val"].spec.split == ("val", 0.5, 5)
