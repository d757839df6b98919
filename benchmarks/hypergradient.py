#!/usr/bin/env python
"""Measure the error of the second-order architecture gradient on the whole model, by its step.

    python benchmarks/hypergradient.py --write docs/search.md

The gradient of DARTS (arXiv 1806.09055, equation 8) uses central differences in weight space. The
reference is the same gradient in float64 with a step of 1e-6; where exact differentiation is
possible, the two agree (tests/search/test_search.py). Longer steps err because a network of ReLUs
is not linear over them, shorter ones because of rounding in float32. The table has the relative
error and, in parentheses, the cosine.
"""

from __future__ import annotations

import argparse
import copy

import spatialflow  # noqa: F401  # isort: skip  # before PyTorch, for its threads
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from darts.architect import Architect, VirtualStep
from darts.relaxation import architecture_parameters
from spatialflow.analysis.tables import complete, program_parser, table
from spatialflow.config import get_cfg
from spatialflow.config.options import SUPERNET
from spatialflow.data.loader import build_train_loader
from spatialflow.engine import prepare_config
from spatialflow.search.supernet import FixedProposalBatch

STEPS = (1e-1, 1e-2, 1e-3, 1e-4)
TRAINED = (0, 50, 150)
RATE = 0.01
REFERENCE = 1e-6


def gradients(
    model: nn.Module, batches: list, dtype: torch.dtype, scales: tuple[float, ...]
) -> tuple[list[Tensor], Tensor]:
    """Compute architecture gradients.

    Args:
        model: Supernet; a copy of it is used.
        batches: A batch of training and a held-out batch.
        dtype: Precision of weights and images.
        scales: Steps of the central differences.

    Returns:
        The flattened second-order gradient with each scale, and that of first order.
    """
    model = copy.deepcopy(model).to(dtype)
    train, held_out = (
        FixedProposalBatch([{**item, "image": item["image"].to(dtype)} for item in batch])
        for batch in batches
    )
    architect = Architect(
        model, architecture_parameters(model), lambda call, data: sum(call(data).values())
    )
    virtual = VirtualStep.of(torch.optim.SGD(architect.weights.values(), RATE), architect.weights)
    with EventStorage():
        second = [architect.second_order(train, held_out, virtual, scale=s)[1] for s in scales]
        first = architect.first_order(held_out)[1]
    flat = [torch.cat([value.double() for value in named.values()]) for named in (*second, first)]
    return flat[:-1], flat[-1]


def error(given: Tensor, expected: Tensor) -> str:
    """Return the relative error and the cosine of a gradient as text."""
    cosine = torch.nn.functional.cosine_similarity(given, expected, dim=0)
    return f"{(given - expected).norm() / expected.norm():.3f} ({cosine:.3f})"


def main() -> None:
    """Train a supernet, and measure the error after some numbers of steps."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    opts = ["MODEL.META_ARCHITECTURE", SUPERNET, "MODEL.DEVICE", "cpu", "DATASETS.SCENES.TRAIN", 64]
    cfg = get_cfg("search/demo.yaml", opts)
    prepare_config(cfg)
    torch.manual_seed(args.seed)
    model = build_model(cfg)
    loader = iter(build_train_loader(cfg, args.seed))
    batches = [next(loader), next(loader)]
    weights = [p for n, p in model.named_parameters() if not n.startswith("architecture.")]
    optimizer = torch.optim.AdamW(weights, 0.001)
    rows, done = [], 0
    for target in TRAINED:
        with EventStorage():
            for _ in range(target - done):
                optimizer.zero_grad()
                sum(model(next(loader)).values()).backward()
                optimizer.step()
        done = target
        (reference,), _ = gradients(model, batches, torch.float64, (REFERENCE,))
        second, first = gradients(model, batches, torch.float32, STEPS)
        rows.append([str(target), *(error(x, reference) for x in (*second, first))])
    head = ["steps of training", *(f"second order, {s:g}" for s in STEPS), "first order"]
    text = table(head, rows)
    print(text)
    complete(args.write, {"hypergradient": text})


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = program_parser(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
