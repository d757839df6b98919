"""Build the optimiser of a run."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser of all trainable parameters: SGD or AdamW, by ``SOLVER.OPTIMIZER``.

    The learning rate of the backbone's trunk is multiplied by ``SOLVER.TRUNK_MULTIPLIER``.
    """
    solver = cfg.SOLVER
    optimizers: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
        "SGD": (torch.optim.SGD, {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}),
        "AdamW": (torch.optim.AdamW, {}),
    }
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=lambda name: (
            solver.TRUNK_MULTIPLIER if "backbone.bottom_up." in name else 1.0
        ),
    )
    kind, options = optimizers[solver.OPTIMIZER]
    return maybe_add_gradient_clipping(cfg, kind)(
        params, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, **options
    )
