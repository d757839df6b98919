"""The keys of a search, under ``SEARCH``; the defaults are our search."""

from __future__ import annotations

from detectron2.config import CfgNode

from darts.derive import RULES
from darts.learner import Learning
from spatialflow.config_check import check_rules
from spatialflow.config_rules import Rule, number, positive, whole

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


def add_search_config(cfg: CfgNode) -> None:
    """Add the keys of a search, with their defaults, to a config."""
    search = cfg.SEARCH = CfgNode()
    # Whether the model is the supernet of the space; search_net.py sets it.
    search.ENABLED = False

    search.SPACE = _space_keys()
    # "softmax" (Liu et al. 2019, DARTS), "sigmoid" (Chu et al. 2020, FairDARTS) or "gumbel" (Dong
    # and Yang 2019, GDAS).
    search.RELAXATION = "softmax"
    # A weight of each edge beside that of its operation: "none", "independent" or "softmax" over
    # the inputs of a node (Xu et al. 2020, PC-DARTS).
    search.EDGE_WEIGHTS = "none"
    # One channel of so many passes through the candidates (PC-DARTS); 1 for all.
    search.PARTIAL_CHANNELS = 1
    # Share of the training images that the architecture learns from, by a hash of seed and name.
    search.ARCHITECTURE_FRACTION = 0.2
    search.SPLIT_SEED = 0
    # Share of the iterations, at the start, in which only the weights learn (Xu et al. 2020: 0.3).
    search.WARMUP = 0.3
    # Of the architecture's gradient: 1 at the weights as they are, 2 through one virtual step of
    # SGD (DARTS, eq. 6 to 8), which takes three forward and backward passes instead of one.
    search.ORDER = 1
    # Adam of the architecture parameters; DARTS has 0.0003 and a decay of 0.001, with which little
    # moves in hundreds of iterations.
    search.OPTIMIZER = CfgNode({"LR": 0.05, "BETAS": [0.5, 0.999], "WEIGHT_DECAY": 0.0})
    # Divide each task's loss by its value at the first architecture step.
    search.NORMALIZE_LOSSES = True
    # Factors of what is added to the architecture's loss; each reaches its value at the end, the
    # first growing from the first iteration on, the second from two thirds of the search.
    search.BETA_DECAY = 0.0
    search.ENTROPY = 0.0
    # Factor of the expected share of edges that carry a flow (after Louizos et al. 2018, L0).
    search.SPARSITY = 0.3
    # Factor of relu(expected cost / budget - 1), and the budget in units of the human flows' cost.
    search.COST = 1.0
    search.BUDGET = 1.0
    # Share of the source that is added to every flow, fading to 0 at the end (Chu et al. 2021,
    # DARTS-).
    search.AUXILIARY_SKIP = 0.0
    # Temperature of the relaxation at the start, reaching 1 at the end in equal ratios.
    search.TEMPERATURE = 1.0
    # A checkpoint of a network that was trained with MODEL.SPATIALFLOW.GENOTYPE: the supernet
    # starts as that network, its other candidates at zero (Gao et al. 2020, MTL-NAS).
    search.WEIGHTS = ""
    # Logit added at the start to the flows of the human design; a search with it starts from what
    # it should find, and has to be named so.
    search.HUMAN_PRIOR = 0.0
    # Iterations between measurements of the dominant eigenvalue of the architecture's loss; 0 for
    # none. The architecture goes back and is frozen where the mean of five measurements, over that
    # of the five before it, is above 1 / STOP_RATIO (0.75 in Zela et al. 2020, RobustDARTS; 0 for
    # never).
    search.EIGENVALUE_PERIOD = 0
    search.STOP_RATIO = 0.0
    _add_derivation(search)


def _add_derivation(search: CfgNode) -> None:
    # How the genotype is derived: "argmax" (with ``none`` allowed), "presence" (an edge
    # whose operations together are likelier than ``none``), "threshold" (of 0.5),
    # "top_inputs" (two inputs of every node, the rule of DARTS) or "perturbation" (what hurts most
    # when it is removed, Wang et al. 2021, DARTS-PT), measured on so many held-out batches.
    search.RULE = "presence"
    # The loss of the derived network with the supernet's weights is measured on them as well.
    search.PERTURBATION_BATCHES = 4
    # Write the derived network with the supernet's weights, for MODEL.WEIGHTS of a training.
    search.INHERIT = False
    # Held-out images that report.html has results of, with the searched and the human flows.
    search.REPORT_IMAGES = 8


def _space_keys() -> CfgNode:
    space = CfgNode()
    # Pairs of branches that may be joined, "source>target" such as "box>cls"; empty for all.
    space.PAIRS = []
    # Stages of the targets; empty for all.
    space.STAGES = []
    space.PORTS = ["input"]
    # Others: "dil_conv_3x3", "channel_gate", "spatial_gate".
    space.OPERATIONS = ["identity", "conv_1x1", "conv_3x3", "sep_conv_3x3"]
    # Attention of the stuff head and convolutions of nodes, "<name>=<option>,<option>", such as
    # "stuff.attention.merged=none,channel,criss_cross" or "cls.1.conv=plain,deformable".
    space.CHOICES = []
    # Leave out edges whose target has levels that the source lacks.
    space.COMPLETE_LEVELS = False
    # Flows that a node may receive at most; 0 for any number.
    space.MAX_INPUTS = 0
    return space


def check_search_config(cfg: CfgNode) -> None:
    """Check the keys of a search that nothing else checks.

    Raises:
        ValueError: Naming the first key whose value is not allowed.
    """
    keys = cfg.SEARCH
    if not keys.ENABLED:
        raise ValueError("SEARCH.ENABLED: False given, True expected in a search")
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


def learning(cfg: CfgNode) -> Learning:
    """Return how the architecture is to learn."""
    keys = cfg.SEARCH
    return Learning(
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
