"""From command-line arguments to a config that is complete, checked and saved."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from darts.genotype import Genotype
from spatialflow.config import builtin_genotypes, find_config, genotype_of, get_cfg
from spatialflow.config.checks import check_config, check_training_config
from spatialflow.data import ensure_metadata, register_panoptic
from spatialflow.data.dataset import DatasetEntry
from spatialflow.data.synthetic.registration import register_scenes
from spatialflow.engine.trainer import Trainer
from spatialflow.modeling.meta_arch import SpatialFlow
from spatialflow.utils.errors import DataError

logger = logging.getLogger(__name__)

FOLDER_NAMES = ("folder_all", "folder_train", "folder_val")
"""The data sets that ``DATASETS.FOLDER`` makes."""


def setup(
    args: argparse.Namespace,
    *,
    data: Sequence[str] = ("TRAIN", "TEST"),
    trainer: type[Trainer] = Trainer,
) -> CfgNode:
    """Read the config, register its data, complete it, and start logging.

    Args:
        args: From Detectron2's ``default_argument_parser``.
        data: Keys of ``DATASETS`` whose data have to be there; for an evaluation ``TEST`` alone.
        trainer: What the config is for; its ``check`` is asked before anything is written. Unless
            it ``writes_genotype``, a copy of the config's genotype is put into the run's folder.

    Returns:
        The frozen config, also written to ``OUTPUT_DIR/config.yaml`` beside ``genotype.json``; for
        an evaluation to ``OUTPUT_DIR/inference``, so that a training's own files stay.

    Raises:
        ValueError: If the config is not valid, does not fit its data or the run that it goes on, or
            data are not there. Nothing has been written then.
    """
    args.config_file = str(find_config(args.config_file or "Base-SpatialFlow.yaml"))
    cfg = get_cfg(args.config_file, args.opts)
    weights = cfg.MODEL.WEIGHTS
    resume = getattr(args, "resume", False)
    evaluation = getattr(args, "eval_only", False)
    if evaluation and not weights and not resume:
        raise ValueError("MODEL.WEIGHTS is empty: an evaluation needs weights, or --resume")
    if weights and not resume and "://" not in weights and not Path(weights).is_file():
        raise ValueError(f"MODEL.WEIGHTS: no such file: {weights!r}")
    if cfg.SEED < 0:
        cfg.SEED = _draw_seed(cfg.OUTPUT_DIR, resume=resume)
    trainer.check(cfg)
    prepare_config(cfg)
    _check_data(cfg, ("TEST",) if evaluation else data)
    log_folder = Path(cfg.OUTPUT_DIR, "inference") if evaluation else Path(cfg.OUTPUT_DIR)
    if not trainer.writes_genotype:
        if resume:
            _check_genotype_of_run(cfg)
        _keep_genotype(cfg, log_folder)
    cfg.freeze()
    saved = cfg.clone()
    saved.defrost()
    saved.OUTPUT_DIR = str(log_folder)
    # What PyTorch warns of here, tracing and compiling for CUDA, Detectron2 merely asks about.
    for name in ("torch.fx._symbolic_trace", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    default_setup(saved, args)
    for name in ("spatialflow", "darts"):
        setup_logger(str(log_folder), distributed_rank=comm.get_rank(), name=name)
    replaced = genotype_of(cfg).provenance.get("choices_replaced_by_config")
    if replaced:
        logger.info("MODEL.SPATIALFLOW.STUFF_ATTENTION in place of the genotype's: %s", replaced)
    return cfg


def _draw_seed(output_dir: str, *, resume: bool) -> int:
    """Return a seed where a config has none: the run's own if it goes on, else a new one.

    The seed is in the run's ``config.yaml``, so that any run can be repeated and resumed exactly.
    """
    seed, previous = -1, Path(output_dir, "config.yaml")
    # The main process alone: it is the one that will write the file, which others may not see.
    if resume and comm.is_main_process() and previous.is_file():
        seed = int(get_cfg(previous).SEED)
    seed = comm.all_gather(seed)[0]
    return seed if seed >= 0 else comm.shared_random_seed()


def _check_data(cfg: CfgNode, keys: Sequence[str]) -> None:
    """Look for data sets and their files, of which training would else learn hours later."""
    for key in keys:
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog:
                raise ValueError(
                    f"DATASETS.{key}: {name!r} given, a registered data set expected "
                    "(DatasetCatalog.list())"
                )
            entry = dict(DatasetCatalog)[name]
            if isinstance(entry, DatasetEntry):
                try:
                    entry.check_places()
                except DataError as error:
                    raise DataError(f"DATASETS.{key}: {name!r}: {error}") from error


def _check_genotype_of_run(cfg: CfgNode) -> None:
    """Compare the genotype with that of the run that goes on, if there is one."""
    folder, given = Path(cfg.OUTPUT_DIR), cfg.MODEL.SPATIALFLOW.GENOTYPE
    path = folder / "genotype.json"
    if not (folder / "last_checkpoint").is_file() or not path.is_file():
        return
    genotype, own = genotype_of(cfg), Genotype.load(path)
    if genotype.hash != own.hash:
        raise ValueError(
            f"MODEL.SPATIALFLOW.GENOTYPE: {given!r} ({genotype.hash}) given, but the run to go on "
            f"with has {own.name!r} ({own.hash}), in {path}; that, or another OUTPUT_DIR expected"
        )


def _keep_genotype(cfg: CfgNode, folder: Path) -> None:
    """Copy the genotype to a run's folder; a config that gave a path takes the copy's."""
    own = cfg.MODEL.SPATIALFLOW
    genotype = genotype_of(cfg)
    copy = (folder / "genotype.json").absolute()
    if comm.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        genotype.save(copy)
    comm.synchronize()
    if own.GENOTYPE not in builtin_genotypes():
        own.GENOTYPE = str(copy)


def prepare_config(cfg: CfgNode) -> None:
    """Register the config's own data, complete the numbers of classes, and check it, in place.

    The data are ``DATASETS.FOLDER`` and, where named, ``DATASETS.SCENES``.
    ``MODEL.RETINANET.NUM_CLASSES`` and ``MODEL.SEM_SEG_HEAD.NUM_CLASSES`` of -1 are taken from the
    data. Nothing is read from disk where both are given and the data are neither.

    Raises:
        ValueError: If the numbers do not fit the data, the data sets' classes differ, or a key has
            a value that is not allowed.
    """
    check_training_config(cfg)
    _register_folder(cfg)
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    if any(name.startswith("scenes_") for name in names):
        scenes = cfg.DATASETS.SCENES
        register_scenes(train=scenes.TRAIN, val=scenes.VAL, size=scenes.SIZE)
    _complete_classes(cfg, names)
    if cfg.MODEL.META_ARCHITECTURE not in META_ARCH_REGISTRY:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE: {cfg.MODEL.META_ARCHITECTURE!r} given, a registered one "
            "expected, such as 'SpatialFlow'"
        )
    if issubclass(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), SpatialFlow):
        check_config(cfg)


def _complete_classes(cfg: CfgNode, names: tuple[str, ...]) -> None:
    """Take numbers of classes from the data, or compare them with it."""
    things, stuff = cfg.MODEL.RETINANET, cfg.MODEL.SEM_SEG_HEAD
    if not (cfg.DATASETS.FOLDER.PATH or -1 in (things.NUM_CLASSES, stuff.NUM_CLASSES)):
        names = tuple(name for name in names if _classes_are_known(name))
        if not names:
            return
    if not names:
        raise ValueError("DATASETS.TRAIN and DATASETS.TEST are empty: no data to take classes from")
    of_folder = [n for n in names if n in FOLDER_NAMES and n not in DatasetCatalog]
    if of_folder and not cfg.DATASETS.FOLDER.PATH:
        raise ValueError(
            f"DATASETS.FOLDER.PATH: none given, a folder in COCO panoptic layout expected for "
            f"DATASETS {of_folder}"
        )
    classes = {name: _class_names(name) for name in names}
    first = classes[names[0]]
    for name, other in classes.items():
        if other != first:
            raise ValueError(f"data sets {names[0]!r} and {name!r} have different classes")
    for key, node, count in (
        ("MODEL.RETINANET.NUM_CLASSES", things, len(first[0])),
        ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", stuff, len(first[1])),
    ):
        if node.NUM_CLASSES not in (-1, count):
            raise ValueError(
                f"{key}: {node.NUM_CLASSES} given, but data set {names[0]!r} has {count} "
                f"({len(first[0])} thing classes; {len(first[1]) - 1} stuff classes and 'things')"
            )
        node.NUM_CLASSES = count
    if not first[0]:
        raise ValueError(
            f"data set {names[0]!r} has no thing classes; SpatialFlow needs at least one"
        )


def _classes_are_known(name: str) -> bool:
    """Tell whether a data set's classes are there without reading a file."""
    if name not in DatasetCatalog:
        return False
    return {"thing_classes", "stuff_classes"} <= MetadataCatalog.get(name).as_dict().keys()


def _class_names(name: str) -> tuple[list[str], list[str]]:
    metadata = ensure_metadata(name)
    return list(metadata.thing_classes), list(metadata.stuff_classes)


def _register_folder(cfg: CfgNode) -> None:
    folder = cfg.DATASETS.FOLDER
    if not folder.PATH:
        return
    root = Path(folder.PATH).expanduser()
    if not root.is_dir():
        raise ValueError(f"DATASETS.FOLDER.PATH: {folder.PATH!r} is not a folder")
    if folder.REMAP not in ("", "supercategories"):
        raise ValueError(
            f"DATASETS.FOLDER.REMAP: {folder.REMAP!r} given, '' or 'supercategories' expected"
        )
    for name in FOLDER_NAMES:
        side = name.removeprefix("folder_")
        register_panoptic(
            name,
            root / "images",
            root / "panoptic.json",
            root / "panoptic",
            remap=folder.REMAP or None,
            split=None if side == "all" else (side, folder.VAL_FRACTION, folder.SPLIT_SEED),
            limit=folder.LIMIT or None,
        )
