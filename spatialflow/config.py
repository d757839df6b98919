"""Configs: the keys that SpatialFlow adds to Detectron2's, and the one way to read a config."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_get_cfg

from darts.genotype import Genotype
from spatialflow.heads.attention import OPTIONS, SITES
from spatialflow.search.config import add_search_config


def add_spatialflow_config(cfg: CfgNode) -> None:
    """Add SpatialFlow's keys, with their defaults, to a Detectron2 config."""
    own = cfg.MODEL.SPATIALFLOW = CfgNode()
    # Name of a file in configs/genotypes, or a path to a JSON file.
    own.GENOTYPE = "spatialflow"
    # Attention of the stuff head: "from_genotype", or in the place of the genotype's choices
    # "<site>=<option>", such as "merged=channel" or "levels=spatial,merged=criss_cross" (sites and
    # options: spatialflow/heads/attention.py).
    own.STUFF_ATTENTION = "from_genotype"
    # "resnet" (MODEL.RESNETS.*), "timm:<model>", "efficientnet_lite0" or "mobilenet_v2".
    own.TRUNK = "resnet"
    # Whether the last two start from their packages' weights when MODEL.WEIGHTS is empty.
    own.TRUNK_PRETRAINED = True
    # Levels of the mask branch. Boxes with sqrt(area) of CANONICAL_BOX_SIZE pixels are pooled from
    # CANONICAL_LEVEL, twice the size one level up.
    own.MASK_IN_FEATURES = ["p3", "p4", "p5"]
    own.MASK_CANONICAL_BOX_SIZE = 112
    own.MASK_CANONICAL_LEVEL = 4
    # Overlap at which a proposal learns the mask of a ground truth.
    own.MASK_PROPOSAL_IOU = 0.5
    # What the fusion takes for stuff: "labels" at the network's scale, resized by nearest
    # neighbour (the reference), or the argmax of bilinear "logits" at the original size.
    own.STUFF_FROM = "labels"
    # Denominators of the losses: "per_process" (the reference) or "global".
    own.LOSS_NORMALIZER = "per_process"
    # Detections whose box is still empty to at least THRESH after fusion take the empty pixels.
    own.BOX_FILL = CfgNode({"ENABLED": False, "THRESH": 0.5})

    # One folder in COCO panoptic layout (images/, panoptic/, panoptic.json), registered as
    # "folder_train" and "folder_val" (a split by hash of the image names) and "folder_all".
    folder = cfg.DATASETS.FOLDER = CfgNode()
    folder.PATH = ""
    # "" or "supercategories": merge classes by the JSON's supercategory field.
    folder.REMAP = ""
    folder.VAL_FRACTION = 0.2
    folder.SPLIT_SEED = 0
    # Use the first images only; 0 for all.
    folder.LIMIT = 0

    # Generated scenes, registered as "scenes_train" and "scenes_val" where a config names them.
    scenes = cfg.DATASETS.SCENES = CfgNode()
    scenes.TRAIN = 400
    scenes.VAL = 40
    scenes.SIZE = 192

    # "SGD" or "AdamW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Factor of the learning rate of the backbone's trunk.
    cfg.SOLVER.TRUNK_MULTIPLIER = 1.0
    # Batches of IMS_PER_BATCH images whose gradients are averaged into one step.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # "bfloat16" or "float16", where SOLVER.AMP.ENABLED.
    cfg.SOLVER.AMP.DTYPE = "bfloat16"
    # The same of evaluation and prediction.
    cfg.TEST.AMP = CfgNode({"ENABLED": False, "DTYPE": "bfloat16"})
    # A step whose loss or gradient is NaN or infinite: "stop" the training, or "skip" the step.
    cfg.SOLVER.NON_FINITE = "stop"

    # An image with a broken or contradictory file: "stop" the training, or "skip" the image.
    cfg.DATALOADER.BAD_DATA = "stop"


def get_cfg(
    config_file: str | os.PathLike[str] | None = None, opts: Sequence[object] = ()
) -> CfgNode:
    """Return a config with Detectron2's and SpatialFlow's keys.

    Args:
        config_file: A YAML file: a path, or one relative to the project's ``configs`` folder.
            With none, the defaults of ``Base-SpatialFlow.yaml``.
        opts: KEY VALUE pairs, as on the command line.

    Raises:
        ValueError: If there is no such file, or it or ``opts`` have a key that does not exist or
            a value of another type.
    """
    cfg = detectron2_get_cfg()
    add_spatialflow_config(cfg)
    add_search_config(cfg)
    cfg.MODEL.DEVICE = "auto"  # a GPU where there is one, unless something else is asked for
    path = find_config(config_file or "Base-SpatialFlow.yaml")
    try:
        cfg.merge_from_file(str(path), allow_unsafe=False)
    except (AssertionError, AttributeError, KeyError, OSError, ValueError, yaml.YAMLError) as error:
        # Detectron2 has no common error for YAML that is none, is no mapping, or lacks its base.
        reason = error.args[0] if isinstance(error, KeyError) else str(error)
        raise ValueError(f"config {path}: {' '.join(reason.split())}") from error
    flags = [word for word in opts if str(word).startswith("--")]
    if flags:
        raise ValueError(f"{flags[0]} has to come before the KEY VALUE pairs")
    if len(opts) % 2:
        raise ValueError(
            f"options must be KEY VALUE pairs, got {len(opts)} words that end with {opts[-1]!r}"
        )
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        try:
            cfg.merge_from_list([key, value])
        except (AssertionError, AttributeError, KeyError, ValueError) as error:
            raise ValueError(f"option {key} {value!r}: {error.args[0]}") from error
    if cfg.MODEL.DEVICE == "auto":
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    return cfg


def configs_root() -> Path:
    """Return the folder of configs: the one installed with the package, or the repository's."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find_config(name: str | os.PathLike[str]) -> Path:
    """Return the path of a config file, given as a path or relative to :func:`configs_root`.

    Raises:
        ValueError: If there is no such file.
    """
    candidates = [Path(name).expanduser(), configs_root() / name]
    for path in candidates:
        if path.is_file():
            return path
    tried = " and ".join(str(path) for path in candidates)
    raise ValueError(f"config file {os.fspath(name)!r} not found; looked for {tried}")


def builtin_genotypes() -> list[str]:
    """Return the names of the genotypes in ``configs/genotypes``."""
    return sorted(path.stem for path in (configs_root() / "genotypes").glob("*.json"))


def load_genotype(name: str) -> Genotype:
    """Return the genotype of ``MODEL.SPATIALFLOW.GENOTYPE``, a name or a path.

    Raises:
        ValueError: If there is none, or it is not valid.
    """
    for path in (configs_root() / "genotypes" / f"{name}.json", Path(name).expanduser()):
        if path.is_file():
            return Genotype.load(path)
    known = ", ".join(builtin_genotypes())
    raise ValueError(f"MODEL.SPATIALFLOW.GENOTYPE: {name!r} is neither a file nor one of {known}")


def genotype_of(cfg: CfgNode) -> Genotype:
    """Return the genotype of a config, with what ``STUFF_ATTENTION`` puts in the place of choices.

    Raises:
        ValueError: If there is no such genotype, or the key is not understood.
    """
    own = cfg.MODEL.SPATIALFLOW
    genotype = load_genotype(own.GENOTYPE)
    if own.STUFF_ATTENTION == "from_genotype":
        return genotype
    replaced = dict.fromkeys(SITES, "none")
    for part in own.STUFF_ATTENTION.split(","):
        site, _, option = part.strip().partition("=")
        name = f"stuff.attention.{site}"
        if name not in SITES or option not in OPTIONS:
            sites = [known.rpartition(".")[2] for known in SITES]
            raise ValueError(
                f"MODEL.SPATIALFLOW.STUFF_ATTENTION: {own.STUFF_ATTENTION!r} given, "
                f"'from_genotype' or '<site>=<option>' expected, sites {sites}, options "
                f"{list(OPTIONS)}"
            )
        replaced[name] = option
    provenance = {**genotype.provenance, "choices_replaced_by_config": replaced}
    return replace(genotype, choices={**genotype.choices, **replaced}, provenance=provenance)
