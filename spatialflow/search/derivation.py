"""Derivation of a genotype from a trained supernet, and the files that a search writes."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

import spatialflow
from darts.derive import RULES, Strengths, by_perturbation, derive
from darts.drawing import to_dot, to_svg
from darts.genotype import Genotype
from darts.mixed import MixedEdge
from darts.relaxation import choice_key
from darts.space import Costs
from spatialflow.config import config_hash
from spatialflow.search.history import history_svg
from spatialflow.search.log import LOG_FILE, read_log
from spatialflow.search.report import REPORT_FILE, write_report
from spatialflow.search.settings import PERTURBATION
from spatialflow.search.space import flow_costs
from spatialflow.search.supernet import SpatialFlowSupernet
from spatialflow.search.weights import inherit
from spatialflow.utils.files import write_atomically, write_text
from spatialflow.utils.randomness import seeded

logger = logging.getLogger(__name__)

INHERITED_FILE = "inherited.pth"
HISTORY_FILE = "history.svg"
DERIVED_FILES = (
    *("genotype.json", "genotype.svg", "genotype.dot"),
    *(HISTORY_FILE, INHERITED_FILE, REPORT_FILE),
)
"""Files that the end of a search writes."""
UNDECIDED = 1.25
"""Ratio of the likeliest candidates' mean share to the uniform one, below which a warning comes."""


class Derivation:
    """Derives a genotype from a supernet, and measures the held-out loss before and after."""

    def __init__(
        self, cfg: CfgNode, supernet: SpatialFlowSupernet, held_out: Callable[[], Any], *, seed: int
    ) -> None:
        """Keep the parts.

        Args:
            cfg: Config of the search.
            supernet: Trained supernet.
            held_out: Returns an iterator over held-out batches, the same ones at each call.
            seed: Seed of the search.
        """
        self.cfg = cfg
        self.supernet = supernet
        self.architecture = supernet.architecture
        self.seed = seed
        self._held_out = held_out
        self._batches: list[Any] | None = None

    def derive(self, iterations: int) -> Genotype:
        """Derive a genotype from the current architecture parameters, by ``SEARCH.RULE``.

        Args:
            iterations: Number of iterations that the search has done, for the provenance.
        """
        keys = self.cfg.SEARCH
        costs, human = flow_costs(self.cfg, self.architecture.space.topology)
        self._finish_fading()
        if keys.RULE != PERTURBATION and self.architecture.relaxation.kind != "sigmoid":
            self._warn_of_ties()
        before = self._loss()
        genotype = derive(
            self.architecture,
            self._strengths(keys.RULE),
            name=Path(self.cfg.OUTPUT_DIR).name or "searched",
            costs=costs,
            budget=keys.BUDGET * human if keys.COST > 0 else None,
        )
        after = self._loss_of(genotype)
        logger.info(
            "held-out loss of the supernet %.4f, of the derived network %.4f", before, after
        )
        return replace(
            genotype,
            provenance={
                "rule": keys.RULE,
                "relaxation": keys.RELAXATION,
                "order": keys.ORDER,
                "human_prior": keys.HUMAN_PRIOR,
                "iterations": iterations,
                "seed": self.seed,
                "config": config_hash(self.cfg),
                "held_out_loss": {"supernet": round(before, 5), "derived": round(after, 5)},
                "cost": round(cost_of(genotype, costs) / human, 4),
                "versions": versions(),
            },
        )

    def _warn_of_ties(self) -> None:
        """Log a warning if the probabilities that the rule compares are nearly uniform."""
        shares = [self.architecture.probabilities(e.key) for e in self.architecture.space.edges]
        likeliest = fmean(float(each.max()) for each in shares)
        uniform = fmean(1 / len(each) for each in shares)
        if likeliest < UNDECIDED * uniform:
            logger.warning(
                "the likeliest candidate of an edge has a share of %.3f on average, and %.3f is "
                "uniform: rule '%s' compares what is nearly tied (SEARCH.OPTIMIZER.LR, "
                "SOLVER.MAX_ITER)",
                likeliest,
                uniform,
                self.cfg.SEARCH.RULE,
            )

    def _strengths(self, rule: str) -> Strengths:
        if rule == PERTURBATION:
            return by_perturbation(self.architecture, self._loss, seed=self.seed)
        return RULES[rule](self.architecture)

    def _finish_fading(self) -> None:
        """Set temperature and auxiliary skips to their final values."""
        self.architecture.temperature = 1.0
        for module in self.supernet.modules():
            if isinstance(module, MixedEdge):
                module.auxiliary_skip = 0.0

    @torch.no_grad()
    def _loss(self) -> float:
        """Return the supernet's mean loss on ``SEARCH.PERTURBATION_BATCHES`` held-out batches."""
        if self._batches is None:
            count = self.cfg.SEARCH.PERTURBATION_BATCHES
            self._batches = list(itertools.islice(self._held_out(), count))
        # Detectron2's mask head writes metrics to the current event storage.
        with (
            seeded(self.seed, self.supernet.device),
            EventStorage(),
            _training_mode(self.supernet),
        ):
            losses = [sum(self.supernet(batch).values()) for batch in self._batches]
        # The mean over processes, so that all of them decide alike.
        means = comm.all_gather(float(sum(losses)) / len(losses))
        return sum(means) / len(means)

    @torch.no_grad()
    def _loss_of(self, genotype: Genotype) -> float:
        """Return the loss of a genotype with the supernet's weights; α is restored afterwards."""
        with self.architecture.as_genotype(genotype):
            return self._loss()

    def write(self, iterations: int) -> Path:
        """Derive a genotype, and write it with its drawings, the report and inherited weights.

        All processes derive, as the forward passes may communicate; the main process writes.

        Args:
            iterations: Number of iterations that the search has done.

        Returns:
            Path of ``genotype.json``.
        """
        topology = self.architecture.space.topology
        genotype = self.derive(iterations)
        folder = Path(self.cfg.OUTPUT_DIR)
        path = folder / "genotype.json"
        if not comm.is_main_process():
            return path
        genotype.save(path)
        write_text(path.with_suffix(".svg"), to_svg(genotype, topology))
        write_text(path.with_suffix(".dot"), to_dot(genotype, topology))
        log = folder / LOG_FILE
        lines = read_log(log) if log.is_file() else []
        history = ""
        if lines:
            title = f"{genotype.name}: history of the search"
            history = history_svg(self.architecture, lines, title=title)
            write_text(folder / HISTORY_FILE, history)
        for flow in genotype.flows:
            logger.info("%s", flow)
        logger.info("%d flows, written to %s", len(genotype.flows), path)
        if self.cfg.SEARCH.INHERIT:
            derived = inherit(self.cfg, self.supernet, genotype, path)
            state = {"model": derived.state_dict()}
            write_atomically(folder / INHERITED_FILE, lambda file: torch.save(state, file))
            logger.info("with the supernet's weights: MODEL.WEIGHTS %s", folder / INHERITED_FILE)
        logger.info("report: %s", write_report(self.cfg, self.supernet, genotype, lines, history))
        return path


@contextlib.contextmanager
def _training_mode(model: nn.Module) -> Iterator[None]:
    """Switch to training mode, in which a model returns losses; put mode and statistics back."""
    was_training, before = model.training, [buffer.clone() for buffer in model.buffers()]
    model.train()
    try:
        yield
    finally:
        # A pass in training mode has changed the running statistics of batch norms.
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)
        model.train(was_training)


def cost_of(genotype: Genotype, costs: Costs) -> float:
    """Return the cost of a genotype's flows and choices, in the unit of ``costs``."""
    flows = sum(costs[flow.key, flow.operation] for flow in genotype.flows)
    choices = (costs.get((choice_key(n), option), 0.0) for n, option in genotype.choices.items())
    return flows + sum(choices)


def versions() -> dict[str, str]:
    """Return the versions of the project, of Detectron2 and of PyTorch."""
    return {
        "spatialflow": spatialflow.__version__,
        "detectron2": detectron2.__version__,
        "torch": torch.__version__,
    }
