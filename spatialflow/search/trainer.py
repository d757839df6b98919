"""The trainer of a search: weights and architecture learn in turn, on separate images."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from darts.architect import Named
from darts.learner import ArchitectureLearner
from darts.relaxation import Architecture, architecture_parameters
from spatialflow.data.loader import TrainLoader, build_train_loader
from spatialflow.engine.distributed import in_main_process
from spatialflow.engine.output import RUN_FILES, output_held
from spatialflow.engine.trainer import Trainer
from spatialflow.search.derivation import DERIVED_FILES, Derivation
from spatialflow.search.hook import ArchitectureHook
from spatialflow.search.log import LOG_FILE, SearchLog
from spatialflow.search.report import rehearse_report
from spatialflow.search.settings import check_search_config, learner_settings
from spatialflow.search.space import (
    flow_costs,
    human_genotype,
    relaxation_from_config,
    search_space,
)
from spatialflow.search.split import split_filter
from spatialflow.search.supernet import SpatialFlowSupernet
from spatialflow.search.weights import start_from
from spatialflow.utils.randomness import mix_seeds

logger = logging.getLogger(__name__)


class SearchTrainer(Trainer):
    """Trains the weights and the architecture of a supernet in turn (arXiv 1806.09055, alg. 1).

    It differs from :class:`spatialflow.engine.Trainer` in one hook, the architecture's, and in the
    images that the weights learn from.
    """

    writes_genotype = True
    files = (*RUN_FILES, *DERIVED_FILES, LOG_FILE)

    @classmethod
    def check(cls, cfg: CfgNode) -> None:
        """Check that a config is one of a search, with a space and a relaxation.

        Raises:
            ValueError: Naming the key.
        """
        check_search_config(cfg)
        search_space(cfg)
        relaxation_from_config(cfg)
        split_filter(cfg, architecture=True)

    @classmethod
    def starting_weights(cls, cfg: CfgNode) -> str:
        """Return the file from which a new search starts; "" for none."""
        return str(cfg.SEARCH.WEIGHTS or cfg.MODEL.WEIGHTS)

    @classmethod
    def leaves_parameters_unused(cls, cfg: CfgNode) -> bool:
        """Return whether a step may leave parameters without a gradient: Gumbel draws do."""
        return bool(cfg.SEARCH.RELAXATION == "gumbel")

    @property
    def supernet(self) -> SpatialFlowSupernet:
        """The model without the wrapper of distributed training."""
        model = self.model
        inner = model.module if isinstance(model, DistributedDataParallel) else model
        assert isinstance(inner, SpatialFlowSupernet)
        return inner

    @property
    def architecture(self) -> Architecture:
        """The architecture parameters."""
        return self.supernet.architecture

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the supernet, and add ``SEARCH.HUMAN_PRIOR`` to its architecture parameters."""
        model = super().build_model(cfg)
        if cfg.SEARCH.HUMAN_PRIOR:
            model.architecture.favour(human_genotype(), cfg.SEARCH.HUMAN_PRIOR)
            logger.warning(
                "SEARCH.HUMAN_PRIOR: the flows of the human design start ahead by a logit of %g",
                cfg.SEARCH.HUMAN_PRIOR,
            )
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimiser of the weights, which owns no architecture parameter."""
        architecture = architecture_parameters(model).values()
        for parameter in architecture:
            parameter.requires_grad_(False)
        optimizer = super().build_optimizer(cfg, model)
        for parameter in architecture:
            parameter.requires_grad_(True)
        return optimizer

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        """Build the loader of the images that the weights learn from."""
        seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        return build_train_loader(cfg, seed, keep=split_filter(cfg, architecture=False))

    def build_hooks(self) -> list[HookBase | None]:
        """Return the trainer's hooks, with the architecture's after the learning rate's."""
        built = super().build_hooks()
        position = next(i for i, h in enumerate(built) if isinstance(h, hooks.LRScheduler))
        # By type, since only the main process has hooks that write.
        built.insert(position + 1, self._architecture_hook())
        return built

    def _architecture_hook(self) -> ArchitectureHook:
        keys = self.cfg.SEARCH
        costs, human = flow_costs(self.cfg, self.architecture.space.topology)
        learner = ArchitectureLearner(
            self.supernet,
            self.architecture,
            learner_settings(self.cfg),
            costs=costs,
            budget=keys.BUDGET * human,
            average=_mean_over_processes if comm.get_world_size() > 1 else None,
        )
        return ArchitectureHook(
            learner,
            self._architecture_loader(2),
            seed=self.step_trainer.seed,
            log=SearchLog(self.architecture, Path(self.cfg.OUTPUT_DIR, LOG_FILE)),
            non_finite=self.cfg.SOLVER.NON_FINITE,
            eigenvalue_period=keys.EIGENVALUE_PERIOD,
            stop_ratio=keys.STOP_RATIO,
        )

    def _architecture_loader(self, stream: int) -> TrainLoader:
        """Build a loader of the architecture's images.

        Args:
            stream: Number that distinguishes the orders of several loaders.
        """
        seed = mix_seeds(self.step_trainer.seed, stream)
        return build_train_loader(self.cfg, seed, keep=split_filter(self.cfg, architecture=True))

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume from the last checkpoint, or load ``MODEL.WEIGHTS`` or ``SEARCH.WEIGHTS``."""
        super().resume_or_load(resume=resume)
        resumes = resume and self.checkpointer.has_checkpoint()
        if self.cfg.SEARCH.WEIGHTS and not resumes:
            start_from(self.cfg, self.supernet)

    def rehearse_end(self) -> None:
        """Try what checkpoints, evaluations and the report will need, before the first step."""
        super().rehearse_end()
        in_main_process(lambda: rehearse_report(self.cfg, self.supernet))

    @property
    def derivation(self) -> Derivation:
        """The derivation of a genotype from the current supernet."""
        return Derivation(
            self.cfg,
            self.supernet,
            lambda: iter(self._architecture_loader(4)),
            seed=self.step_trainer.seed,
        )

    def write_genotype(self) -> Path:
        """Derive the genotype, write it with its drawings and report, and return its path.

        Raises:
            ConfigError: If another run works in ``OUTPUT_DIR``.
        """
        with output_held(self.cfg):
            # After training ``iter`` is max_iter; from a checkpoint it is the last iteration done.
            return self.derivation.write(min(self.iter + 1, self.max_iter))


def _mean_over_processes(named: Named) -> Named:
    # One flat copy: a reduction works in place, and a gradient's memory layout may differ between
    # processes.
    total = torch.cat([value.flatten() for value in named.values()])
    torch.distributed.all_reduce(total)
    means = (total / comm.get_world_size()).split([value.numel() for value in named.values()])
    return {n: mean.view(v.shape) for (n, v), mean in zip(named.items(), means, strict=True)}
