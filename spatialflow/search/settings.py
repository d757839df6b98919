"""Check the keys under ``SEARCH`` and read the settings of the architecture's learner."""

from __future__ import annotations

from detectron2.config import CfgNode

from darts.derive import RULES
from darts.learner import LearnerSettings
from spatialflow.config.options import SUPERNET
from spatialflow.config.rules import (
    Rule,
    above_zero,
    at_least,
    check_rules,
    names,
    one_of,
    only_with,
)

PERTURBATION = "perturbation"
"""Rule of derivation that measures losses; those of :data:`darts.derive.RULES` read parameters."""


SEARCH_RULES: tuple[Rule, ...] = (
    one_of("MODEL.META_ARCHITECTURE", SUPERNET),
    (
        "MODEL.SPATIALFLOW.STUFF_ATTENTION",
        "'from_genotype', as SEARCH.SPACE.CHOICES searches attention,",
        lambda v, _: v == "from_genotype",
    ),
    # Architecture and weights would be of different steps.
    one_of("SOLVER.EMA.ENABLED", False),
    # Candidates share their scale at the start (darts/mixed.py).
    one_of("MODEL.SPATIALFLOW.FLOW_INIT", "random"),
    one_of("SEARCH.RULE", *RULES, PERTURBATION),
    # Sigmoid gates have no parameter of `none` to compare with.
    *only_with(
        "SEARCH.RELAXATION",
        "sigmoid",
        one_of("SEARCH.RULE", *(rule for rule in RULES if rule != "argmax")),
    ),
    one_of("SEARCH.ORDER", 1, 2),
    # The virtual step of the second order is a step of plain SGD on one batch.
    *only_with(
        "SEARCH.ORDER",
        2,
        one_of("SOLVER.OPTIMIZER", "SGD"),
        one_of("SOLVER.NESTEROV", False),
        one_of("SOLVER.ACCUMULATION_STEPS", 1),
    ),
    (
        "SEARCH.PARTIAL_CHANNELS",
        "a divisor of MODEL.FPN.OUT_CHANNELS",
        lambda v, c: v >= 1 and c.MODEL.FPN.OUT_CHANNELS % v == 0,
    ),
    (
        "SEARCH.PARTIAL_CHANNELS",
        "1 with SEARCH.WEIGHTS or SEARCH.INHERIT, as some channels' weights do not fit all,",
        lambda v, c: v == 1 or not (c.SEARCH.WEIGHTS or c.SEARCH.INHERIT),
    ),
    *at_least(1, "SEARCH.PERTURBATION_BATCHES"),
    names("SEARCH.SPACE.PAIRS"),
    names("SEARCH.SPACE.CHOICES"),
    *at_least(
        0,
        "SEARCH.SPLIT_SEED",
        "SEARCH.REPORT_IMAGES",
        "SEARCH.EIGENVALUE_PERIOD",
        "SEARCH.STOP_RATIO",
        "SEARCH.BETA_DECAY",
        "SEARCH.ENTROPY",
        "SEARCH.SPARSITY",
        "SEARCH.COST",
        "SEARCH.AUXILIARY_SKIP",
    ),
    ("SEARCH.WARMUP", "a share of the iterations, 0 to 1, without 1,", lambda v, _: 0 <= v < 1),
    (
        "SEARCH.WARMUP",
        "a share that leaves the architecture some of SOLVER.MAX_ITER",
        lambda v, c: round(v * c.SOLVER.MAX_ITER) < c.SOLVER.MAX_ITER,
    ),
    *above_zero("SEARCH.TEMPERATURE", "SEARCH.BUDGET", "SEARCH.OPTIMIZER.LR"),
    *at_least(0, "SEARCH.OPTIMIZER.WEIGHT_DECAY"),
    (
        "SEARCH.OPTIMIZER.BETAS",
        "two numbers from 0 to 1, without 1,",
        lambda v, _: len(v) == 2 and all(0 <= beta < 1 for beta in v),
    ),
    *only_with("SEARCH.EIGENVALUE_PERIOD", 0, one_of("SEARCH.STOP_RATIO", 0.0)),
)


def check_search_config(cfg: CfgNode) -> None:
    """Check the keys of a search. The space and the relaxation check theirs when they are built.

    Raises:
        ValueError: If a value is not allowed; the error names each wrong key, the value given and
            the value expected.
    """
    check_rules(cfg, SEARCH_RULES)


def learner_settings(cfg: CfgNode) -> LearnerSettings:
    """Return the settings of the architecture's learner from ``SEARCH`` and ``SOLVER.MAX_ITER``."""
    keys = cfg.SEARCH
    return LearnerSettings(
        iterations=cfg.SOLVER.MAX_ITER,
        warmup=round(keys.WARMUP * cfg.SOLVER.MAX_ITER),
        order=keys.ORDER,
        rate=keys.OPTIMIZER.LR,
        betas=tuple(keys.OPTIMIZER.BETAS),
        decay=keys.OPTIMIZER.WEIGHT_DECAY,
        normalize=keys.NORMALIZE_LOSSES,
        beta_decay=keys.BETA_DECAY,
        entropy=keys.ENTROPY,
        sparsity=keys.SPARSITY,
        cost=keys.COST,
        auxiliary_skip=keys.AUXILIARY_SKIP,
        temperature=keys.TEMPERATURE,
    )
