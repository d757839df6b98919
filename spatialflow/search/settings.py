"""From the keys under ``SEARCH`` to the settings of a search."""

from __future__ import annotations

from detectron2.config import CfgNode

from darts.derive import RULES
from darts.learner import LearnerSettings
from spatialflow.config.checks import check_rules
from spatialflow.config.options import SUPERNET
from spatialflow.config.rules import Rule, number, positive, whole

PERTURBATION = "perturbation"
"""The rule that measures losses, unlike those of :data:`darts.derive.RULES`."""

NUMBERS = (
    Rule("SEARCH.PERTURBATION_BATCHES", "1 or more", whole(1)),
    *(
        Rule(f"SEARCH.{name}", "0 or more", test)
        for name, test in (
            ("REPORT_IMAGES", whole(0)),
            ("EIGENVALUE_PERIOD", whole(0)),
            ("STOP_RATIO", number(0)),
            ("BETA_DECAY", number(0)),
            ("ENTROPY", number(0)),
            ("SPARSITY", number(0)),
            ("COST", number(0)),
            ("AUXILIARY_SKIP", number(0)),
        )
    ),
    Rule("SEARCH.WARMUP", "a share of the iterations, 0 to 1, without 1,", lambda v, _: 0 <= v < 1),
    Rule("SEARCH.TEMPERATURE", "more than 0", positive),
    Rule("SEARCH.BUDGET", "more than 0", positive),
)
"""Which numbers the keys of a search may have."""


def check_search_config(cfg: CfgNode) -> None:
    """Check the keys of a search that nothing else checks.

    Raises:
        ValueError: Naming the first key whose value is not allowed.
    """
    keys = cfg.SEARCH
    if cfg.MODEL.META_ARCHITECTURE != SUPERNET:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE: {cfg.MODEL.META_ARCHITECTURE!r} given, "
            f"{SUPERNET!r} expected in a search"
        )
    attention = cfg.MODEL.SPATIALFLOW.STUFF_ATTENTION
    if attention != "from_genotype":
        raise ValueError(
            f"MODEL.SPATIALFLOW.STUFF_ATTENTION: {attention!r} given, 'from_genotype' expected in "
            "a search, which has attention by SEARCH.SPACE.CHOICES"
        )
    known = [*RULES, PERTURBATION]
    if keys.RULE not in known:
        raise ValueError(f"SEARCH.RULE: {keys.RULE!r} given, one of {known} expected")
    if keys.RULE in (PERTURBATION, "argmax") and keys.RELAXATION == "sigmoid":
        raise ValueError(
            f"SEARCH.RULE: {keys.RULE!r} given with SEARCH.RELAXATION 'sigmoid', which has no "
            "parameter of `none` to compare with; 'presence' or 'threshold' expected"
        )
    if keys.ORDER not in (1, 2):
        raise ValueError(f"SEARCH.ORDER: {keys.ORDER} given, 1 or 2 expected")
    if keys.ORDER == 2:
        _check_second_order(cfg)
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    if keys.PARTIAL_CHANNELS < 1 or channels % keys.PARTIAL_CHANNELS:
        raise ValueError(
            f"SEARCH.PARTIAL_CHANNELS: {keys.PARTIAL_CHANNELS} given, a divisor of "
            f"MODEL.FPN.OUT_CHANNELS, {channels}, expected"
        )
    if keys.PARTIAL_CHANNELS != 1 and (keys.WEIGHTS or keys.INHERIT):
        raise ValueError(
            f"SEARCH.PARTIAL_CHANNELS: {keys.PARTIAL_CHANNELS} given, 1 expected with "
            "SEARCH.WEIGHTS or SEARCH.INHERIT, as weights do not pass between parts of channels "
            "and all"
        )
    check_rules(cfg, NUMBERS)
    if keys.STOP_RATIO and not keys.EIGENVALUE_PERIOD:
        raise ValueError(
            f"SEARCH.STOP_RATIO: {keys.STOP_RATIO} given with SEARCH.EIGENVALUE_PERIOD 0, a period "
            "expected"
        )


def _check_second_order(cfg: CfgNode) -> None:
    """Check that a virtual step can foresee that of the weights."""
    for key, expected in (("OPTIMIZER", "SGD"), ("NESTEROV", False), ("ACCUMULATION_STEPS", 1)):
        if cfg.SOLVER[key] != expected:
            raise ValueError(
                f"SOLVER.{key}: {cfg.SOLVER[key]!r} given, {expected!r} expected where "
                "SEARCH.ORDER is 2, whose virtual step is one of plain SGD on one batch"
            )


def learner_settings(cfg: CfgNode) -> LearnerSettings:
    """Return how the architecture is to learn."""
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
