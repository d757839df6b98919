"""Gradients of the architecture: first order, and second order through one virtual step.

With weights w, architecture α and learning rate η, the virtual step of SGD with momentum m, its
buffer b, and decay d is w' = w − η (m · b + ∇w L_train(w, α) + d · w). The second-order gradient
(Liu et al. 2019, DARTS, eq. 6 to 8) is

    ∇α L_val(w', α) − η ∇²αw L_train(w, α) · v,   v = ∇w' L_val(w', α)

where the product with the Hessian is a central difference of ∇α L_train in the direction of v.
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
Loss = Callable[[Callable[..., Any], Any], Tensor]
"""From a model and a batch to a scalar; the model is called as the module itself would be."""


@dataclass(frozen=True, slots=True)
class VirtualStep:
    """What is needed of an SGD optimiser to foresee its next step.

    Where gradients are clipped the step is shorter; that is not foreseen, as in DARTS's own code.

    Attributes:
        rate: η of each weight.
        momentum: m.
        decay: d of each weight.
        buffers: b of each weight that has one.
    """

    rate: Mapping[str, float]
    momentum: float
    decay: Mapping[str, float]
    buffers: Mapping[str, Tensor]

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor]) -> VirtualStep:
        """Read an optimiser.

        Args:
            optimizer: SGD, of all weights.
            weights: By name.

        Raises:
            ValueError: If it is another optimiser, has an option that the step does not foresee,
                or does not own a weight.
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
        """Return the weights that move, after the step; SGD leaves those without a gradient."""
        moved = {}
        for name, gradient in gradients.items():
            weight = weights[name]
            change = gradient + self.decay[name] * weight
            if name in self.buffers:
                change = change + self.momentum * self.buffers[name]
            moved[name] = weight - self.rate[name] * change
        return moved


class Architect:
    """Computes architecture gradients, and leaves weights, statistics and optimiser untouched.

    Weights are never changed in place: each evaluation is a functional call with other tensors in
    their stead. Buffers (statistics of norms) go into every call as copies. Random generators are
    put back to where they were before each evaluation of one batch, so that all see the same
    draws, and at the end.
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
        """Keep the parts.

        Args:
            model: The supernet, without a wrapper for several processes.
            architecture: Its architecture parameters by name.
            loss: Of a model and a batch.
            train_loss: What the weights learn by; None for the same.
            average: Means tensors over processes; None where there is one.
        """
        self.model = model
        self.architecture = dict(architecture)
        self.loss = loss
        self.train_loss = train_loss or loss
        self.average = average or (lambda named: named)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters that learn and are not of the architecture, by name."""
        own = {id(parameter) for parameter in self.architecture.values()}
        return {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and id(parameter) not in own
        }

    def first_order(self, batch: Any) -> tuple[Tensor, Named]:
        """Return the loss on a held-out batch and its gradient by α, at the current weights."""
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
        """Return the loss after a virtual step on ``train``, and its gradient by α.

        Args:
            train: The batch of the virtual step.
            held_out: The batch of the loss.
            step: What the weights' optimiser would do.
            gradients: ∇w L_train(w, α) by name, where it is known; else it is computed.
            scale: Length of the difference in weight space. The default balances the errors of
                rounding and of curvature: the cube root of the precision, 0.005 in float32, half
                of what DARTS takes.
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
        """Return the eigenvalue of ∇²α L that is the largest in magnitude, with its sign.

        Its growth in a search comes before architectures that generalise badly (Zela et al. 2020,
        RobustDARTS). By power iteration with central differences of ∇α L, two evaluations each.

        Args:
            batch: Of the loss.
            iterations: How many.
            scale: Length of the differences; the default as in :meth:`second_order`.
        """
        with self._untouched() as rewind:
            center: Named = {name: p.detach() for name, p in self.architecture.items()}
            # The same in all processes, whose random states differ.
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
        """Put random generators back at the end; yields a function that does so in between."""
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
    """Return the derivative at 0 of a vector by the way along a line: a central difference."""
    ahead, behind = gradient_at(radius), gradient_at(-radius)
    return {name: (ahead[name] - behind[name]) / (2 * radius) for name in ahead}


def _balanced(named: Named) -> float:
    """Return the length of a difference that balances the errors of rounding and of curvature."""
    return float(torch.finfo(next(iter(named.values())).dtype).eps ** (1 / 3))


def _length(named: Named) -> Tensor:
    return torch.stack([value.double().square().sum() for value in named.values()]).sum().sqrt()


def _unit(named: Named) -> Named:
    """Return a vector of length 1, or 0 if it is none."""
    length = _length(named).clamp(min=1e-30)
    return {name: value / length.to(value.dtype) for name, value in named.items()}
