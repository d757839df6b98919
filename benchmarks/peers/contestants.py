"""The networks that are compared, and their configs.

These are Detectron2's Panoptic FPN, parallel branches, SpatialFlow, SpatialFlow less one flow, the
refined SpatialFlow without and with flows, and it with one change more or less.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from darts.genotype import Genotype
from spatialflow.analysis.ablations import file_name, without_each_flow
from spatialflow.config import get_cfg, load_genotype
from spatialflow.engine import prepare_config
from spatialflow.modeling.backbone.trunks import build_trunk
from spatialflow.utils.errors import ConfigError

HERE = Path(__file__).parent
DATASETS = ("nuclei", "scenes", "facades")
FOLDERS = ("nuclei", "facades")
"""Data sets that are a folder in COCO panoptic layout; scenes are generated."""
MAIN = ("panoptic_fpn", "parallel", "spatialflow")
REFINED_FLOWS = {
    "refined": ("parallel", []),
    "refined_flows": ("refined_flows", []),
    "refined_zero": ("refined_flows", ["MODEL.SPATIALFLOW.FLOW_INIT", "zero"]),
    "refined_gates": ("refined_gates", []),
    "refined_cascade": ("task_cascade", ["MODEL.SPATIALFLOW.FLOW_INIT", "zero"]),
    "refined_attention": ("proposal_attention", []),
}
"""Refined contestant → its genotype and its keys."""

CHANGES: dict[str, dict[str, tuple[object, object]]] = {
    "residual": {"MODEL.SPATIALFLOW.RESIDUAL": ("none", "rms")},
    "regions": {"MODEL.SPATIALFLOW.REGIONS.ENABLED": (False, True)},
    "pyramid": {"MODEL.SPATIALFLOW.POOL_FROM": ("branch", "pyramid")},
    "P2": {
        "MODEL.FPN.IN_FEATURES": ([], ["res2", "res3", "res4", "res5"]),
        "MODEL.SPATIALFLOW.MASK_IN_FEATURES": (["p3", "p4", "p5"], ["p2", "p3", "p4", "p5"]),
        "MODEL.ROI_HEADS.IN_FEATURES": (["p3", "p4", "p5"], ["p2", "p3", "p4", "p5"]),
        "MODEL.SPATIALFLOW.MASK_CANONICAL_BOX_SIZE": (56, 224),
    },
    "mask convolutions": {"MODEL.ROI_MASK_HEAD.NUM_CONV": (2, 4)},
    "short towers": {"MODEL.RETINANET.NUM_CONVS": (4, 2)},
    "ATSS": {"MODEL.SPATIALFLOW.ASSIGNMENT": ("iou", "atss")},
    "average": {"SOLVER.EMA.ENABLED": (False, True)},
}
"""What refines the network: name → key → its value without and with the change."""

TRIED: dict[str, dict[str, object]] = {
    "DIoU": {
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "diou",
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 4.0,
    },
}
"""What was tried on the refined network and not kept: name → key → its value."""

ALONE, LESS, MORE = "parallel with ", "refined without ", "refined with "


@BACKBONE_REGISTRY.register()
def build_peer_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build Detectron2's pyramid P2 to P6 on the trunk that the other contestants use."""
    trunk = build_trunk(cfg.MODEL.SPATIALFLOW.TRUNK, pretrained=not cfg.MODEL.WEIGHTS)
    trunk.freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
    return FPN(
        bottom_up=trunk,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def flow_contestants() -> list[str]:
    """Return the contestants that measure the worth of flows: all, none, and all but each one."""
    return ["spatialflow", "parallel", *without_each_flow(load_genotype("spatialflow"))]


def refined() -> dict[str, list[object]]:
    """Return the contestants on the refined configs, with their keys."""
    return {**{name: keys for name, (_, keys) in REFINED_FLOWS.items()}, **changed()}


def changed() -> dict[str, list[object]]:
    """Return the contestants with one change alone, without one, and with one more, with keys."""
    without = {
        name: [item for key, (off, _) in keys.items() for item in (key, off)]
        for name, keys in CHANGES.items()
    }
    return {
        **{LESS + name: off for name, off in without.items()},
        **{
            ALONE + name: [item for other in CHANGES if other != name for item in without[other]]
            for name in CHANGES
        },
        **{
            MORE + name: [item for pair in keys.items() for item in pair]
            for name, keys in TRIED.items()
        },
    }


def run_name(dataset: str, contestant: str, rate: float, seed: int) -> str:
    """Return the path of a run's files, below the folder of outputs or of results."""
    return f"{dataset}/{file_name(contestant)}-lr{rate:g}-seed{seed}"


def genotype(contestant: str) -> Genotype | None:
    """Return the genotype of a contestant, None for Panoptic FPN.

    Raises:
        ConfigError: If there is no such contestant.
    """
    whole = load_genotype("spatialflow")
    known = {
        "panoptic_fpn": None,
        "parallel": load_genotype("parallel"),
        "spatialflow": whole,
        **without_each_flow(whole),
        **{name: load_genotype(flows) for name, (flows, _) in REFINED_FLOWS.items()},
        **dict.fromkeys(changed(), load_genotype("parallel")),
    }
    if contestant not in known:
        raise ConfigError(f"contestant {contestant!r} given, one of {list(known)} expected")
    return known[contestant]


def config(
    dataset: str,
    contestant: str,
    *,
    rate: float,
    seed: int,
    output: Path,
    folders: Mapping[str, Path | None] | None = None,
    opts: Sequence[object] = (),
) -> CfgNode:
    """Return the complete config of a run, and write its genotype to its folder.

    Args:
        dataset: One of :data:`DATASETS`.
        contestant: One of :data:`MAIN`, :func:`flow_contestants`, :data:`REFINED_FLOWS` and
            :func:`changed`.
        rate: Learning rate.
        seed: Seed of the run.
        output: Folder of the run.
        folders: Data set of :data:`FOLDERS` → its folder.
        opts: KEY VALUE pairs that come last.

    Raises:
        ConfigError: If the data set or the contestant is not known, or its folder is not given.
    """
    if dataset not in DATASETS:
        raise ConfigError(f"data set {dataset!r} given, one of {DATASETS} expected")
    design = genotype(contestant)
    output.mkdir(parents=True, exist_ok=True)
    keys: dict[str, object] = {"SEED": seed, "SOLVER.BASE_LR": rate, "OUTPUT_DIR": str(output)}
    if design is not None:
        path = (output / "genotype.json").absolute()
        design.save(path)
        keys["MODEL.SPATIALFLOW.GENOTYPE"] = str(path)
    if dataset in FOLDERS:
        keys["DATASETS.FOLDER.PATH"] = str(folder_of(dataset, folders))
    own = refined().get(contestant)
    kind = "_panoptic_fpn" if design is None else "" if own is None else "_refined"
    given = [item for pair in keys.items() for item in pair]
    cfg = get_cfg(HERE / f"{dataset}{kind}.yaml", [*given, *(own or []), *opts])
    prepare_config(cfg)
    # Panoptic FPN reads its number of thing classes from another key.
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES
    cfg.freeze()
    return cfg


def given_folders(args: argparse.Namespace) -> dict[str, Path | None]:
    """Return the folder of each data set of :data:`FOLDERS`, None where it is not given."""
    return {name: getattr(args, name) for name in FOLDERS}


def folder_of(dataset: str, folders: Mapping[str, Path | None] | None) -> Path:
    """Return the folder of a data set.

    Raises:
        ConfigError: If it is not given.
    """
    folder = (folders or {}).get(dataset)
    if folder is None:
        raise ConfigError(f"--{dataset}: the folder of the {dataset} is needed")
    return folder
