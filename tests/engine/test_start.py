"""What a run starts from: weights of other networks, its own data, and what is refused."""

import argparse
import logging
import pickle

import pytest
import torch
from detectron2.config import get_cfg as detectron2_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from spatialflow.data import ensure_metadata, generate_scenes
from spatialflow.engine import Checkpointer, Predictor, Trainer, prepare_config, setup
from spatialflow.search.trainer import SearchTrainer
from tests.conftest import TINY
from tests.search.test_search import SEARCH

MIXED_TRUNK = {"MODEL.RESNETS.NORM": "EvalBN", "MODEL.RESNETS.DEPTH": 50}


# --- Frozen trunks -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trunk", "norm"), [("resnet", "EvalBN"), ("mobilenet_v2", "BN"), ("timm:resnet18", "BN")]
)
def test_a_frozen_trunk_of_random_weights_is_refused(scenes_cfg, trunk, norm):
    keys = {
        "MODEL.SPATIALFLOW.TRUNK": trunk,
        "MODEL.SPATIALFLOW.TRUNK_PRETRAINED": trunk == "resnet",  # a ResNet has no such weights
        "MODEL.RESNETS.NORM": norm,
        "MODEL.BACKBONE.FREEZE_AT": 2,
    }
    trainer = Trainer(scenes_cfg(keys))
    with pytest.raises(ValueError, match=rf"MODEL.BACKBONE.FREEZE_AT: 2 given.*'{trunk}' starts"):
        trainer.resume_or_load(resume=True)
    Trainer(scenes_cfg({**keys, "MODEL.BACKBONE.FREEZE_AT": 0})).resume_or_load(resume=True)


def test_a_frozen_trunk_with_weights_trains(scenes_cfg, tmp_path):
    frozen = {"MODEL.BACKBONE.FREEZE_AT": 2}
    pretrained = {"MODEL.SPATIALFLOW.TRUNK": "mobilenet_v2", "MODEL.RESNETS.NORM": "BN"}
    Trainer(scenes_cfg({**frozen, **pretrained})).resume_or_load(resume=False)
    weights = tmp_path / "weights.pth"
    torch.save({"model": build_model(scenes_cfg()).state_dict()}, weights)
    Trainer(scenes_cfg({**frozen, "MODEL.WEIGHTS": str(weights)})).resume_or_load(resume=False)
    search = {**frozen, **SEARCH, "SEARCH.SPACE.OPERATIONS": ["identity", "conv_3x3"]}
    with pytest.raises(ValueError, match="FREEZE_AT: 2 given"):
        SearchTrainer(scenes_cfg(search)).resume_or_load(resume=False)
    SearchTrainer(scenes_cfg({**search, "SEARCH.WEIGHTS": str(weights)})).resume_or_load(
        resume=False
    )


def test_weights_without_the_frozen_stages_are_refused(scenes_cfg, tmp_path):
    """As of another trunk, whose pyramid fits."""
    state = build_model(scenes_cfg()).state_dict()
    weights = tmp_path / "weights.pth"
    torch.save({"model": {n: v for n, v in state.items() if ".stem." not in n}}, weights)
    keys = {"MODEL.WEIGHTS": str(weights)}
    Trainer(scenes_cfg(keys)).resume_or_load(resume=False)
    with pytest.raises(ValueError, match=r"FREEZE_AT would keep .*backbone.bottom_up.stem"):
        Trainer(scenes_cfg({**keys, "MODEL.BACKBONE.FREEZE_AT": 1})).resume_or_load(resume=False)


def test_an_evaluation_without_weights_or_checkpoint_is_refused(scenes_cfg, tmp_path):
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty: an evaluation needs"):
        setup(arguments({"OUTPUT_DIR": tmp_path}, resume=True, eval_only=True))


def test_a_resumed_training_needs_no_pretrained_weights(scenes_cfg, monkeypatch):
    """They may be out of reach by then."""
    keys = {"MODEL.SPATIALFLOW.TRUNK": "mobilenet_v2", "MODEL.RESNETS.NORM": "BN"}
    cfg = scenes_cfg({**keys, "SOLVER.MAX_ITER": 1, "DATASETS.TEST": ()})
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    monkeypatch.setattr("spatialflow.modeling.backbone.trunks.load_in_order", None)
    again = Trainer(cfg, from_checkpoint=True)
    again.resume_or_load(resume=True)
    assert again.start_iter == 1
    with pytest.raises(TypeError):
        Trainer(cfg)


# --- Weights -------------------------------------------------------------------------------------


def test_a_prediction_needs_weights(tiny_cfg):
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty: a prediction needs"):
        Predictor(tiny_cfg())


def arguments(keys, **options):
    words = [str(word) for pair in keys.items() for word in pair]
    given = {"config_file": "", "resume": False, "eval_only": False, **options}
    return argparse.Namespace(opts=words, num_gpus=1, **given)


def test_weights_may_ask_for_matching_heuristics(scenes_cfg, scenes, tmp_path):
    """Detectron2's own form, for files whose names lack the beginning."""
    source = build_model(scenes_cfg({"SEED": 7}))
    path = tmp_path / "trunk.pth"
    torch.save(source.backbone.bottom_up.state_dict(), path)
    keys = {**TINY, "DATASETS.TRAIN": (scenes,), "DATASETS.TEST": (scenes,)}
    keys |= {"OUTPUT_DIR": tmp_path / "run", "MODEL.WEIGHTS": f"{path}?matching_heuristics=True"}
    keys |= {"MODEL.RETINANET.NUM_CLASSES": 5, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5}
    cfg = setup(arguments(keys))
    model = build_model(cfg)
    Checkpointer(model).load(cfg.MODEL.WEIGHTS, checkpointables=[])
    for name, value in source.backbone.bottom_up.state_dict().items():
        assert torch.equal(model.backbone.bottom_up.state_dict()[name], value), name
    with pytest.raises(ValueError, match="MODEL.WEIGHTS: no such file: '/.*/absent.pth[?]"):
        setup(arguments({**keys, "MODEL.WEIGHTS": "absent.pth?matching_heuristics=True"}))


def zoo_network(architecture):
    """A network of Detectron2's zoo, narrow enough for a test."""
    cfg = detectron2_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 2
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.SEM_SEG_HEAD.NAME = "SemSegFPNHead"
    return build_model(cfg)


@pytest.mark.parametrize("architecture", ["GeneralizedRCNN", "PanopticFPN"])
@pytest.mark.parametrize("form", [".pkl", ".pth?matching_heuristics=True"])
def test_a_network_of_the_zoo_is_a_start(scenes_cfg, tmp_path, caplog, architecture, form):
    """Trunk, pyramid and mask head are taken and named; predictors of other classes are not."""
    theirs = {n: v.clone() for n, v in zoo_network(architecture).state_dict().items()}
    suffix, query, _ = form.partition("?")
    path = tmp_path / f"model{suffix}"
    if suffix == ".pkl":
        arrays = {n: v.numpy() for n, v in theirs.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    else:
        torch.save({"model": theirs}, path)
    wide = {"MODEL.RESNETS.DEPTH": 50, "MODEL.RESNETS.WIDTH_PER_GROUP": 4}
    cfg = scenes_cfg({**wide, "MODEL.WEIGHTS": f"{path}{query}{form.partition('?')[2]}"})
    trainer = Trainer(cfg)
    with caplog.at_level(logging.INFO):
        trainer.resume_or_load(resume=False)
    state = trainer.model.state_dict()
    same = {n: n for n in theirs if n in state and n.startswith("backbone.")}
    same |= {
        f"roi_heads.mask_head.mask_fcn{i}.weight": f"mask_head.fcn.mask_fcn{i}.weight"
        for i in (1, 2)
    }
    same["roi_heads.mask_head.deconv.bias"] = "mask_head.fcn.deconv.bias"
    assert {n.split(".")[1] for n in same if n.startswith("backbone.")} >= {
        *("bottom_up", "fpn_lateral3", "fpn_output5")
    }
    for their_name, name in same.items():
        assert torch.equal(state[name], theirs[their_name]), name
    assert not torch.equal(
        state["mask_head.fcn.predictor.weight"][:5],
        theirs["roi_heads.mask_head.predictor.weight"][:5],
    )
    (message,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Taken from")]
    assert "trunk (260 tensors)" in message  # 52 convolutions and their norms
    assert "pyramid (12 tensors)" in message
    assert "mask head (6 tensors)" in message
    assert "box head" not in message


# --- Several configs in one process --------------------------------------------------------------


@pytest.fixture
def folder_cfg(tiny_cfg, scenes):
    def build(folder, **changes):
        keys = {
            "DATASETS.FOLDER.PATH": str(folder),
            "DATASETS.TRAIN": ("folder_train",),
            "DATASETS.TEST": ("folder_val",),
            "MODEL.RETINANET.NUM_CLASSES": -1,
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES": -1,
        }
        return tiny_cfg({**keys, **changes})

    return build


def folders_of(cfg):
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    return {image["file_name"].rsplit("/", 2)[0] for n in names for image in DatasetCatalog.get(n)}


def test_two_configs_of_one_process_have_their_own_folders(folder_cfg, scenes_root, tmp_path):
    other_root = tmp_path / "other"
    generate_scenes(other_root, count=5, seed=8, size=(64, 64))
    first, second = folder_cfg(scenes_root), folder_cfg(other_root)
    prepare_config(first)
    prepare_config(second)
    assert first.DATASETS.TEST == ("folder_val",)
    (name,) = second.DATASETS.TEST
    assert name.startswith("folder_val@")
    assert folders_of(first) == {str(scenes_root)}
    assert folders_of(second) == {str(other_root)}
    assert len(ensure_metadata(name).thing_classes) == second.MODEL.RETINANET.NUM_CLASSES
    # The same config again, and the saved one, have the same names.
    again = folder_cfg(other_root)
    prepare_config(again)
    prepare_config(second)
    assert again.DATASETS.TEST == second.DATASETS.TEST == (name,)


def test_a_config_without_a_folder_does_not_get_that_of_another(folder_cfg, scenes_root):
    prepare_config(folder_cfg(scenes_root))
    with pytest.raises(ValueError, match="DATASETS.FOLDER.PATH: none given"):
        prepare_config(folder_cfg(""))


def test_a_saved_name_is_another_processes_matter(folder_cfg, scenes_root):
    cfg = folder_cfg(scenes_root, **{"DATASETS.TEST": ("folder_val@12345678",)})
    prepare_config(cfg)
    assert cfg.DATASETS.TEST == ("folder_val",)


def test_two_configs_of_one_process_have_their_own_scenes(tiny_cfg, scenes):
    found = []
    for count in (2, 3):
        keys = {
            "DATASETS.TRAIN": ("scenes_train",),
            "DATASETS.TEST": ("scenes_val",),
            "DATASETS.SCENES.TRAIN": count,
            "DATASETS.SCENES.VAL": 1,
            "DATASETS.SCENES.SIZE": 64,
            "MODEL.RETINANET.NUM_CLASSES": -1,
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES": -1,
        }
        cfg = tiny_cfg(keys)
        prepare_config(cfg)
        found.append(len(DatasetCatalog.get(cfg.DATASETS.TRAIN[0])))
        assert cfg.DATASETS.TEST == ("scenes_val",)
    assert found == [2, 3]
