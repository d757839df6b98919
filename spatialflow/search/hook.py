"""The architecture's step, as a hook before each step of the weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor

from darts.architect import Architect, Named, VirtualStep
from darts.derive import Costs
from darts.regularizers import beta_decay, entropy, expected_cost, over_budget
from darts.relaxation import Architecture, MixedEdge
from spatialflow.data.loader import TrainLoader
from spatialflow.randomness import mix_seeds, seed_generators

logger = logging.getLogger(__name__)

LOG_PERIOD = 20
LOG_FILE = "search.jsonl"
ENTROPY_FROM = 2 / 3
"""Share of the search after which the entropy is pushed down."""


class ArchitectureHook(HookBase):
    """Takes one step of the architecture on held-out images before each step of the weights.

    ``after_backward`` never fires for hooks of a ``DefaultTrainer``, hence ``before_step``. All
    processes take part alike: gradients are averaged, and parameters are compared at each log.
    """

    def __init__(
        self,
        keys: CfgNode,
        architecture: Architecture,
        architect: Architect,
        loader: TrainLoader,
        *,
        seed: int,
        costs: Costs,
        budget: float,
        log_file: Path,
    ) -> None:
        """Keep the parts.

        Args:
            keys: ``SEARCH``.
            architecture: Of the supernet.
            architect: Computes the gradients.
            loader: Batches of held-out images.
            seed: Of what is random in a step.
            costs: Of each edge's operations.
            budget: Of all flows, in the unit of ``costs``.
            log_file: One line a log step is written to it.
        """
        self.keys = keys
        self.architecture = architecture
        self.architect = architect
        self.loader = loader
        self.seed = seed
        self.costs = costs
        self.budget = budget
        self.log_file = log_file
        self.optimizer = torch.optim.Adam(
            architect.architecture.values(),
            lr=keys.OPTIMIZER.LR,
            betas=tuple(keys.OPTIMIZER.BETAS),
            weight_decay=keys.OPTIMIZER.WEIGHT_DECAY,
        )
        self.loss_scales: dict[str, float] = {}
        self._batches: Iterator[list[dict[str, Any]]] | None = None
        self._flips = 0
        self._likeliest: dict[str, int] = {}

    def before_step(self) -> None:
        """Fade the auxiliary skip and, after the warm-up, step the architecture."""
        # What the weights' backward pass has left here is nobody's.
        self.optimizer.zero_grad()
        iteration = self.trainer.iter
        progress = iteration / self.trainer.max_iter
        for module in self.architect.model.modules():
            if isinstance(module, MixedEdge):
                module.auxiliary_skip = self.keys.AUXILIARY_SKIP * (1 - progress)
        if iteration == 0 and self.keys.WARMUP_ITERS:
            logger.info("the architecture is frozen until iteration %d", self.keys.WARMUP_ITERS)
        if iteration < self.keys.WARMUP_ITERS:
            return
        seed_generators(mix_seeds(self.seed, iteration, comm.get_rank(), 3))
        if self._batches is None:
            self._batches = iter(self.loader)
        loss, gradients = self._gradient(next(self._batches))
        penalty = self._penalty(progress)
        self._add_gradient(gradients, penalty)
        for name, parameter in self.architect.architecture.items():
            parameter.grad = gradients[name]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._count_flips()
        if (iteration + 1) % LOG_PERIOD == 0 or iteration + 1 == self.trainer.max_iter:
            self._write(iteration, loss, penalty)

    def _gradient(self, batch: list[dict[str, Any]]) -> tuple[Tensor, Named]:
        if self.keys.ORDER == 1:
            return self.architect.first_order(batch)
        inner = self.trainer._trainer
        step = VirtualStep.of(inner.optimizer, self.architect.weights)
        with self.architect.model.holding_proposals():
            return self.architect.second_order(inner.peek(), batch, step)

    def loss(self, model: Callable[..., Any], batch: list[dict[str, Any]]) -> Tensor:
        """Return the sum of the tasks' losses, each over its value at the first step."""
        losses = model(batch)
        if self.keys.NORMALIZE_LOSSES:
            if not self.loss_scales:
                first = self.architect.average({k: v.detach() for k, v in losses.items()})
                self.loss_scales = {name: max(v.item(), 1e-6) for name, v in first.items()}
            losses = {name: value / self.loss_scales[name] for name, value in losses.items()}
        return torch.stack(list(losses.values())).sum()

    def _penalty(self, progress: float) -> Tensor:
        """Return what is added to the loss of the architecture."""
        keys = self.keys
        late = max(0.0, (progress - ENTROPY_FROM) / (1 - ENTROPY_FROM))
        total = keys.BETA_DECAY * progress * beta_decay(self.architecture)
        total = total + keys.ENTROPY * late * entropy(self.architecture)
        cost = expected_cost(self.architecture, self.costs)
        return total + keys.COST * over_budget(cost, self.budget)

    def _add_gradient(self, gradients: Named, penalty: Tensor) -> None:
        parameters = self.architect.architecture
        added = torch.autograd.grad(penalty, list(parameters.values()), materialize_grads=True)
        for name, gradient in zip(parameters, added, strict=True):
            gradients[name] = gradients[name] + gradient

    def _count_flips(self) -> None:
        """Count how often an edge's likeliest candidate has changed."""
        for edge in self.architecture.space.edges:
            best = int(self.architecture.probabilities(edge.key).argmax())
            self._flips += self._likeliest.get(edge.key, best) != best
            self._likeliest[edge.key] = best

    def _write(self, iteration: int, loss: Tensor, penalty: Tensor) -> None:
        """Write a line of ``search.jsonl``, after a comparison of the processes.

        Raises:
            RuntimeError: If the processes' architectures differ.
        """
        values = {n: p.detach().cpu() for n, p in self.architect.architecture.items()}
        for other in comm.all_gather(values):
            if any(not torch.equal(values[name], other[name]) for name in values):
                raise RuntimeError("the architecture parameters of the processes differ")
        with torch.no_grad():
            measured = {
                "entropy": entropy(self.architecture).item(),
                "expected_cost": expected_cost(self.architecture, self.costs).item() / self.budget,
                "architecture_loss": loss.item(),
                "penalty": penalty.item(),
            }
        self.trainer.storage.put_scalars(
            smoothing_hint=False, **{f"search/{name}": value for name, value in measured.items()}
        )
        if comm.is_main_process():
            probabilities = {
                str(edge): self.architecture.probabilities(edge.key).tolist()
                for edge in self.architecture.space.edges
            }
            line = {
                "iteration": iteration,
                **measured,
                "flips": self._flips,
                "alpha": {name: value.tolist() for name, value in values.items()},
                "probabilities": probabilities,
            }
            with self.log_file.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state by name, the position in the data, and what was counted."""
        return {
            "optimizer": {
                name: self.optimizer.state.get(parameter, {})
                for name, parameter in self.architect.architecture.items()
            },
            "data": self.loader.state_dict(),
            "loss_scales": self.loss_scales,
            "flips": self._flips,
            "likeliest": self._likeliest,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        for name, parameter in self.architect.architecture.items():
            self.optimizer.state[parameter] = dict(state_dict["optimizer"][name])
        self.loader.load_state_dict(state_dict["data"])
        self._batches = None
        self.loss_scales = dict(state_dict["loss_scales"])
        self._flips = state_dict["flips"]
        self._likeliest = dict(state_dict["likeliest"])
