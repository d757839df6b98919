"""From a trained supernet to what a search leaves: genotype, pictures, weights, and the gap."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

import spatialflow
from darts.derive import (
    Strengths,
    by_argmax,
    by_perturbation,
    by_presence,
    by_threshold,
    by_top_inputs,
    derive,
)
from darts.drawing import to_dot, to_svg
from darts.genotype import Genotype
from darts.history import history_svg
from darts.inheritance import inherited, warm_start
from darts.relaxation import Architecture, MixedEdge
from spatialflow.config import load_genotype
from spatialflow.engine.checkpoint import Checkpointer
from spatialflow.files import write_atomically
from spatialflow.meta_arch import SpatialFlow
from spatialflow.randomness import seeded
from spatialflow.search.hook import LOG_FILE
from spatialflow.search.space import flow_costs

logger = logging.getLogger(__name__)

INHERITED_FILE = "inherited.pth"
FLOWS = "flow_graph.flows."


class Derivation:
    """Derives a genotype from a supernet, and measures what that costs in held-out loss."""

    def __init__(
        self, cfg: CfgNode, supernet: SpatialFlow, held_out: Callable[[], Any], *, seed: int
    ) -> None:
        """Keep the parts.

        Args:
            cfg: Of the search.
            supernet: Trained, with its ``architecture``.
            held_out: Starts a stream of held-out batches, always the same.
            seed: Of the search.
        """
        self.cfg = cfg
        self.supernet = supernet
        self.architecture = architecture_of(supernet)
        self.seed = seed
        self._held_out = held_out
        self._batches: list[Any] | None = None

    def derive(self, iterations: int) -> Genotype:
        """Return the genotype that the architecture stands for now, by ``SEARCH.RULE``.

        Args:
            iterations: Of the search until now.
        """
        keys = self.cfg.SEARCH
        costs, human = flow_costs(self.cfg, self.architecture.space.topology)
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
                "cost": round(sum(costs[f.key, f.operation] for f in genotype.flows) / human, 4),
                "versions": versions(),
            },
        )

    def _strengths(self, rule: str) -> Strengths:
        match rule:
            case "argmax":
                return by_argmax(self.architecture)
            case "presence":
                return by_presence(self.architecture)
            case "threshold":
                return by_threshold(self.architecture)
            case "top_inputs":
                return by_top_inputs(self.architecture)
            case _:
                return by_perturbation(self.architecture, self._loss, seed=self.seed)

    @torch.no_grad()
    def _loss(self) -> float:
        """Return the supernet's loss as it is now, on ``SEARCH.PERTURBATION_BATCHES`` batches."""
        if self._batches is None:
            count = self.cfg.SEARCH.PERTURBATION_BATCHES
            self._batches = list(itertools.islice(self._held_out(), count))
        self.supernet.train()
        # What has not quite faded at the end of a search is no part of what is derived.
        for module in self.supernet.modules():
            if isinstance(module, MixedEdge):
                module.auxiliary_skip = 0.0
        self.architecture.temperature = 1.0
        # The storage is where Detectron2's mask head leaves its numbers.
        with seeded(self.seed), EventStorage():
            self.architecture.draw()
            losses = [sum(self.supernet(batch).values()) for batch in self._batches]
        return float(sum(losses)) / len(losses)

    @torch.no_grad()
    def _loss_of(self, genotype: Genotype) -> float:
        """Return the loss of a genotype with the supernet's weights, whose α are put back."""
        state = {n: p.clone() for n, p in self.architecture.state_dict().items()}
        try:
            self.architecture.set_genotype(genotype)
            return self._loss()
        finally:
            self.architecture.load_state_dict(state)

    def write(self, iterations: int) -> Path:
        """Derive, and write ``genotype.json`` with its pictures and what else is asked for.

        Returns:
            The path of the genotype.
        """
        topology = self.architecture.space.topology
        genotype = self.derive(iterations)
        folder = Path(self.cfg.OUTPUT_DIR)
        path = folder / "genotype.json"
        genotype.save(path)
        path.with_suffix(".svg").write_text(to_svg(genotype, topology))
        path.with_suffix(".dot").write_text(to_dot(genotype, topology))
        log = folder / LOG_FILE
        if log.is_file():
            lines = read_log(log)
            title = f"{genotype.name}: history of the search"
            (folder / "history.svg").write_text(history_svg(self.architecture, lines, title=title))
        for flow in genotype.flows:
            logger.info("%s", flow)
        logger.info("%d flows, written to %s", len(genotype.flows), path)
        if self.cfg.SEARCH.INHERIT:
            state = {"model": inherit(self.cfg, self.supernet, path).state_dict()}
            write_atomically(folder / INHERITED_FILE, lambda file: torch.save(state, file))
            logger.info("with the supernet's weights: MODEL.WEIGHTS %s", folder / INHERITED_FILE)
        return path


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of ``search.jsonl`` by iteration; of one that a resume repeats, the last."""
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    return [line for _, line in sorted({line["iteration"]: line for line in lines}.items())]


def config_hash(cfg: CfgNode) -> str:
    """Return twelve hex digits that name a config, but for where it writes."""
    clone = cfg.clone()
    clone.defrost()
    clone.OUTPUT_DIR = ""
    return hashlib.sha256(clone.dump().encode()).hexdigest()[:12]


def versions() -> dict[str, str]:
    """Return the versions that a search depends on."""
    return {
        "spatialflow": spatialflow.__version__,
        "detectron2": detectron2.__version__,
        "torch": torch.__version__,
    }


def network(cfg: CfgNode, genotype: str) -> SpatialFlow:
    """Build the network of a genotype, on the CPU, with everything else as in a search.

    Args:
        cfg: Of a search.
        genotype: Name or path.
    """
    clone = cfg.clone()
    clone.defrost()
    clone.SEARCH.ENABLED = False
    clone.MODEL.SPATIALFLOW.GENOTYPE = genotype
    clone.MODEL.DEVICE = "cpu"
    model: SpatialFlow = build_model(clone)
    return model


def architecture_of(supernet: SpatialFlow) -> Architecture:
    """Return the architecture parameters of a supernet."""
    assert supernet.architecture is not None
    return supernet.architecture


def _mixed(supernet: SpatialFlow, key: str) -> MixedEdge:
    found = supernet.flow_graph.flows[key]
    assert isinstance(found, MixedEdge)
    return found


def inherit(cfg: CfgNode, supernet: SpatialFlow, genotype: Path) -> SpatialFlow:
    """Return the network of a genotype with a supernet's weights.

    It computes what the supernet does with one-hot architecture parameters.

    Args:
        cfg: Of the search.
        supernet: Trained.
        genotype: Path of a point of its space.
    """
    derived = network(cfg, str(genotype))
    _copy_shared(supernet, derived)
    for flow in Genotype.load(genotype).flows:
        state = inherited(_mixed(supernet, flow.key), flow.operation)
        derived.flow_graph.flows[flow.key].load_state_dict(state)
    return derived


def start_from(cfg: CfgNode, supernet: SpatialFlow) -> None:
    """Make a supernet compute what the network of ``SEARCH.WEIGHTS`` does.

    Raises:
        CheckpointError: If the checkpoint is not one of ``MODEL.SPATIALFLOW.GENOTYPE``.
        ValueError: If the genotype is no point of the space.
    """
    name = cfg.MODEL.SPATIALFLOW.GENOTYPE
    trained = network(cfg, name)
    # In eval mode weights of other flows are refused.
    Checkpointer(trained.eval(), save_to_disk=False).load(cfg.SEARCH.WEIGHTS)
    operations = {flow.key: flow.operation for flow in load_genotype(name).flows}
    _copy_shared(trained, supernet)
    for edge in architecture_of(supernet).space.edges:
        known = edge.key in operations
        state = trained.flow_graph.flows[edge.key].state_dict() if known else {}
        warm_start(_mixed(supernet, edge.key), operations.get(edge.key), state)
    logger.info("the supernet starts from %s, a network of %s", cfg.SEARCH.WEIGHTS, name)


def _copy_shared(source: nn.Module, target: nn.Module) -> None:
    """Copy everything but flows and architecture parameters."""
    apart = (FLOWS, "architecture.")
    state = {k: v for k, v in source.state_dict().items() if not k.startswith(apart)}
    training = target.training
    result = target.train().load_state_dict(state, strict=False)
    target.train(training)
    missing = [key for key in result.missing_keys if not key.startswith(apart)]
    assert not missing, missing
    assert not result.unexpected_keys, result.unexpected_keys
