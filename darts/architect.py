"""Compute the gradient of the architecture: first order, or second order through a virtual step.

The weights are w, the architecture α and the learning rate η. SGD with momentum m, buffer b and
weight decay d takes the virtual step w' = w − η (m · b + ∇w L_train(w, α) + d · w). The gradient of
second order (DARTS, Liu et al. 2019, arXiv 1806.09055, eq. 6 to 8) is

    ∇α L_val(w', α) − η ∇²αw L_train(w, α) · v,   v = ∇w' L_val(w', α)

The product with the Hessian is a central difference of ∇α L_train in the direction of v.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Named = dict[str, Tensor]
"""Name of a parameter → a tensor of its shape."""

Loss = Callable[[Callable[..., Any], Any], Tensor]
"""Function (model, batch) → scalar loss; the model takes the arguments of the module itself."""


@dataclass(frozen=True, slots=True)
class VirtualStep:
    """Next step of an SGD optimiser.

    Clipping of gradients is ignored, as in DARTS's own code.

    Attributes:
        rate: Learning rate η by name of the weight.
        momentum: Momentum m.
        decay: Weight decay d by name of the weight.
        buffers: Momentum buffer b by name of the weight; a weight without a step yet has none.
    """

    rate: Mapping[str, float]
    momentum: float
    decay: Mapping[str, float]
    buffers: Mapping[str, Tensor]

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor]) -> VirtualStep:
        """Read the next step of an optimiser.

        Args:
            optimizer: SGD that owns all weights.
            weights: The weights by name.

        Raises:
            ValueError: If the optimiser is not SGD, uses Nesterov momentum, dampening or
                ``maximize``, has more than one momentum, or does not own a weight.
        """
        if not isinstance(optimizer, torch.optim.SGD):
            raise ValueError(
                f"the second-order gradient foresees steps of SGD, {type(optimizer).__name__} given"
            )
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        missing = [name for name, weight in weights.items() if id(weight) not in groups]
        if missing:
            raise ValueError(f"the optimiser does not own the weights {missing[:3]}")
        options = [groups[id(weight)] for weight in weights.values()]
        for option, expected in (("nesterov", False), ("dampening", 0), ("maximize", False)):
            if any(group[option] != expected for group in options):
                raise ValueError(f"SGD with {option} is not foreseen by the second-order gradient")
        momenta = {float(group["momentum"]) for group in options}
        if len(momenta) != 1:
            raise ValueError(f"one momentum of all weights expected, {sorted(momenta)} given")
        states = {name: optimizer.state.get(weight, {}) for name, weight in weights.items()}
        return cls(
            rate={name: groups[id(weight)]["lr"] for name, weight in weights.items()},
            momentum=momenta.pop(),
            decay={name: groups[id(weight)]["weight_decay"] for name, weight in weights.items()},
            buffers={
                name: state["momentum_buffer"]
                for name, state in states.items()
                if state.get("momentum_buffer") is not None
            },
        )

    def take(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Named:
        """Return the weights after the step, without those that have no gradient.

        Args:
            weights: The weights by name.
            gradients: ∇w L_train(w, α) by name; SGD does not move a weight without a gradient.
        """
        moved = {}
        for name, gradient in gradients.items():
            weight = weights[name]
            change = gradient + self.decay[name] * weight
            if name in self.buffers:
                change = change + self.momentum * self.buffers[name]
            moved[name] = weight - self.rate[name] * change
        return moved


class Architect:
    """Source of architecture gradients that leaves weights, statistics and optimiser unchanged.

    Each evaluation is a functional call of the model with other tensors instead of its weights, and
    with copies of its buffers (statistics of norms). The random generators are reset before each
    evaluation, so that all evaluations of a batch draw the same numbers, and at the end.

    Attributes:
        model: The supernet.
        architecture: Its architecture parameters by name.
        loss: The architecture's loss.
        train_loss: The weights' loss.
        average: Mean over processes.
    """

    def __init__(
        self,
        model: nn.Module,
        architecture: Mapping[str, nn.Parameter],
        loss: Loss,
        *,
        train_loss: Loss | None = None,
        average: Callable[[Named], Named] | None = None,
    ) -> None:
        """Keep the model and the functions.

        Args:
            model: The supernet, without ``DistributedDataParallel`` around it.
            architecture: Architecture parameters of the model by name.
            loss: The architecture's loss.
            train_loss: The weights' loss; None for the same loss.
            average: Return the means over all processes of tensors by name; None for one process.
        """
        self.model = model
        self.architecture = dict(architecture)
        self.loss = loss
        self.train_loss = train_loss or loss
        self.average = average or (lambda named: named)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """Parameters by name that require a gradient and do not belong to the architecture."""
        own = {id(parameter) for parameter in self.architecture.values()}
        return {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and id(parameter) not in own
        }

    def first_order(self, batch: Any) -> tuple[Tensor, Named]:
        """Return the loss at the current weights and its gradient by α.

        Args:
            batch: Held-out batch.

        Returns:
            The loss, a scalar without a gradient, and ∇α L_val(w, α) by name.
        """
        with self._untouched():
            loss = self._loss(batch, {})
            return loss.detach(), self._gradients(loss, self.architecture)

    def second_order(
        self,
        train: Any,
        held_out: Any,
        step: VirtualStep,
        *,
        gradients: Mapping[str, Tensor] | None = None,
        scale: float | None = None,
    ) -> tuple[Tensor, Named]:
        """Return the loss after a virtual step of the weights, and its gradient by α.

        Args:
            train: Batch of the virtual step.
            held_out: Batch of the loss.
            step: Next step of the weights' optimiser.
            gradients: ∇w L_train(w, α) by name; None computes it.
            scale: Length of the central difference in weight space; None for the cube root of the
                machine precision, which balances the errors of rounding and of curvature. In
                float32 that is 0.005, half of the value in DARTS.

        Returns:
            The loss, a scalar without a gradient, and its gradient by α by name.
        """
        with self._untouched() as rewind:
            weights: Named = {name: p.detach() for name, p in self.weights.items()}
            if gradients is None:
                gradients = self._weight_gradients(train, weights)
            moved = step.take(weights, gradients)
            rewind()
            leaves = {name: value.requires_grad_() for name, value in moved.items()}
            loss = self._loss(held_out, leaves)
            joint = self._gradients(loss, {**self.architecture, **leaves})
            direction = {name: step.rate[name] * joint[name] for name in leaves}
            product = self._hessian_product(train, weights, direction, scale, rewind)
            return loss.detach(), {name: joint[name] - product[name] for name in self.architecture}

    def dominant_eigenvalue(
        self, batch: Any, *, iterations: int = 8, scale: float | None = None
    ) -> Tensor:
        """Return the eigenvalue of ∇²α L with the largest magnitude, with its sign.

        It grows in a search before the search finds architectures that generalise badly
        (RobustDARTS, Zela et al. 2020, arXiv 1909.09656). Power iteration computes it; each
        iteration is a central difference of ∇α L, two evaluations of the loss.

        Args:
            batch: Held-out batch.
            iterations: Number of power iterations.
            scale: Length of the central difference; None for the cube root of the machine
                precision.
        """
        with self._untouched() as rewind:
            center: Named = {name: p.detach() for name, p in self.architecture.items()}
            # All processes need the same direction, but their random states differ.
            generator = torch.Generator().manual_seed(0)
            start = {n: torch.randn(p.shape, generator=generator).to(p) for n, p in center.items()}
            direction = _unit(start)
            value = torch.zeros(())

            def gradient_at(way: float) -> Named:
                rewind()
                shifted = {n: (a + way * direction[n]).requires_grad_() for n, a in center.items()}
                return self._gradients(self._loss(batch, shifted), shifted)

            for _ in range(iterations):
                product = _slope(gradient_at, scale or _balanced(center))
                value = torch.stack([(product[n] * direction[n]).sum() for n in center]).sum()
                direction = _unit(product)
            return value

    def _hessian_product(
        self,
        batch: Any,
        weights: Named,
        direction: Named,
        scale: float | None,
        rewind: Callable[[], None],
    ) -> Named:
        """Return ∇²αw L · direction by a central difference of ∇α L."""
        length = _length(direction)
        if length == 0:
            return {name: torch.zeros_like(p) for name, p in self.architecture.items()}

        def gradient_at(way: float) -> Named:
            rewind()
            shifted = {name: weights[name] + way * v for name, v in direction.items()}
            return self._gradients(self._loss(batch, shifted, self.train_loss), self.architecture)

        return _slope(gradient_at, (scale or _balanced(weights)) / float(length))

    def _weight_gradients(self, batch: Any, weights: Named) -> Named:
        leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        return self._gradients(self._loss(batch, leaves, self.train_loss), leaves)

    def _gradients(self, loss: Tensor, by: Mapping[str, Tensor]) -> Named:
        gradients = torch.autograd.grad(loss, list(by.values()), allow_unused=True)
        return self.average(
            {
                name: torch.zeros_like(value) if gradient is None else gradient
                for (name, value), gradient in zip(by.items(), gradients, strict=True)
            }
        )

    def _loss(self, batch: Any, weights: Mapping[str, Tensor], loss: Loss | None = None) -> Tensor:
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}

        def call(*args: Any, **kwargs: Any) -> Any:
            return functional_call(self.model, {**buffers, **weights}, args, kwargs)

        return (loss or self.loss)(call, batch)

    @contextlib.contextmanager
    def _untouched(self) -> Iterator[Callable[[], None]]:
        """Reset the random generators at the end, and yield a function that resets them."""
        state = torch.get_rng_state()
        devices = [torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else []

        def rewind() -> None:
            torch.set_rng_state(state)
            for states in devices:
                torch.cuda.set_rng_state_all(states)

        try:
            yield rewind
        finally:
            rewind()


def _slope(gradient_at: Callable[[float], Named], radius: float) -> Named:
    """Return (g(radius) − g(−radius)) / (2 · radius), the derivative at 0 of a named vector."""
    ahead, behind = gradient_at(radius), gradient_at(-radius)
    return {name: (ahead[name] - behind[name]) / (2 * radius) for name in ahead}


def _balanced(named: Named) -> float:
    """Return the length of a central difference that balances rounding and curvature errors."""
    return float(torch.finfo(next(iter(named.values())).dtype).eps ** (1 / 3))


def _length(named: Named) -> Tensor:
    return torch.stack([value.double().square().sum() for value in named.values()]).sum().sqrt()


def _unit(named: Named) -> Named:
    """Scale a named vector to length 1; the zero vector stays zero."""
    length = _length(named).clamp(min=1e-30)
    return {name: value / length.to(value.dtype) for name, value in named.items()}
