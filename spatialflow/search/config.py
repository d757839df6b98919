"""The keys of a search, under ``SEARCH``."""

from __future__ import annotations

from detectron2.config import CfgNode

from darts.operations import OPERATIONS


def add_search_config(cfg: CfgNode) -> None:
    """Add the keys of a search, with their defaults, to a config."""
    search = cfg.SEARCH = CfgNode()
    # Whether the model is the supernet of the space; search_net.py sets it.
    search.ENABLED = False

    space = search.SPACE = CfgNode()
    # Pairs of branches that may be joined, "source>target" such as "box>cls"; empty for all.
    space.PAIRS = []
    # Stages of the targets; empty for all.
    space.STAGES = []
    space.PORTS = ["input"]
    space.OPERATIONS = list(OPERATIONS)
    # Leave out edges whose target has levels that the source lacks.
    space.COMPLETE_LEVELS = False
    # Flows that a node may receive at most; 0 for any number.
    space.MAX_INPUTS = 0

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
    # Iterations in which only the weights learn.
    search.WARMUP_ITERS = 0
    # Of the architecture's gradient: 1 at the weights as they are, 2 through one virtual step of
    # SGD (DARTS, eq. 6 to 8), which takes four forward and backward passes instead of one.
    search.ORDER = 1
    # Adam of the architecture parameters (the values of DARTS).
    search.OPTIMIZER = CfgNode({"LR": 0.0003, "BETAS": [0.5, 0.999], "WEIGHT_DECAY": 0.001})
    # Divide each task's loss by its value at the first architecture step.
    search.NORMALIZE_LOSSES = True
    # Factors of what is added to the architecture's loss; each reaches its value at the end, the
    # first growing from the first architecture step on, the second from two thirds of the search.
    search.BETA_DECAY = 0.0
    search.ENTROPY = 0.0
    # Factor of relu(expected cost / budget - 1), and the budget in units of the human flows' cost.
    search.COST = 0.0
    search.BUDGET = 1.0
    # Share of the source that is added to every flow, fading to 0 at the end (Chu et al. 2021,
    # DARTS-).
    search.AUXILIARY_SKIP = 0.0
    # How the genotype is derived: "argmax" (with ``none`` allowed), "threshold" (of 0.5) or
    # "top_inputs" (two inputs of every node, the rule of DARTS) or "perturbation" (what hurts most
    # when it is removed, Wang et al. 2021, DARTS-PT), measured on so many held-out batches.
    search.RULE = "argmax"
    search.PERTURBATION_BATCHES = 4
