"""Prepare a config: register its own data, fill in its numbers of classes, and check it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm

from darts.genotype import GenotypeError
from spatialflow.config.checks import check_config
from spatialflow.config.genotypes import genotype_of
from spatialflow.config.options import SUPERNET
from spatialflow.config.training_checks import check_training_config
from spatialflow.config.values import expand_paths, shown
from spatialflow.data import ensure_metadata
from spatialflow.data.dataset import PanopticDataset
from spatialflow.data.dataset_spec import unusable_classes
from spatialflow.data.foreign import VIEW_SUFFIX
from spatialflow.data.registration import is_own, own_name, register_own, view_of
from spatialflow.data.synthetic.registration import register_scenes
from spatialflow.modeling.meta_arch import SpatialFlow
from spatialflow.modeling.topology import check_choices, topology_from_config
from spatialflow.utils.errors import ConfigError

FOLDER_DATASETS = ("folder_all", "folder_train", "folder_val")
"""Names of the data sets that :func:`prepare_config` registers from ``DATASETS.FOLDER``."""

SCENES_DATASETS = ("scenes_train", "scenes_val")
"""Names of the data sets that it registers from ``DATASETS.SCENES``."""


def prepare_config(cfg: CfgNode) -> None:
    """Register a config's own data, fill in its numbers of classes, and check it, in place.

    Its own data are those of ``DATASETS.FOLDER`` and, if ``DATASETS`` names them, the generated
    scenes of ``DATASETS.SCENES``. ``MODEL.RETINANET.NUM_CLASSES`` and
    ``MODEL.SEM_SEG_HEAD.NUM_CLASSES`` of -1 are replaced by the numbers of the data. A config with
    both numbers and without own data is checked without reading any file. If another config of this
    process has other data under a name such as ``folder_val``, the name in ``DATASETS`` becomes
    ``folder_val@<digest>``. A panoptic data set of other code becomes ``<name>@spatialflow``.

    Args:
        cfg: Config that is not frozen.

    Raises:
        ValueError: If the numbers do not fit the data, if data sets have different classes, or if
            a key has a value that is not allowed.
    """
    expand_paths(cfg)
    check_training_config(cfg, comm.get_world_size())
    _register_own_data(cfg)
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    _fill_in_class_counts(cfg, names)
    if cfg.MODEL.META_ARCHITECTURE not in META_ARCH_REGISTRY:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE: {shown(cfg.MODEL.META_ARCHITECTURE)} given, a registered "
            "one expected, such as 'SpatialFlow'"
        )
    if issubclass(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), SpatialFlow):
        check_config(cfg)
        # A search has flows of its own, and reads a genotype only to start from its network.
        if cfg.MODEL.META_ARCHITECTURE != SUPERNET:
            _check_genotype(cfg)


def _check_genotype(cfg: CfgNode) -> None:
    """Check that the network has the nodes that the genotype's flows and choices are about.

    Raises:
        GenotypeError: Naming the key, the file, and the flow or choice.
    """
    topology, genotype = topology_from_config(cfg), genotype_of(cfg)
    try:
        topology.check(genotype)
        check_choices(genotype, topology)
    except GenotypeError as error:
        name = cfg.MODEL.SPATIALFLOW.GENOTYPE
        raise GenotypeError(f"MODEL.SPATIALFLOW.GENOTYPE: {name}: {error}") from error


def has_pretrained_trunk(cfg: CfgNode) -> bool:
    """Return whether SpatialFlow's trunk starts from weights of its own, beside MODEL.WEIGHTS."""
    own = cfg.MODEL.SPATIALFLOW
    return bool(own.TRUNK != "resnet" and own.TRUNK_PRETRAINED)


def for_checkpoint(cfg: CfgNode) -> CfgNode:
    """Return the config of a model whose tensors will all come from a checkpoint.

    Its trunk does not look for pretrained weights, which may be out of reach by now. Without a
    seed, no time is spent on initial values by name.
    """
    bare = cfg.clone()
    bare.defrost()
    bare.MODEL.SPATIALFLOW.TRUNK_PRETRAINED = False
    bare.MODEL.SPATIALFLOW.TRUNK_WEIGHTS = ""
    bare.SEED = -1
    return bare


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
    # Those of another config of this process are not this config's.
    of_folder = [
        n
        for n in names
        if own_name(n) in FOLDER_DATASETS and (n not in DatasetCatalog or is_own(n))
    ]
    if of_folder and not cfg.DATASETS.FOLDER.PATH:
        raise ConfigError(
            f"DATASETS.FOLDER.PATH: none given, a folder in COCO panoptic layout expected for "
            f"DATASETS {of_folder}"
        )
    _compare_classes(cfg, names)


def check_classes(cfg: CfgNode, names: Sequence[str]) -> None:
    """Check that data sets have the classes of each other and the numbers of a config.

    Their JSONs are read. Data sets of other code that give no names of classes are left out, and
    so is a config of another model.

    Args:
        cfg: Config whose numbers of classes are filled in.
        names: Names of registered data sets.

    Raises:
        ConfigError: If they differ.
        DataError: If a JSON is missing or wrong.
    """
    if not issubclass(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), SpatialFlow):
        return
    datasets = dict(DatasetCatalog)
    names = [n for n in names if isinstance(datasets.get(n), PanopticDataset)]
    if names:
        _compare_classes(cfg, names)


def _compare_classes(cfg: CfgNode, names: Sequence[str]) -> None:
    """Compare the classes of data sets, and their numbers with the config's; -1 is filled in."""
    things, stuff = cfg.MODEL.RETINANET, cfg.MODEL.SEM_SEG_HEAD
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
                f"({len(first[0])} thing classes; {len(first[1]) - 1} stuff classes and 'things'); "
                "that or -1 expected, or other data"
            )
        if node.NUM_CLASSES == -1:
            node.NUM_CLASSES = count
    ignore_label = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    message = unusable_classes(len(first[0]), len(first[1]) - 1, ignore_label)
    if message is not None:
        raise ConfigError(f"data set {names[0]!r} {message}")


def _classes_are_known(name: str) -> bool:
    """Return whether a data set's classes are registered, so that no file has to be read."""
    if name not in DatasetCatalog:
        return False
    return {"thing_classes", "stuff_classes"} <= MetadataCatalog.get(name).as_dict().keys()


def _class_names(name: str) -> tuple[list[str], list[str]]:
    """Return the names of a data set's thing classes and of its stuff classes."""
    metadata = ensure_metadata(name)
    return list(metadata.thing_classes), list(metadata.stuff_classes)


def _register_own_data(cfg: CfgNode) -> None:
    """Register the data of ``DATASETS.FOLDER`` and of ``DATASETS.SCENES``, as far as it is named.

    ``DATASETS.TRAIN`` and ``TEST`` get the names under which the data are registered.

    Raises:
        ValueError: If a key has a wrong value.
    """
    registered = _register_folder(cfg.DATASETS.FOLDER)
    given = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    if any(own_name(name) in SCENES_DATASETS for name in given):
        scenes = cfg.DATASETS.SCENES
        registered |= register_scenes(train=scenes.TRAIN, val=scenes.VAL, size=scenes.SIZE)
    for key in ("TRAIN", "TEST"):
        names = cfg.DATASETS[key]
        cfg.DATASETS[key] = type(names)(
            registered.get(own_name(n)) or view_of(n.removesuffix(VIEW_SUFFIX)) for n in names
        )


def _register_folder(folder: CfgNode) -> dict[str, str]:
    """Register the data sets of ``DATASETS.FOLDER``, if it has a path.

    Returns:
        Name in the config → name of the registered data set.

    Raises:
        ValueError: If the path is not a folder, or the remap is unknown.
    """
    if not folder.PATH:
        return {}
    root = Path(folder.PATH)
    if not os.path.isdir(root):
        raise ConfigError(f"DATASETS.FOLDER.PATH: {shown(folder.PATH)} is not a folder")
    if folder.REMAP not in ("", "supercategories"):
        raise ConfigError(
            f"DATASETS.FOLDER.REMAP: {folder.REMAP!r} given, '' or 'supercategories' expected"
        )
    names = {}
    for name in FOLDER_DATASETS:
        side = name.removeprefix("folder_")
        names[name] = register_own(
            name,
            root,
            remap=folder.REMAP or None,
            split=None if side == "all" else (side, folder.VAL_FRACTION, folder.SPLIT_SEED),
            limit=folder.LIMIT or None,
        )
    return names
