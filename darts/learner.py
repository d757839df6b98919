"""How an architecture learns: one step at a time, on held-out data, with what is added to its loss.

The owner of the weights and of the data calls :meth:`ArchitectureLearner.begin` before each step of
the weights, and :meth:`ArchitectureLearner.step` where that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from darts.architect import Architect, Named, VirtualStep
from darts.operations import PARAMETER_FREE
from darts.regularizers import beta_decay, entropy, expected_cost, expected_flows, over_budget
from darts.relaxation import Architecture, MixedEdge, architecture_parameters
from darts.space import Costs

ENTROPY_FROM = 2 / 3
"""Share of the search after which the entropy is pushed down."""

Losses = Callable[[Callable[..., Any], Any], dict[str, Tensor]]
"""From a model and a batch to the scalar losses of its tasks by name."""


class NotFiniteError(ArithmeticError):
    """The loss of an architecture's step, or its gradient in any process, is NaN or infinite."""


@dataclass(frozen=True, slots=True)
class LearnerSettings:
    """What an architecture learns by; the defaults are those of DARTS (Liu et al. 2019, sec. 3).

    Attributes:
        iterations: Length of the search.
        warmup: Iterations in which only the weights learn.
        order: 1 or 2, of the gradient.
        rate: Adam's.
        betas: Adam's.
        decay: Adam's weight decay.
        normalize: Divide each task's loss by its value at the first step where it has one above 0.
        beta_decay: Factor of :func:`darts.regularizers.beta_decay` at the end, growing from 0.
        entropy: Factor of :func:`darts.regularizers.entropy` at the end, growing from 0 at two
            thirds of the search.
        sparsity: Factor of :func:`darts.regularizers.expected_flows`.
        cost: Factor of :func:`darts.regularizers.over_budget`.
        auxiliary_skip: Share of the source added to every flow at the start, 0 at the end.
        temperature: Of the relaxation at the start; it reaches 1 in equal ratios at the end.
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
    """Steps the architecture of a supernet, and measures how the search is doing.

    It knows nothing of where batches come from, nor of what the tasks are.
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
        """Keep the parts, and make the optimiser of the architecture parameters.

        Args:
            supernet: Contains the architecture.
            architecture: What is to learn.
            settings: How the architecture learns.
            costs: Of each edge's operations.
            budget: What all flows may cost together, in the unit of ``costs``.
            losses: Of the tasks, by name.
            average: Means tensors over processes; None where there is one.
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
        """Set to stop the learning for good; the weights may go on."""
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
        """Fade what fades with time, and tell whether the architecture learns in this iteration."""
        # What the weights' backward pass has left here is nobody's.
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
            iteration: Counted from 0.
            held_out: The batch of the loss.
            train: Of second order, the batch that the weights are about to learn from.
            optimizer: Of second order, the one of the weights. Their gradients on that batch are
                in place: the step that it will take is the virtual one.

        Raises:
            NotFiniteError: If loss or gradient are not finite, in all processes alike. Nothing has
                changed then.
            ValueError: If the gradient is of second order, and batch or optimiser do not fit.
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
        """Return the mean loss of all processes, if it and the gradients are finite."""
        # NaN and infinity stay what they are in a mean, so that all processes see them.
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
        """Return what is added to the loss of the architecture."""
        given = self.settings
        late = max(0.0, (progress - ENTROPY_FROM) / (1 - ENTROPY_FROM))
        total = given.beta_decay * progress * beta_decay(self.architecture)
        total = total + given.entropy * late * entropy(self.architecture)
        total = total + given.sparsity * expected_flows(self.architecture)
        cost = expected_cost(self.architecture, self.costs)
        return total + given.cost * over_budget(cost, self.budget)

    @torch.no_grad()
    def _count_flips(self, iteration: int) -> None:
        """Count how often an edge's likeliest candidate has changed, without waiting for a GPU."""
        best = torch.stack([p.argmax() for p in self.architecture.edges.values()])
        if self._likeliest is not None:
            changed = (best != self._likeliest).sum()
            self._flips = self._flips + changed
            self._last_flip = torch.where(changed > 0, iteration, self._last_flip)
        self._likeliest, self._last_step = best, iteration

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Return how the search is doing, in numbers.

        Returns:
            ``entropy``: mean of the edges, in nats; ``expected_cost``: over the budget; ``flips``:
            changes of an edge's likeliest candidate so far; ``unchanged``: iterations since the
            last of them; ``absent``: the share of edges where ``none`` is likelier than all
            operations together; ``parameter_free``: the share of edges that are present and whose
            likeliest operation has no weights, which grows where a search collapses (Zela et al.
            2020); and of the last step ``architecture_loss``, ``penalty``, ``gradient_norm``.
        """
        edges = self.architecture.space.edges
        present = [name for name, there in map(self.architecture.carrier, edges) if there > 0.5]
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
        """Return the optimiser's state by parameter name, and what was counted."""
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
        """Restore what :meth:`state_dict` returned."""
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
