"""The search space that a config describes, and what its flows cost."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from pathlib import Path

from detectron2.config import CfgNode

from darts.derive import random_genotype
from darts.genotype import Flow, Genotype
from darts.operations import OPERATIONS, multiply_adds
from darts.relaxation import Relaxation, choice_key
from darts.space import Costs, SearchSpace, SpaceError, Topology
from spatialflow.config import load_genotype
from spatialflow.config.options import ATTENTION_OPTIONS, ATTENTION_SITES
from spatialflow.modeling.heads.attention import attention_channels, attention_multiply_adds
from spatialflow.modeling.topology import conv_choice, known_choices, topology_from_config
from spatialflow.utils.errors import ConfigError

logger = logging.getLogger(__name__)

DEFORMABLE_EXTRA = 27 * 9 + 4 * 9
"""Multiply-adds of a deformable convolution beyond those of a plain one, for each channel and
position: a 3×3 convolution to 27 channels, and nine bilinear samples of four pixels."""

SEARCHED_PORTS = ("input", "gate")
"""Ports that a space may have. An offset port needs a deformable target, which is a choice."""

HUMAN = "spatialflow"
"""Name of the published genotype; the cost of its flows is the unit of a budget."""


def search_space(cfg: CfgNode) -> SearchSpace:
    """Return the search space of ``SEARCH.SPACE``.

    Raises:
        ConfigError: If a key names something unknown, or the space is empty.
    """
    keys = cfg.SEARCH.SPACE
    pairs = [tuple(pair.split(">")) for pair in keys.PAIRS]
    wrong = [pair for pair, parts in zip(keys.PAIRS, pairs, strict=True) if len(parts) != 2]
    if wrong:
        raise ConfigError(f"SEARCH.SPACE.PAIRS: {wrong} given, 'source>target' expected")
    unknown = [port for port in keys.PORTS if port not in SEARCHED_PORTS]
    if unknown or not keys.PORTS:
        why = ": an offset needs a deformable target, which is a choice of its own"
        raise ConfigError(
            f"SEARCH.SPACE.PORTS: {unknown or keys.PORTS} given, some of {SEARCHED_PORTS} expected"
            f"{why if 'offset' in unknown else ''}"
        )
    if keys.MAX_INPUTS < 0:
        raise ConfigError(f"SEARCH.SPACE.MAX_INPUTS: {keys.MAX_INPUTS} given, 0 or more expected")
    topology = topology_from_config(cfg)
    try:
        return SearchSpace.build(
            topology,
            operations=keys.OPERATIONS,
            pairs=[(source, target) for source, target in pairs] or None,
            stages=keys.STAGES or None,
            ports=keys.PORTS,
            complete_levels=keys.COMPLETE_LEVELS,
            max_inputs=keys.MAX_INPUTS or None,
            choices=_choices(keys.CHOICES, topology),
        )
    except SpaceError as error:
        raise ConfigError(f"SEARCH.SPACE: {error}") from error


def _choices(given: list[str], topology: Topology) -> dict[str, list[str]]:
    """Read ``SEARCH.SPACE.CHOICES``."""
    known = known_choices(topology)
    choices = {}
    for text in given:
        name, _, options = text.partition("=")
        choices[name] = options.split(",")
        unknown = [option for option in choices[name] if option not in known.get(name, ())]
        if unknown or len(set(choices[name])) < max(2, len(choices[name])):
            raise SpaceError(
                f"CHOICES: {text!r} given, '<name>=<option>,<option>' expected, one of "
                f"{[*ATTENTION_SITES, '<node>.conv']} with two or more of "
                f"{list(known.get(name, ATTENTION_OPTIONS))}"
            )
    return choices


def relaxation_from_config(cfg: CfgNode) -> Relaxation:
    """Return the relaxation of ``SEARCH.RELAXATION``, ``EDGE_WEIGHTS`` and ``PARTIAL_CHANNELS``.

    Raises:
        ConfigError: If a key has a value that is not allowed.
    """
    keys = cfg.SEARCH
    try:
        return Relaxation(keys.RELAXATION, keys.EDGE_WEIGHTS, keys.PARTIAL_CHANNELS)
    except SpaceError as error:
        raise ConfigError(f"SEARCH: {error}") from error


def flow_costs(cfg: CfgNode, topology: Topology) -> tuple[Costs, float]:
    """Return the cost of every flow and option, and the cost of the human flows.

    The unit is a million multiply-adds for an image of one megapixel. A flow is counted on the
    levels where source and target both exist, without what is enlarged.

    Args:
        cfg: Config of a search or a training.
        topology: Branches of the network.

    Returns:
        (key of an edge or choice, operation or option) → cost, for all causal edges of the topology
        and all options that cost anything; and the sum over the flows of :data:`HUMAN`.
    """
    channels = cfg.MODEL.FPN.OUT_CHANNELS

    def cost(flow: Flow) -> float:
        return multiply_adds(flow.operation, channels) * _area(topology.shared_levels(flow))

    costs = {}
    for (source, target), port in itertools.product(topology.edges(), SEARCHED_PORTS):
        for operation in OPERATIONS:
            flow = Flow(source.name, target.name, port, operation)
            costs[flow.key, operation] = cost(flow)
    head = cfg.MODEL.SEM_SEG_HEAD
    # Size of each map that a block sees, over the number of pixels.
    maps = {
        ATTENTION_SITES[0]: [_area([level]) for level in head.IN_FEATURES],
        ATTENTION_SITES[1]: [head.COMMON_STRIDE**-2],
    }
    for name, option in itertools.product(ATTENTION_SITES, ATTENTION_OPTIONS):
        width = attention_channels(cfg, name)
        each = [attention_multiply_adds(option, width, 1e6 * area) for area in maps[name]]
        costs[choice_key(name), option] = sum(each) / 1e6
    for node in topology.nodes:
        area, name = _area(node.branch.levels), choice_key(conv_choice(node))
        costs[name, "deformable"] = DEFORMABLE_EXTRA * channels * area
        # What it saves, as costs are those beyond a plain convolution's.
        costs[name, "identity"] = -multiply_adds("conv_3x3", channels) * area
    return costs, sum(cost(flow) for flow in human_genotype().flows)


def _area(levels: Iterable[str]) -> float:
    """Return the number of positions of all levels together, over the number of pixels."""
    return sum(4.0 ** -int(level.removeprefix("p")) for level in levels)


def human_genotype() -> Genotype:
    """Return the published design."""
    return load_genotype(HUMAN)


def random_genotypes(cfg: CfgNode, count: int, seed: int) -> list[Genotype]:
    """Return random genotypes of a config's space, named ``random_<seed>``.

    Each costs at most ``SEARCH.BUDGET`` times the cost of the human flows.

    Args:
        cfg: Config of a search.
        count: Number of genotypes, 1 or more.
        seed: Seed of the first genotype; the others take the numbers after it.

    Raises:
        ValueError: If the config does not describe a space.
    """
    space = search_space(cfg)
    costs, human = flow_costs(cfg, space.topology)
    budget = cfg.SEARCH.BUDGET * human
    return [
        random_genotype(space, seed=number, name=f"random_{number}", costs=costs, budget=budget)
        for number in range(seed, seed + count)
    ]


def write_genotypes(genotypes: Iterable[Genotype], folder: Path) -> list[Path]:
    """Write each genotype to ``<folder>/<name>.json``, and return the paths."""
    paths = []
    for genotype in genotypes:
        paths.append(folder / f"{genotype.name}.json")
        genotype.save(paths[-1])
        logger.info("%s: %d flows", paths[-1], len(genotype.flows))
    return paths
