"""Train and evaluate with Detectron2's ``DefaultTrainer``, on any device."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.evaluation import DatasetEvaluators
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spatialflow.config.options import SUPERNET
from spatialflow.config.training_checks import check_training_config
from spatialflow.data.loader import EvaluationLoader, TrainLoader, build_train_loader
from spatialflow.engine.averaging import WeightAverage, check_averaged
from spatialflow.engine.checkpoint import Checkpointer, frozen_trunk
from spatialflow.engine.distributed import distributed, in_main_process
from spatialflow.engine.hooks import (
    EvaluationHook,
    NamingWriter,
    ProgressHook,
    Writer,
)
from spatialflow.engine.optimizer import build_optimizer
from spatialflow.engine.output import RUN_FILES, check_run_outputs, output_held
from spatialflow.engine.preparation import check_classes, for_checkpoint, has_pretrained_trunk
from spatialflow.engine.rehearsal import rehearse_evaluation
from spatialflow.engine.step import StepTrainer
from spatialflow.engine.stopping import StopHook, end_stopped
from spatialflow.engine.summary import describe_ap, describe_files, describe_model, describe_start
from spatialflow.evaluation import build_evaluator
from spatialflow.modeling.build import built_from_keys
from spatialflow.modeling.meta_arch import SpatialFlow
from spatialflow.modeling.tta import TestTimeAugmentation
from spatialflow.utils.errors import ConfigError
from spatialflow.utils.files import remove_partial_files, write_json
from spatialflow.utils.precision import amp_dtype
from spatialflow.utils.signals import Stopped, StopSignals

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains and evaluates a panoptic model from a config.

    It is Detectron2's ``DefaultTrainer`` with panoptic data and evaluation, and with a
    :class:`~spatialflow.engine.step.StepTrainer` as its inner trainer.

    Attributes:
        writes_genotype: Whether a run writes its own ``genotype.json`` at its end.
        files: Names of the files that a training writes into ``OUTPUT_DIR`` once it runs.
    """

    writes_genotype = False
    files: tuple[str, ...] = RUN_FILES

    def __init__(self, cfg: CfgNode, *, from_checkpoint: bool = False) -> None:
        """Build model, optimiser, data and hooks.

        This replaces ``DefaultTrainer.__init__``, whose distributed model refuses a CPU and whose
        mixed precision needs CUDA. It sets the same attributes.

        Args:
            cfg: Config of the run.
            from_checkpoint: Whether all weights will come from a checkpoint, so that pretrained
                weights of the trunk are not looked for.

        Raises:
            ValueError: If the config is not for this trainer, or a key has a wrong value.
        """
        TrainerBase.__init__(self)
        self.check(cfg)
        check_training_config(cfg, comm.get_world_size())
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(for_checkpoint(cfg) if from_checkpoint else cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = distributed(model, unused=self.leaves_parameters_unused(cfg))
        self._trainer = StepTrainer(
            model,
            data_loader,
            optimizer,
            seed=data_loader.sampler.seed,
            amp_dtype=amp_dtype(cfg.SOLVER.AMP),
            accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
            non_finite=cfg.SOLVER.NON_FINITE,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            check_weights=cfg.MODEL.SPATIALFLOW.CHECK_WEIGHTS,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.stop_signals = StopSignals(wait=True)
        self.register_hooks(self.build_hooks())

    @classmethod
    def check(cls, cfg: CfgNode) -> None:
        """Check that a config is for this trainer, before a run writes any file.

        Raises:
            ConfigError: If the config is one of a search.
        """
        if cfg.MODEL.META_ARCHITECTURE == SUPERNET:
            raise ConfigError(
                f"MODEL.META_ARCHITECTURE: {SUPERNET!r} given, the model of a search; "
                "`spatialflow search` searches, and MODEL.SPATIALFLOW.GENOTYPE takes the "
                "genotype.json that it writes"
            )

    @classmethod
    def leaves_parameters_unused(cls, cfg: CfgNode) -> bool:
        """Return whether a step may leave parameters without a gradient.

        ``DistributedDataParallel`` has to search for unused parameters then.
        """
        return False

    @property
    def step_trainer(self) -> StepTrainer:
        """Inner trainer, which takes the steps of the weights (``_trainer`` in Detectron2)."""
        return self._trainer

    def train(self) -> Any:
        """Train from the present iteration on, evaluate, and return what Detectron2 returns.

        No other process may write into ``OUTPUT_DIR`` meanwhile. SIGINT and SIGTERM stop it after
        the present step, with a checkpoint; a second signal, and one in an evaluation, stop it at
        once.

        Raises:
            ConfigError: If another run works in ``OUTPUT_DIR``, or something that the evaluation or
                a checkpoint needs is missing; nothing is trained then.
            DataError: If a file of the data is missing, broken or contradicts another one.
            Stopped: After such a signal; it is a ``KeyboardInterrupt`` that says how to go on.
        """
        with output_held(self.cfg) as locked:
            if locked:
                remove_partial_files(self.cfg.OUTPUT_DIR)
            logger.info("model: %s", describe_model(self.cfg, self.model))
            if self.start_iter < self.max_iter:
                self.rehearse_end()
                logger.info(
                    "training: iterations %d to %d of %d images each, from %d images; %s",
                    self.start_iter + 1,
                    self.max_iter,
                    self.cfg.SOLVER.IMS_PER_BATCH * self.cfg.SOLVER.ACCUMULATION_STEPS,
                    self.step_trainer.data_loader.num_images,
                    f"the whole log is in {self.cfg.OUTPUT_DIR}/log.txt",
                )
            with self.stop_signals:
                try:
                    results = super().train()
                except Stopped as stop:
                    raise end_stopped(self, stop) from None
        if comm.is_main_process():
            logger.info("%s", describe_files(self.cfg.OUTPUT_DIR))
        return results

    def rehearse_end(self) -> None:
        """Try what checkpoints and evaluations will need, before the first step.

        Raises:
            ConfigError: If a key, the cache or a place in ``OUTPUT_DIR`` cannot be used, data have
                other classes than the config, or a checkpoint does not fit on the disk.
            DataError: If a file of the data is missing, broken or contradicts another one.
        """
        check_classes(self.cfg, (*self.cfg.DATASETS.TRAIN, *self.cfg.DATASETS.TEST))
        in_main_process(lambda: check_run_outputs(self.cfg, self.files, self.model, self.optimizer))
        self.rehearse(self.cfg, self.model)

    @classmethod
    def rehearse(cls, cfg: CfgNode, model: nn.Module) -> None:
        """Try what the evaluation of a run will need, with one image of each data set.

        A subclass that evaluates in another way may override it. One that replaces :meth:`test`
        tries no data sets of other code, as the evaluators here do not know them.

        Args:
            cfg: Config of the run.
            model: Model of the run; nothing of it changes.

        Raises:
            ConfigError: If a key, the cache or a place in ``OUTPUT_DIR`` cannot be used.
            DataError: If a file of the data is missing, broken or contradicts another one.
        """
        own_test = getattr(cls.test, "__func__", None) is Trainer.test.__func__  # type: ignore[attr-defined]
        rehearse_evaluation(cls, cfg, augmented(cfg, model), all_data=own_test)

    def run_step(self) -> None:
        """Take one step of the weights, and call the hooks' ``after_backward`` in the middle.

        Hooks find the gradients in the parameters, before the optimiser uses them. They are not
        called in a step that is left out because it is not finite. Detectron2's ``DefaultTrainer``
        never calls ``after_backward`` of its hooks: it leaves the step to its inner trainer, which
        has no hooks.
        """
        self._trainer.iter = self.iter
        if self._trainer.compute_gradients():
            self.after_backward()
            self._trainer.update_weights()

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the last checkpoint of ``OUTPUT_DIR``, or the weights of ``MODEL.WEIGHTS``.

        Args:
            resume: Whether to look for a checkpoint in ``OUTPUT_DIR``.

        Raises:
            CheckpointError: If the file is missing, cannot be read, or does not fit the model.
            ConfigError: If a part of the trunk is frozen and random, if more iterations are done
                than ``SOLVER.MAX_ITER``, or if the processes find different checkpoints.
        """
        resumes = resume and self.checkpointer.has_checkpoint()
        if not resumes:
            self._check_frozen_trunk()
        super().resume_or_load(resume=resume)
        starts = comm.all_gather(self.start_iter)
        if len(set(starts)) > 1:
            raise ConfigError(
                f"OUTPUT_DIR: {self.cfg.OUTPUT_DIR!r} given, from which the processes go on at "
                f"iterations {starts}; a folder that all machines share expected"
            )
        if self.start_iter > self.max_iter:
            raise ConfigError(
                f"SOLVER.MAX_ITER: {self.max_iter} given, but the run in {self.cfg.OUTPUT_DIR} has "
                f"done {self.start_iter} iterations; as many or more expected, or another "
                "OUTPUT_DIR"
            )
        start = describe_start(self.cfg, self.starting_weights(self.cfg))
        if resumes:
            last = self.checkpointer.get_checkpoint_file()
            start = f"those of {last}, after {self.start_iter} iterations"
        logger.info("weights: %s", start)
        if resumes and self.start_iter == self.max_iter:
            logger.info("its iterations are done; a larger SOLVER.MAX_ITER goes on")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a run."""
        check_averaged(state_dict, enabled=self.cfg.SOLVER.EMA.ENABLED)
        super().load_state_dict(state_dict)

    def _check_frozen_trunk(self) -> None:
        """Check that a new training does not keep random weights in its trunk for ever."""
        if has_pretrained_trunk(self.cfg) or self.starting_weights(self.cfg):
            return  # the checkpointer compares the frozen parameters with those of the file
        if frozen_trunk(self.checkpointer.model):
            trunk = self.cfg.MODEL.SPATIALFLOW.TRUNK
            raise ConfigError(
                f"MODEL.BACKBONE.FREEZE_AT: {self.cfg.MODEL.BACKBONE.FREEZE_AT} given, but "
                f"MODEL.WEIGHTS is empty and trunk {trunk!r} starts from random weights, which "
                "would stay as they are; weights, or FREEZE_AT 0 expected"
            )

    @classmethod
    def starting_weights(cls, cfg: CfgNode) -> str:
        """Return the file from which a new training starts; "" for none."""
        return str(cfg.MODEL.WEIGHTS)

    def build_hooks(self) -> list[HookBase | None]:
        """Return Detectron2's hooks, with those of :mod:`spatialflow.engine.hooks`."""
        built = super().build_hooks()
        test = self.cfg.DATASETS.TEST
        prefix = f"{test[0]}/" if len(test) > 1 else ""
        # By type, since only the main process has hooks that write.
        position = next(i for i, hook in enumerate(built) if isinstance(hook, hooks.EvalHook))
        evaluate = built[position]._func
        built[position : position + 1] = [
            ProgressHook() if comm.is_main_process() else None,
            # After the checkpoint of a step, and before its evaluation, which a resumed run makes.
            StopHook(self.stop_signals),
            EvaluationHook(
                self.cfg.TEST.EVAL_PERIOD,
                self.stop_signals.interrupting(evaluate),
                self.checkpointer,
                f"{prefix}panoptic_seg/PQ",
            ),
        ]
        if self.cfg.SOLVER.EMA.ENABLED:
            # Before the hooks that look at the model after a step.
            built.insert(0, WeightAverage(self.model, self.cfg.SOLVER.EMA.DECAY))
        return [
            Writer(hook._writers, self.max_iter) if isinstance(hook, hooks.PeriodicWriter) else hook
            for hook in built
        ]

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model of ``MODEL.META_ARCHITECTURE``, SpatialFlow's or another.

        Raises:
            ConfigError: If another one cannot be built from the config.
        """
        own = issubclass(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), SpatialFlow)
        with built_from_keys(cfg, own=own):
            return super().build_model(cfg)

    def build_writers(self) -> list[EventWriter]:
        """Return Detectron2's writers; the error of a full disk names their files."""
        folder = Path(self.cfg.OUTPUT_DIR)
        files = {JSONWriter: folder / "metrics.json"}
        return [NamingWriter(w, files.get(type(w), folder)) for w in super().build_writers()]

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser of all trainable parameters."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        """Return an endless loader of training batches, ``SOLVER.IMS_PER_BATCH`` images in all.

        Raises:
            DataError: If a file of the data sets is missing or broken.
            ValueError: If no image is left to train on.
        """
        # A config without a seed, not made by setup(), gets a new one at each start.
        return build_train_loader(cfg, cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed())

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> EvaluationLoader:
        """Return a loader of a data set's images in order, one image per batch."""
        return EvaluationLoader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluators:
        """Return evaluators of panoptic quality and of box and mask AP."""
        folder = Path(cfg.OUTPUT_DIR) / "inference" / dataset_name
        return build_evaluator(cfg, dataset_name, str(folder))

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> OrderedDict[str, Any]:
        """Evaluate on every data set of ``DATASETS.TEST``, and write ``OUTPUT_DIR/results.json``.

        Args:
            cfg: Config of the run; with ``TEST.AUG.ENABLED``, test-time augmentation is used.
            model: Model to evaluate.
            evaluators: Evaluators, one per data set; None to build them from the config.

        Returns:
            The results by task and metric, and by data set first where there are several. The
            processes but the main one get empty results.

        Raises:
            ConfigError: If another run works in ``OUTPUT_DIR``.
        """
        with output_held(cfg):
            results = super().test(cfg, augmented(cfg, model), evaluators)
            if comm.is_main_process():
                path = Path(cfg.OUTPUT_DIR) / "results.json"
                write_json(path, results)
                logger.info("%s", describe_ap(results) or "no AP")
                logger.info("results: %s", path)
        return results


def augmented(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Wrap a model in test-time augmentation if ``TEST.AUG.ENABLED``, else return it unchanged."""
    if not cfg.TEST.AUG.ENABLED:
        return model
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    return TestTimeAugmentation(cfg, inner)
