"""Set up a run: read its config, register its data, check both, and save the config."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import default_setup
from detectron2.utils import comm

from darts.genotype import Genotype
from spatialflow.config import builtin_genotypes, find_config, genotype_of, get_cfg
from spatialflow.data.dataset import PanopticDataset
from spatialflow.data.registration import find_dataset
from spatialflow.engine.checkpoint import check_weights_file, has_checkpoint
from spatialflow.engine.output import hold_output
from spatialflow.engine.preparation import check_classes, prepare_config
from spatialflow.engine.trainer import Trainer
from spatialflow.utils.console import start_logging
from spatialflow.utils.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


def setup(
    args: argparse.Namespace,
    *,
    data: Sequence[str] = ("TRAIN", "TEST"),
    trainer: type[Trainer] = Trainer,
) -> CfgNode:
    """Read a run's config, register its data, check both, write the config and start logging.

    The config is written to ``OUTPUT_DIR/config.yaml``, beside a copy of its genotype in
    ``genotype.json``. An evaluation writes both to ``OUTPUT_DIR/inference``, so that the files of
    the training stay as they are. The process holds ``OUTPUT_DIR`` from here to its end.

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
            files are missing, or another run works in ``OUTPUT_DIR``. Nothing is written then.
    """
    args.config_file = str(find_config(args.config_file or "Base-SpatialFlow.yaml"))
    cfg = get_cfg(args.config_file, args.opts)
    resume = getattr(args, "resume", False)
    evaluation = getattr(args, "eval_only", False)
    _check_weights(cfg, resume=resume, evaluation=evaluation)
    if cfg.SEED < 0:
        cfg.SEED = _choose_seed(cfg.OUTPUT_DIR, resume=resume)
    trainer.check(cfg)
    prepare_config(cfg)
    _check_data_files(cfg, ("TEST",) if evaluation else data, trainer)
    remark = hold_output(cfg, evaluation=evaluation)
    log_folder = Path(cfg.OUTPUT_DIR, "inference") if evaluation else Path(cfg.OUTPUT_DIR)
    if not trainer.writes_genotype:
        if resume:
            _check_same_genotype(cfg)
        _copy_genotype(cfg, log_folder)
    cfg.freeze()
    saved = cfg.clone()
    saved.defrost()
    saved.OUTPUT_DIR = str(log_folder)
    everything = getattr(args, "verbose", False)
    start_logging(log_folder, rank=comm.get_rank(), everything=everything)
    default_setup(saved, args)
    if remark:
        logger.warning("%s", remark)
    replaced = genotype_of(cfg).provenance.get("choices_replaced_by_config")
    if replaced:
        logger.info("MODEL.SPATIALFLOW.STUFF_ATTENTION in place of the genotype's: %s", replaced)
    return cfg


def _check_weights(cfg: CfgNode, *, resume: bool, evaluation: bool) -> None:
    """Check that the weights that a run starts from are there.

    Raises:
        CheckpointError: If the file is missing.
        ConfigError: If an evaluation has no weights.
    """
    weights = cfg.MODEL.WEIGHTS
    if evaluation and not weights and not (resume and has_checkpoint(cfg.OUTPUT_DIR)):
        raise ConfigError(
            "MODEL.WEIGHTS is empty: an evaluation needs weights, or --resume and a checkpoint in "
            "OUTPUT_DIR"
        )
    if not resume:
        check_weights_file(weights)


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


def _check_data_files(cfg: CfgNode, keys: Sequence[str], trainer: type[Trainer]) -> None:
    """Check that data sets are registered and can be read, and that they have the config's classes.

    Without this check a training would notice wrong test data only at its first evaluation.

    Args:
        cfg: Config with the data sets' names.
        keys: Keys of ``DATASETS`` to check.
        trainer: Class of the trainer; its own evaluators may take data that are not panoptic.

    Raises:
        ConfigError: If there is nothing to train or evaluate on, a name is unknown or of no
            panoptic data, or classes differ.
        DataError: If a folder is missing, a JSON is missing or wrong, or no image is left.
    """
    # A classmethod of a subclass is bound to it: only the functions compare.
    inherited = getattr(trainer.build_evaluator, "__func__", None)
    own_evaluator = inherited is Trainer.build_evaluator.__func__  # type: ignore[attr-defined]
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
                    dataset.check()
                except DataError as error:
                    raise DataError(f"DATASETS.{key}: {name!r}: {error}") from error
            elif key == "TEST" and own_evaluator:
                find_dataset(name)  # raises: it is not panoptic
    if list(keys) == ["TEST"] and not cfg.DATASETS.TEST:
        raise ConfigError(
            "DATASETS.TEST is empty: the name of a registered data set expected, to evaluate on"
        )
    if "TRAIN" in keys and not cfg.DATASETS.TRAIN:
        raise ConfigError(
            "DATASETS.TRAIN is empty: the name of a registered data set expected, as in the config "
            "of a --config-file"
        )
    check_classes(cfg, [name for key in keys for name in cfg.DATASETS[key]])


def _check_same_genotype(cfg: CfgNode) -> None:
    """Check that a run to resume, if there is one, has the genotype of the config.

    Raises:
        ValueError: If the genotypes differ.
    """
    folder, given = Path(cfg.OUTPUT_DIR), cfg.MODEL.SPATIALFLOW.GENOTYPE
    path = folder / "genotype.json"
    if not has_checkpoint(cfg.OUTPUT_DIR) or not path.is_file():
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
