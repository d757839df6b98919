"""Set up a run: read its config, register its data, check both, and save the config."""

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
from spatialflow.data.dataset import PanopticDataset
from spatialflow.data.synthetic.registration import register_scenes
from spatialflow.engine.trainer import Trainer
from spatialflow.modeling.meta_arch import SpatialFlow
from spatialflow.utils.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

FOLDER_DATASETS = ("folder_all", "folder_train", "folder_val")
"""Names of the data sets that :func:`prepare_config` registers from ``DATASETS.FOLDER``."""


def setup(
    args: argparse.Namespace,
    *,
    data: Sequence[str] = ("TRAIN", "TEST"),
    trainer: type[Trainer] = Trainer,
) -> CfgNode:
    """Read a run's config, register its data, check both, write the config and start logging.

    The config is written to ``OUTPUT_DIR/config.yaml``, beside a copy of its genotype in
    ``genotype.json``. An evaluation writes both to ``OUTPUT_DIR/inference``, so that the files of
    the training stay as they are.

    Args:
        args: Arguments of ``spatialflow train``, as Detectron2 names them.
        data: Keys of ``DATASETS`` whose files must exist. An evaluation (``--eval-only``) needs
            those of ``TEST`` only.
        trainer: Class of the trainer that will use the config. Its ``check`` runs before anything
            is written. A trainer that ``writes_genotype`` itself gets no copy in its folder.

    Returns:
        The frozen config.

    Raises:
        ValueError: If the config is not valid, does not fit its data or the run to resume, or if
            files are missing. Nothing is written then.
    """
    args.config_file = str(find_config(args.config_file or "Base-SpatialFlow.yaml"))
    cfg = get_cfg(args.config_file, args.opts)
    weights = cfg.MODEL.WEIGHTS
    resume = getattr(args, "resume", False)
    evaluation = getattr(args, "eval_only", False)
    if evaluation and not weights and not resume:
        raise ConfigError("MODEL.WEIGHTS is empty: an evaluation needs weights, or --resume")
    if weights and not resume and "://" not in weights and not Path(weights).is_file():
        raise ConfigError(f"MODEL.WEIGHTS: no such file: {weights!r}")
    if cfg.SEED < 0:
        cfg.SEED = _choose_seed(cfg.OUTPUT_DIR, resume=resume)
    trainer.check(cfg)
    prepare_config(cfg)
    _check_data_files(cfg, ("TEST",) if evaluation else data)
    log_folder = Path(cfg.OUTPUT_DIR, "inference") if evaluation else Path(cfg.OUTPUT_DIR)
    if not trainer.writes_genotype:
        if resume:
            _check_same_genotype(cfg)
        _copy_genotype(cfg, log_folder)
    cfg.freeze()
    saved = cfg.clone()
    saved.defrost()
    saved.OUTPUT_DIR = str(log_folder)
    # Detectron2 lists the environment, and PyTorch warns of a missing compiler meanwhile.
    for name in ("torch.fx._symbolic_trace", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    default_setup(saved, args)
    for name in ("spatialflow", "darts"):
        setup_logger(str(log_folder), distributed_rank=comm.get_rank(), name=name)
    replaced = genotype_of(cfg).provenance.get("choices_replaced_by_config")
    if replaced:
        logger.info("MODEL.SPATIALFLOW.STUFF_ATTENTION in place of the genotype's: %s", replaced)
    return cfg


def _choose_seed(output_dir: str, *, resume: bool) -> int:
    """Return a seed for a config without one, the same in all processes.

    A resumed run gets the seed that it has saved in its ``config.yaml``; other runs get a new one.
    With it in that file, every run can be repeated and resumed exactly.
    """
    seed, previous = -1, Path(output_dir, "config.yaml")
    # Only the main process reads the file: it also writes it, and other machines may lack it.
    if resume and comm.is_main_process() and previous.is_file():
        seed = int(get_cfg(previous).SEED)
    seed = comm.all_gather(seed)[0]
    return seed if seed >= 0 else comm.shared_random_seed()


def _check_data_files(cfg: CfgNode, keys: Sequence[str]) -> None:
    """Check that data sets are registered and their files exist.

    Without this check a training would notice missing test data only at its first evaluation.

    Args:
        cfg: Config with the data sets' names.
        keys: Keys of ``DATASETS`` to check.

    Raises:
        ValueError: Naming the key, the data set and the file.
    """
    for key in keys:
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog:
                raise ConfigError(
                    f"DATASETS.{key}: {name!r} given, a registered data set expected "
                    "(DatasetCatalog.list())"
                )
            dataset = dict(DatasetCatalog)[name]
            if isinstance(dataset, PanopticDataset):
                try:
                    dataset.check_places()
                except DataError as error:
                    raise DataError(f"DATASETS.{key}: {name!r}: {error}") from error


def _check_same_genotype(cfg: CfgNode) -> None:
    """Check that a run to resume, if there is one, has the genotype of the config.

    Raises:
        ValueError: If the genotypes differ.
    """
    folder, given = Path(cfg.OUTPUT_DIR), cfg.MODEL.SPATIALFLOW.GENOTYPE
    path = folder / "genotype.json"
    if not (folder / "last_checkpoint").is_file() or not path.is_file():
        return
    genotype, own = genotype_of(cfg), Genotype.load(path)
    if genotype.hash != own.hash:
        raise ConfigError(
            f"MODEL.SPATIALFLOW.GENOTYPE: {given!r} ({genotype.hash}) given, but the run to go on "
            f"with has {own.name!r} ({own.hash}), in {path}; that, or another OUTPUT_DIR expected"
        )


def _copy_genotype(cfg: CfgNode, folder: Path) -> None:
    """Copy the genotype to a run's folder; a config that names a file then names the copy."""
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
    """Register a config's own data, fill in its numbers of classes, and check it, in place.

    Its own data are those of ``DATASETS.FOLDER`` and, if ``DATASETS`` names them, the generated
    scenes of ``DATASETS.SCENES``. ``MODEL.RETINANET.NUM_CLASSES`` and
    ``MODEL.SEM_SEG_HEAD.NUM_CLASSES`` of -1 are replaced by the numbers of the data. A config with
    both numbers and without own data is checked without reading any file.

    Args:
        cfg: Config that is not frozen.

    Raises:
        ValueError: If the numbers do not fit the data, if data sets have different classes, or if
            a key has a value that is not allowed.
    """
    check_training_config(cfg, comm.get_world_size())
    _register_folder(cfg)
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    if any(name.startswith("scenes_") for name in names):
        scenes = cfg.DATASETS.SCENES
        register_scenes(train=scenes.TRAIN, val=scenes.VAL, size=scenes.SIZE)
    _fill_in_class_counts(cfg, names)
    if cfg.MODEL.META_ARCHITECTURE not in META_ARCH_REGISTRY:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE: {cfg.MODEL.META_ARCHITECTURE!r} given, a registered one "
            "expected, such as 'SpatialFlow'"
        )
    if issubclass(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), SpatialFlow):
        check_config(cfg)


def _fill_in_class_counts(cfg: CfgNode, names: tuple[str, ...]) -> None:
    """Replace numbers of classes of -1 by those of the data, and compare other numbers with them.

    Raises:
        ValueError: If a number differs from the data, or if data sets have different classes.
    """
    things, stuff = cfg.MODEL.RETINANET, cfg.MODEL.SEM_SEG_HEAD
    if not (cfg.DATASETS.FOLDER.PATH or -1 in (things.NUM_CLASSES, stuff.NUM_CLASSES)):
        names = tuple(name for name in names if _classes_are_known(name))
        if not names:
            return
    if not names:
        raise ConfigError(
            "DATASETS.TRAIN and DATASETS.TEST are empty: no data to take classes from"
        )
    of_folder = [n for n in names if n in FOLDER_DATASETS and n not in DatasetCatalog]
    if of_folder and not cfg.DATASETS.FOLDER.PATH:
        raise ConfigError(
            f"DATASETS.FOLDER.PATH: none given, a folder in COCO panoptic layout expected for "
            f"DATASETS {of_folder}"
        )
    classes = {name: _class_names(name) for name in names}
    first = classes[names[0]]
    for name, other in classes.items():
        if other != first:
            raise ConfigError(f"data sets {names[0]!r} and {name!r} have different classes")
    for key, node, count in (
        ("MODEL.RETINANET.NUM_CLASSES", things, len(first[0])),
        ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", stuff, len(first[1])),
    ):
        if node.NUM_CLASSES not in (-1, count):
            raise ConfigError(
                f"{key}: {node.NUM_CLASSES} given, but data set {names[0]!r} has {count} "
                f"({len(first[0])} thing classes; {len(first[1]) - 1} stuff classes and 'things')"
            )
        node.NUM_CLASSES = count
    if not first[0]:
        raise ConfigError(
            f"data set {names[0]!r} has no thing classes; SpatialFlow needs at least one"
        )


def _classes_are_known(name: str) -> bool:
    """Return whether a data set's classes are registered, so that no file has to be read."""
    if name not in DatasetCatalog:
        return False
    return {"thing_classes", "stuff_classes"} <= MetadataCatalog.get(name).as_dict().keys()


def _class_names(name: str) -> tuple[list[str], list[str]]:
    """Return the names of a data set's thing classes and of its stuff classes."""
    metadata = ensure_metadata(name)
    return list(metadata.thing_classes), list(metadata.stuff_classes)


def _register_folder(cfg: CfgNode) -> None:
    """Register the data sets of ``DATASETS.FOLDER``, if it has a path.

    Raises:
        ValueError: If the path is not a folder, or the remap is unknown.
    """
    folder = cfg.DATASETS.FOLDER
    if not folder.PATH:
        return
    root = Path(folder.PATH).expanduser()
    if not root.is_dir():
        raise ConfigError(f"DATASETS.FOLDER.PATH: {folder.PATH!r} is not a folder")
    if folder.REMAP not in ("", "supercategories"):
        raise ConfigError(
            f"DATASETS.FOLDER.REMAP: {folder.REMAP!r} given, '' or 'supercategories' expected"
        )
    for name in FOLDER_DATASETS:
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
