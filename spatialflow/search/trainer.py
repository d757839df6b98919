"""The search trainer: weights and architecture learn in turn, on images of their own."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from darts.architect import Architect, Named
from darts.derive import (
    Strengths,
    by_argmax,
    by_perturbation,
    by_threshold,
    by_top_inputs,
    derive,
    random_genotype,
)
from darts.drawing import to_dot, to_svg
from darts.genotype import Genotype
from darts.relaxation import Architecture, architecture_parameters
from spatialflow.data.loader import TrainLoader, build_train_loader
from spatialflow.data.source import in_validation_split
from spatialflow.engine.trainer import Trainer
from spatialflow.randomness import mix_seeds, seeded
from spatialflow.search.hook import LOG_FILE, ArchitectureHook
from spatialflow.search.space import flow_costs, search_space

logger = logging.getLogger(__name__)

RULES = {"argmax": by_argmax, "threshold": by_threshold, "top_inputs": by_top_inputs}
PERTURBATION = "perturbation"


class SearchTrainer(Trainer):
    """Trains a supernet and its architecture in turn (Liu et al. 2019, DARTS, alg. 1)."""

    def __init__(self, cfg: CfgNode) -> None:
        """Build the supernet, two optimisers and two streams of images.

        Raises:
            ValueError: If the config is not one of a search.
        """
        if not cfg.SEARCH.ENABLED:
            raise ValueError("SEARCH.ENABLED: False given, True expected in a search")
        if cfg.SEARCH.RULE not in (*RULES, PERTURBATION):
            raise ValueError(
                f"SEARCH.RULE: {cfg.SEARCH.RULE!r} given, one of {[*RULES, PERTURBATION]} expected"
            )
        if cfg.SEARCH.RULE == PERTURBATION and cfg.SEARCH.RELAXATION == "sigmoid":
            raise ValueError(
                "SEARCH.RULE: 'perturbation' given with SEARCH.RELAXATION 'sigmoid', which has no "
                "parameter of `none` to compare with; 'threshold' expected"
            )
        if cfg.SEARCH.ORDER not in (1, 2):
            raise ValueError(f"SEARCH.ORDER: {cfg.SEARCH.ORDER} given, 1 or 2 expected")
        if cfg.SEARCH.ORDER == 2 and cfg.SOLVER.OPTIMIZER != "SGD":
            raise ValueError(
                f"SOLVER.OPTIMIZER: {cfg.SOLVER.OPTIMIZER!r} given, 'SGD' expected where "
                "SEARCH.ORDER is 2, whose virtual step is one of SGD"
            )
        if cfg.SEARCH.PERTURBATION_BATCHES < 1:
            raise ValueError(
                f"SEARCH.PERTURBATION_BATCHES: {cfg.SEARCH.PERTURBATION_BATCHES} given, 1 or more "
                "expected"
            )
        super().__init__(cfg)

    @property
    def supernet(self) -> nn.Module:
        """The model without a wrapper for several processes."""
        model: nn.Module = self.model
        return model.module if isinstance(model, DistributedDataParallel) else model

    @property
    def architecture(self) -> Architecture:
        """The architecture parameters."""
        found = self.supernet.architecture
        assert isinstance(found, Architecture)
        return found

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Return the optimiser of the weights, to which no architecture parameter belongs."""
        architecture = architecture_parameters(model).values()
        for parameter in architecture:
            parameter.requires_grad_(False)
        optimizer = super().build_optimizer(cfg, model)
        for parameter in architecture:
            parameter.requires_grad_(True)
        return optimizer

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        """Return the batches that the weights learn from."""
        seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        return build_train_loader(cfg, seed, keep=_part(cfg, architecture=False))

    def build_hooks(self) -> list[HookBase | None]:
        """Return the trainer's hooks, with the architecture's step after the scheduler's."""
        built = super().build_hooks()
        position = next(i for i, h in enumerate(built) if isinstance(h, hooks.LRScheduler))
        # By type, as the main process has hooks that others lack.
        built.insert(position + 1, self._architecture_hook())
        return built

    def _architecture_hook(self) -> ArchitectureHook:
        seed = self._trainer.seed
        loader = build_train_loader(
            self.cfg, mix_seeds(seed, 2), keep=_part(self.cfg, architecture=True)
        )
        architect = Architect(
            self.supernet,
            architecture_parameters(self.supernet),
            lambda model, batch: hook.loss(model, batch),
            average=_mean_over_processes if comm.get_world_size() > 1 else None,
        )
        costs, human = flow_costs(self.cfg, self.architecture.space.topology)
        hook = ArchitectureHook(
            self.cfg.SEARCH,
            self.architecture,
            architect,
            loader,
            seed=seed,
            costs=costs,
            budget=self.cfg.SEARCH.BUDGET * human,
            log_file=Path(self.cfg.OUTPUT_DIR, LOG_FILE),
        )
        return hook

    def derive(self) -> Genotype:
        """Return the genotype that the architecture stands for now, by ``SEARCH.RULE``."""
        costs, human = flow_costs(self.cfg, self.architecture.space.topology)
        keys = self.cfg.SEARCH
        return derive(
            self.architecture,
            self._perturb() if keys.RULE == PERTURBATION else RULES[keys.RULE](self.architecture),
            name=Path(self.cfg.OUTPUT_DIR).name or "searched",
            costs=costs,
            budget=keys.BUDGET * human if keys.COST > 0 else None,
            provenance={
                "rule": keys.RULE,
                "relaxation": keys.RELAXATION,
                "iterations": self.iter,
                "seed": self._trainer.seed,
            },
        )

    def _perturb(self) -> Strengths:
        """Remove each candidate in turn, and compare the losses on the same held-out batches."""
        loader = build_train_loader(
            self.cfg, mix_seeds(self._trainer.seed, 4), keep=_part(self.cfg, architecture=True)
        )
        batches = list(itertools.islice(loader, self.cfg.SEARCH.PERTURBATION_BATCHES))

        @torch.no_grad()
        def evaluate() -> float:
            # The storage is where Detectron2's mask head leaves its numbers.
            with seeded(self._trainer.seed), EventStorage():
                losses = [sum(self.supernet(batch).values()) for batch in batches]
            return float(sum(losses)) / len(losses)

        self.supernet.train()
        return by_perturbation(self.architecture, evaluate, seed=self._trainer.seed)

    def write_genotype(self) -> Path:
        """Derive the genotype; write it as JSON, SVG and DOT, and return the first one's path."""
        genotype, topology = self.derive(), self.architecture.space.topology
        path = Path(self.cfg.OUTPUT_DIR, "genotype.json")
        genotype.save(path)
        path.with_suffix(".svg").write_text(to_svg(genotype, topology))
        path.with_suffix(".dot").write_text(to_dot(genotype, topology))
        for flow in genotype.flows:
            logger.info("%s", flow)
        logger.info("%d flows, written to %s", len(genotype.flows), path)
        return path


def write_random_genotypes(cfg: CfgNode, count: int, seed: int) -> list[Path]:
    """Write random points of a config's space to ``OUTPUT_DIR/random_<seed>.json``, and so on.

    Each costs at most ``SEARCH.BUDGET`` times what the human flows cost.

    Args:
        cfg: Of a search.
        count: How many, 1 or more.
        seed: Of the first; the others have the numbers that follow.

    Raises:
        ValueError: If the count is wrong, or the config is not one of a search.
    """
    if count < 1 or seed < 0:
        raise ValueError(f"--random {count} --seed {seed} given, 1 or more and 0 or more expected")
    space = search_space(cfg)
    costs, human = flow_costs(cfg, space.topology)
    paths = []
    for number in range(seed, seed + count):
        name = f"random_{number}"
        genotype = random_genotype(
            space, seed=number, name=name, costs=costs, budget=cfg.SEARCH.BUDGET * human
        )
        paths.append(Path(cfg.OUTPUT_DIR, f"{name}.json"))
        genotype.save(paths[-1])
        logger.info("%s: %d flows", paths[-1], len(genotype.flows))
    return paths


def _mean_over_processes(named: Named) -> Named:
    # Copies: what is reduced is changed in place, and may be a view of a loss.
    totals = {name: value.clone() for name, value in named.items()}
    for total in totals.values():
        torch.distributed.all_reduce(total)
    return {name: total / comm.get_world_size() for name, total in totals.items()}


def _part(cfg: CfgNode, *, architecture: bool) -> Callable[[dict[str, Any]], bool]:
    """Tell which images are the architecture's, or the weights', by a hash of seed and name."""
    fraction, seed = cfg.SEARCH.ARCHITECTURE_FRACTION, cfg.SEARCH.SPLIT_SEED
    if not 0 < fraction < 1:
        raise ValueError(
            f"SEARCH.ARCHITECTURE_FRACTION: {fraction} given, between 0 and 1 expected"
        )
    return lambda image: (
        in_validation_split(Path(image["file_name"]).name, fraction, seed) == architecture
    )
