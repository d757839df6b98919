"""Train an architecture: take steps on held-out data, with penalties added to the loss.

The training loop calls :meth:`ArchitectureLearner.begin` before each step of the weights, and
:meth:`ArchitectureLearner.step` if ``begin`` returned True.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from darts.architect import Architect, Named, VirtualStep
from darts.mixed import MixedEdge
from darts.operations import PARAMETER_FREE
from darts.regularizers import beta_decay, entropy, expected_cost, expected_flows, over_budget
from darts.relaxation import Architecture, architecture_parameters
from darts.space import Costs

ENTROPY_FROM = 2 / 3
"""Share of the search after which the entropy penalty starts."""

Losses = Callable[[Callable[..., Any], Any], dict[str, Tensor]]
"""Function (model, batch) → the scalar loss of each task, by name."""


class NotFiniteError(ArithmeticError):
    """The architecture's loss or gradient is NaN or infinite in at least one process."""


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """Settings of the architecture's training.

    The defaults are those of DARTS (Liu et al. 2019, arXiv 1806.09055, sec. 3).

    Attributes:
        iterations: Number of iterations of the search.
        warmup: Number of first iterations in which only the weights learn.
        order: Order of the architecture gradient, 1 or 2.
        rate: Learning rate of Adam.
        betas: Betas of Adam.
        decay: Weight decay of Adam.
        normalize: Divide each task's loss by its first value above 0.
        beta_decay: Factor of :func:`darts.regularizers.beta_decay` at the end of the search; it
            grows from 0 at the start.
        entropy: Factor of :func:`darts.regularizers.entropy` at the end of the search; it grows
            from 0 at two thirds of the search.
        sparsity: Factor of :func:`darts.regularizers.expected_flows`.
        cost: Factor of :func:`darts.regularizers.over_budget`.
        auxiliary_skip: Share of the source that is added to every flow at the start of the search;
            it falls to 0 at the end (DARTS-, Chu et al. 2021, arXiv 2009.01027).
        temperature: Temperature of the relaxation at the start of the search; it falls to 1 at the
            end, by the same factor in each iteration.
    """

    iterations: int
    warmup: int = 0
    order: int = 1
    rate: float = 3e-4
    betas: tuple[float, float] = (0.5, 0.999)
    decay: float = 1e-3
    normalize: bool = False
    beta_decay: float = 0.0
    entropy: float = 0.0
    sparsity: float = 0.0
    cost: float = 0.0
    auxiliary_skip: float = 0.0
    temperature: float = 1.0


class ArchitectureLearner:
    """Trainer of a supernet's architecture, which also measures the state of the search.

    It depends neither on the source of the batches nor on the tasks.

    Attributes:
        architecture: The architecture that learns.
        settings: The settings of its training.
        costs: Cost of each edge's operations and choice's options.
        budget: Cost up to which there is no penalty, in the unit of ``costs``.
        architect: Computes the gradients.
        optimizer: Adam over the architecture parameters.
        frozen: Set it to True to stop the architecture for good; the weights may continue.
    """

    def __init__(
        self,
        supernet: nn.Module,
        architecture: Architecture,
        settings: LearnerSettings,
        *,
        costs: Costs,
        budget: float,
        losses: Losses = lambda model, batch: model(batch),
        average: Callable[[Named], Named] | None = None,
    ) -> None:
        """Build the optimiser of the architecture parameters.

        Args:
            supernet: The model that contains the architecture.
            architecture: The architecture that learns.
            settings: The settings of its training.
            costs: Cost of each edge's operations and choice's options.
            budget: Cost up to which there is no penalty, in the unit of ``costs``.
            losses: Compute the losses of the tasks by name, from a model and a batch.
            average: Return the means over all processes of tensors by name; None for one process.
        """
        self.architecture = architecture
        self.settings = settings
        self.costs = costs
        self.budget = budget
        self.architect = Architect(
            supernet,
            architecture_parameters(supernet),
            self._loss,
            train_loss=lambda model, batch: _total(losses(model, batch)),
            average=average,
        )
        self.optimizer = torch.optim.Adam(
            self.architect.architecture.values(),
            lr=settings.rate,
            betas=settings.betas,
            weight_decay=settings.decay,
        )
        self.frozen = False
        self._losses = losses
        self._mixed = [m for m in supernet.modules() if isinstance(m, MixedEdge)]
        self._loss_scales: dict[str, float] = {}
        self._measured: dict[str, Tensor] = {}
        self._likeliest: Tensor | None = None
        self._flips = torch.zeros((), dtype=torch.long, device=self._device)
        self._last_flip = torch.full((), settings.warmup, dtype=torch.long, device=self._device)
        self._last_step = settings.warmup

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The architecture parameters, by name."""
        return self.architect.architecture

    @property
    def _device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def begin(self, iteration: int) -> bool:
        """Set what depends on time, and return whether the architecture learns in this iteration.

        Args:
            iteration: Number of the iteration, counted from 0.
        """
        # The weights' backward pass also writes gradients of α, which no step may use.
        self.optimizer.zero_grad()
        progress = self._progress(iteration)
        for edge in self._mixed:
            edge.auxiliary_skip = self.settings.auxiliary_skip * (1 - progress)
        self.architecture.temperature = self.settings.temperature ** (1 - progress)
        return iteration >= self.settings.warmup and not self.frozen

    def step(
        self,
        iteration: int,
        held_out: Any,
        *,
        train: Any = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Take one step of the architecture.

        Args:
            iteration: Number of the iteration, counted from 0.
            held_out: Batch of the architecture's loss.
            train: Batch that the weights are about to learn from; required for order 2.
            optimizer: SGD of the weights; required for order 2. The weights' gradients on ``train``
                must be in ``grad``: the optimiser's next step is the virtual step.

        Raises:
            NotFiniteError: If the loss or a gradient is NaN or infinite. All processes raise it,
                and nothing has changed.
            ValueError: If the order is 2 and ``train``, ``optimizer`` or the gradients are missing.
        """
        scales = self._loss_scales
        if self.settings.order == 2:
            if train is None or optimizer is None:
                raise ValueError("the second-order gradient needs `train` and `optimizer`")
            weights = self.architect.weights
            known = {name: w.grad for name, w in weights.items() if w.grad is not None}
            if not known:
                raise ValueError("the second-order gradient needs the weights' gradients in place")
            virtual = VirtualStep.of(optimizer, weights)
            loss, gradients = self.architect.second_order(train, held_out, virtual, gradients=known)
        else:
            loss, gradients = self.architect.first_order(held_out)
        try:
            loss = self._checked(loss, gradients)
        except NotFiniteError:
            self._loss_scales = scales
            raise
        penalty = self._penalty(self._progress(iteration))
        added = torch.autograd.grad(penalty, list(self.parameters.values()), materialize_grads=True)
        for (name, parameter), more in zip(self.parameters.items(), added, strict=True):
            parameter.grad = gradients[name] + more
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._measured = {
            "architecture_loss": loss,
            "penalty": penalty.detach(),
            "gradient_norm": torch.cat([g.flatten() for g in gradients.values()]).norm(),
        }
        self._count_flips(iteration)

    def _checked(self, loss: Tensor, gradients: Named) -> Tensor:
        """Return the mean loss of all processes, and check that it and the gradients are finite."""
        # A mean with NaN or infinity is not finite either, so all processes see it.
        loss = self.architect.average({"loss": loss})["loss"]
        finite = [value.isfinite().all() for value in (loss, *gradients.values())]
        if torch.stack(finite).all():
            return loss
        if loss.isfinite():
            raise NotFiniteError("a gradient of the architecture is NaN or infinite")
        raise NotFiniteError(f"the architecture's loss is {loss.item()}")

    def _progress(self, iteration: int) -> float:
        return iteration / self.settings.iterations

    def _loss(self, model: Callable[..., Any], batch: Any) -> Tensor:
        losses = self._losses(model, batch)
        if self.settings.normalize:
            unknown = {k: v.detach() for k, v in losses.items() if k not in self._loss_scales}
            if unknown:
                first = self.architect.average(unknown)
                known = {k: v.item() for k, v in first.items() if v > 0 and v.isfinite()}
                self._loss_scales = {**self._loss_scales, **known}
            losses = {
                name: value / self._loss_scales.get(name, 1.0) for name, value in losses.items()
            }
        return _total(losses)

    def _penalty(self, progress: float) -> Tensor:
        """Return the sum of the penalties at a share ``progress`` of the search."""
        given = self.settings
        late = max(0.0, (progress - ENTROPY_FROM) / (1 - ENTROPY_FROM))
        total = given.beta_decay * progress * beta_decay(self.architecture)
        total = total + given.entropy * late * entropy(self.architecture)
        total = total + given.sparsity * expected_flows(self.architecture)
        cost = expected_cost(self.architecture, self.costs)
        return total + given.cost * over_budget(cost, self.budget)

    @torch.no_grad()
    def _count_flips(self, iteration: int) -> None:
        """Count changes of the edges' likeliest candidates, without waiting for a GPU."""
        best = torch.stack([p.argmax() for p in self.architecture.edges.values()])
        if self._likeliest is not None:
            changed = (best != self._likeliest).sum()
            self._flips = self._flips + changed
            self._last_flip = torch.where(changed > 0, iteration, self._last_flip)
        self._likeliest, self._last_step = best, iteration

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Measure the state of the search.

        Returns:
            ``entropy``: Mean entropy of the edges, in nats.
            ``expected_cost``: Expected cost divided by the budget.
            ``flips``: Number of changes of an edge's likeliest candidate so far.
            ``unchanged``: Iterations since the last such change.
            ``absent``: Share of edges where ``none`` is at least as likely as all operations
            together.
            ``parameter_free``: Share of edges that have a flow and whose likeliest operation has no
            weights; it grows when a search collapses (Zela et al. 2020, arXiv 1909.09656).
            ``architecture_loss``, ``penalty``, ``gradient_norm``: Values of the last step, absent
            before the first.
        """
        edges = self.architecture.space.edges
        present = [name for name, flow in map(self.architecture.strongest, edges) if flow > 0.5]
        return {
            "entropy": entropy(self.architecture).item(),
            "expected_cost": expected_cost(self.architecture, self.costs).item() / self.budget,
            "flips": int(self._flips),
            "unchanged": self._last_step - int(self._last_flip),
            "parameter_free": sum(name in PARAMETER_FREE for name in present) / len(edges),
            "absent": 1 - len(present) / len(edges),
            **{name: value.item() for name, value in self._measured.items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state by parameter name, the counts and the scales of losses."""
        return {
            "optimizer": {
                name: self.optimizer.state.get(parameter, {})
                for name, parameter in self.parameters.items()
            },
            "loss_scales": self._loss_scales,
            "flips": self._flips,
            "last_flip": self._last_flip,
            "last_step": self._last_step,
            "likeliest": self._likeliest,
            "frozen": self.frozen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`."""
        by_number = {i: state["optimizer"][name] for i, name in enumerate(self.parameters)}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": by_number, "param_groups": groups})
        self._loss_scales = dict(state["loss_scales"])
        self._flips = state["flips"].to(self._device)
        self._last_flip = state["last_flip"].to(self._device)
        self._last_step = state["last_step"]
        best = state["likeliest"]
        self._likeliest = None if best is None else best.to(self._device)
        self.frozen = state["frozen"]


def _total(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()
