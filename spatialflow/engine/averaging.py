"""Moving average of the weights: what is evaluated and saved, beside the weights that learn."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spatialflow.utils.errors import CheckpointError, ConfigError


class WeightAverage(HookBase):
    """Keeps an exponential moving average of the weights (Polyak and Juditsky 1992).

    Between two steps the model holds the average, so that checkpoints, evaluations and whoever
    else looks at the model find it. Within a step it holds the weights that learn; a checkpoint has
    them as the state of this hook. Parameters that learn and statistics of norms are averaged.

    After t steps the average moves by 1 - d, with d = min(decay, (1 + t) / (10 + t)), as in
    TensorFlow's ``ExponentialMovingAverage``: a short training averages its last tenth.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Keep the model.

        Args:
            model: Model of the training.
            decay: Largest share of the old average in the new one, from 0 to below 1.
        """
        inner = model.module if isinstance(model, DistributedDataParallel) else model
        saved = inner.state_dict()
        self.decay = decay
        self.steps = 0
        self._model = inner
        self._learning = {name: p.data for name, p in inner.named_parameters() if p.requires_grad}
        self._buffers = [
            name for name, x in inner.named_buffers() if x.is_floating_point() and name in saved
        ]
        # The other one of the two: within a step the average, between steps the learning weights.
        self._aside: dict[str, Tensor] | None = None
        self._in_step = False

    def _in_model(self) -> dict[str, Tensor]:
        """Return the model's tensors to average by name; PreciseBN replaces those of buffers."""
        return self._learning | {name: self._model.get_buffer(name) for name in self._buffers}

    def before_step(self) -> None:
        """Put the learning weights into the model."""
        if self._aside is None:
            self._aside = {name: x.clone() for name, x in self._in_model().items()}
        else:
            self._swap()
        self._in_step = True

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the average, and put it into the model."""
        assert self._aside is not None
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self._aside.values()), list(self._in_model().values()), 1 - decay)
        self.steps += 1
        self._swap()
        self._in_step = False

    def after_train(self) -> None:
        """Put the average into the model, also where a step has failed."""
        if self._in_step:
            self._swap()
            self._in_step = False

    @torch.no_grad()
    def _swap(self) -> None:
        assert self._aside is not None
        one, other = list(self._in_model().values()), list(self._aside.values())
        kept = [x.clone() for x in one]
        torch._foreach_copy_(one, other)
        torch._foreach_copy_(other, kept)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps and the learning weights, between two steps."""
        return {"steps": self.steps, "learning": self._aside or {}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; the checkpoint's model is the average.

        Raises:
            CheckpointError: If the state is of another model.
        """
        self.steps, learning = state_dict["steps"], state_dict["learning"]
        if not learning:
            return
        own = self._in_model()
        wrong = [
            name
            for name in {**learning, **own}
            if name not in learning or name not in own or learning[name].shape != own[name].shape
        ]
        if wrong:
            raise CheckpointError(
                f"SOLVER.EMA: the learning weights of the checkpoint do not have {wrong[0]} as "
                "this model has it; the config of the run that is resumed expected"
            )
        self._aside = {name: learning[name].clone().to(x) for name, x in own.items()}


def check_averaged(state_dict: dict[str, Any], *, enabled: bool) -> None:
    """Check that a run goes on with averaged weights if it began so.

    Without the hook its average would be taken for the weights that learn.

    Args:
        state_dict: State of a trainer, from a checkpoint.
        enabled: Value of ``SOLVER.EMA.ENABLED``.

    Raises:
        ConfigError: If it does not.
    """
    if WeightAverage.__qualname__ in state_dict.get("hooks", {}) and not enabled:
        raise ConfigError(
            "SOLVER.EMA.ENABLED: False given, but the run that is resumed averages its weights; "
            "True expected, or a new training with this file as MODEL.WEIGHTS"
        )
