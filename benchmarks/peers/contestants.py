"""Detectron2's Panoptic FPN, parallel branches, SpatialFlow, and SpatialFlow less one flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from darts.genotype import Flow, Genotype
from spatialflow.config import get_cfg, load_genotype
from spatialflow.engine import prepare_config
from spatialflow.modeling.backbone.trunks import build_trunk

HERE = Path(__file__).parent
DATASETS = ("nuclei", "scenes")
MAIN = ("panoptic_fpn", "parallel", "spatialflow")
WITHOUT = "without "


@BACKBONE_REGISTRY.register()
def build_peer_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build Detectron2's own pyramid P2 to P6 on the trunk that the other contestants have."""
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


def flow_name(flow: Flow) -> str:
    """Return a flow as the tables write it, such as ``box.1 -> cls.1``."""
    return f"{flow.source} -> {flow.target}"


def ablations() -> list[str]:
    """Return the names of SpatialFlow with each of its flows left out."""
    return [WITHOUT + flow_name(flow) for flow in load_genotype("spatialflow").flows]


def flow_contestants() -> list[str]:
    """Return who is needed to say what each flow is worth: the whole, none, and each left out."""
    return ["spatialflow", "parallel", *ablations()]


def run_name(dataset: str, contestant: str, rate: float, seed: int) -> str:
    """Return where a run's files are, below a folder of outputs or of results."""
    return f"{dataset}/{file_name(contestant)}-lr{rate:g}-seed{seed}"


def file_name(contestant: str) -> str:
    """Return a contestant's name as files have it."""
    return contestant.replace(" -> ", "-to-").replace(" ", "-")


def genotype(contestant: str) -> Genotype | None:
    """Return a contestant's genotype, None for the one that has none.

    Raises:
        ValueError: If there is no such contestant.
    """
    known = [*MAIN, *ablations()]
    if contestant not in known:
        raise ValueError(f"contestant {contestant!r} given, one of {known} expected")
    if contestant == "panoptic_fpn":
        return None
    if not contestant.startswith(WITHOUT):
        return load_genotype(contestant)
    whole = load_genotype("spatialflow")
    flows = tuple(f for f in whole.flows if flow_name(f) != contestant.removeprefix(WITHOUT))
    return replace(whole, name=contestant, flows=flows, provenance={})


def config(
    dataset: str,
    contestant: str,
    *,
    rate: float,
    seed: int,
    output: Path,
    nuclei: Path | None = None,
    opts: Sequence[object] = (),
) -> CfgNode:
    """Return the complete config of a run; a genotype of the comparison's own is written beside it.

    Args:
        dataset: ``nuclei`` or ``scenes``.
        contestant: One of :data:`MAIN` and :func:`ablations`.
        rate: Learning rate.
        seed: Of the run.
        output: Its folder.
        nuclei: The nuclei in COCO panoptic layout.
        opts: More KEY VALUE pairs.

    Raises:
        ValueError: If an argument is not known, or the data are not there.
    """
    if dataset not in DATASETS:
        raise ValueError(f"data set {dataset!r} given, one of {DATASETS} expected")
    design = genotype(contestant)
    output.mkdir(parents=True, exist_ok=True)
    keys: dict[str, object] = {"SEED": seed, "SOLVER.BASE_LR": rate, "OUTPUT_DIR": str(output)}
    if design is not None:
        path = (output / "genotype.json").absolute()
        design.save(path)
        keys["MODEL.SPATIALFLOW.GENOTYPE"] = str(path)
    if dataset == "nuclei":
        if nuclei is None:
            raise ValueError("--nuclei: the folder of the nuclei is needed")
        keys["DATASETS.FOLDER.PATH"] = str(nuclei)
    file = HERE / (f"{dataset}.yaml" if design else f"{dataset}_{contestant}.yaml")
    cfg = get_cfg(file, [*(item for pair in keys.items() for item in pair), *opts])
    prepare_config(cfg)
    # Panoptic FPN has its number of thing classes under another key.
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES
    cfg.freeze()
    return cfg
