"""Contestants, data sets, seeds and settings of the study, as PLAN.md sets them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

from darts.genotype import Genotype
from spatialflow.config import get_cfg
from spatialflow.config.options import SUPERNET
from spatialflow.search.derivation import cost_of
from spatialflow.search.space import flow_costs, topology_from_config

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results"
ROUND = "_round"
HUMAN, PARALLEL, GATED = "spatialflow", "parallel", "human_gated"
STEPS = ("SOLVER.MAX_ITER", 800, "SOLVER.WARMUP_ITERS", 50, "SOLVER.BASE_LR", 0.001)
HARNESS_SEEDS = range(5)
SHORTLIST, SHORTLIST_SEEDS = 3, (1, 2)
RANDOM = 5
OURS = ("default", "perturbation")
DARTS = ("darts_original", "darts_gates")
"""DARTS (arXiv 1806.09055) as published, and in our space of gates, in the second round alone."""
METHODS = (*OURS, *DARTS)
GATES = ("SEARCH.SPACE.PORTS", ["gate"])
FASTER = ("SEARCH.OPTIMIZER.LR", 0.02)
"""With this rate 300 steps can move an architecture as far as the 20000 of DARTS with 0.0003."""
CHANGED: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(OURS, (*GATES, "SEARCH.SPARSITY", 0.05)),
    DARTS[0]: FASTER,
    DARTS[1]: (*FASTER, *GATES),
}
"""Keys that the second round changes, by method."""


def search_seeds(number: int) -> range:
    """Return the seeds of a round's searches: 0 to 2, then 10 to 12."""
    return range(10 * (number - 1), 10 * (number - 1) + 3)


def final_seeds(number: int) -> range:
    """Return the seeds of a round's final trainings: 100 to 107, then 200 to 207."""
    return range(100 * number, 100 * number + 8)


@dataclass(frozen=True)
class Data:
    """Configs of a data set.

    Attributes:
        training: Path of the config of trainings, below the repository.
        search: Name of the config of our searches.
        darts: Name of the config of searches by DARTS as published.
        training_keys: KEY VALUE pairs over the config of trainings.
        search_keys: KEY VALUE pairs over the configs of searches.
    """

    training: str
    search: str
    darts: str
    training_keys: tuple[object, ...]
    search_keys: tuple[object, ...]

    def config_of(self, method: str) -> str:
        """Return the name of the config of a method's searches."""
        return self.darts if method in DARTS else self.search

    def search_opts(self, method: str, number: int) -> tuple[object, ...]:
        """Return the KEY VALUE pairs of a round's searches by a method."""
        return (*self.search_keys, *(CHANGED[method] if number > 1 else ()))

    def search_config(self, method: str, number: int) -> CfgNode:
        """Return the config of a round's searches by a method."""
        return get_cfg(
            self.config_of(method),
            ["MODEL.META_ARCHITECTURE", SUPERNET, *self.search_opts(method, number)],
        )

    def cost_over_human(self) -> Callable[[Genotype], float]:
        """Return a function from a genotype to its multiply-adds over those of the human flows."""
        cfg = get_cfg(self.search)
        costs, human = flow_costs(cfg, topology_from_config(cfg))
        return lambda genotype: cost_of(genotype, costs) / human


DATA = {
    "nuclei": Data(
        training="benchmarks/peers/nuclei.yaml",
        search="search/nuclei.yaml",
        darts="search/nuclei_darts_original.yaml",
        training_keys=STEPS,
        search_keys=(),
    ),
    "scenes": Data(
        training="benchmarks/peers/scenes.yaml",
        search="search/default.yaml",
        darts="search/darts_original.yaml",
        training_keys=STEPS,
        search_keys=(
            *("SOLVER.MAX_ITER", 300, "INPUT.MIN_SIZE_TRAIN", (160,)),
            *("MODEL.BACKBONE.FREEZE_AT", 5),
        ),
    ),
}
