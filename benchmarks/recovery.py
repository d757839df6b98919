#!/usr/bin/env python
"""Test whether a search finds a planted flow among all edges and operations.

    python benchmarks/recovery.py run --seeds 0 1 2 3 4 5 6 7 8 9      # may be stopped and started
    python benchmarks/recovery.py report --write docs/search.md

A teacher has the four branches of SpatialFlow and one flow, which is drawn from the full space for
each seed. The student is the supernet of that space on copies of the teacher's branches without the
flow, and learns the teacher's outputs. All nodes read the same pyramid, so other sources carry a
part of what the planted one carries, but none carries all.

Letters: N pyramids, C channels, H and W the size of a level.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import spatialflow  # noqa: F401  # isort: skip  # before PyTorch, for its threads
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from darts.derive import RULES, derive, random_genotype
from darts.genotype import Flow, Genotype
from darts.learner import ArchitectureLearner, LearnerSettings
from darts.operations import ConvOperation, SeparableConv, multiply_adds, reference_scale
from darts.relaxation import Architecture, Relaxation
from darts.space import Costs, SearchSpace
from spatialflow.analysis.tables import complete, table
from spatialflow.config import get_cfg
from spatialflow.modeling.flow_graph import FlowGraph
from spatialflow.modeling.topology import spatialflow_topology
from spatialflow.search.settings import learner_settings
from spatialflow.search.space import human_genotype, relaxation_from_config
from spatialflow.search.supernet import relaxed_flow_graph
from spatialflow.utils.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "recovery"
CHANNELS = 8
LEVELS = {"p3": 12, "p4": 6}
BATCH = 8
TOPOLOGY = spatialflow_topology(
    box_levels=("p3", "p4"), stuff_levels=("p3", "p4"), mask_levels=("p3", "p4")
)
SEARCHES = {"default": "search/default.yaml", "darts_original": "search/darts_original.yaml"}
CONTESTANTS = (*SEARCHES, "first_gradient", "random")

Batch = tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]


class Task:
    """A teacher with one planted flow, and batches of pyramids with its outputs.

    Attributes:
        planted: The flow that a search should find.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        rng = random.Random(seed)
        edge = rng.choice(space.edges)
        self.planted = edge.with_operation(rng.choice(edge.operations))
        torch.manual_seed(seed)
        genotype = Genotype("planted", (self.planted,))
        self.teacher = FlowGraph.from_genotype(genotype, channels=CHANNELS, topology=TOPOLOGY)
        for node in self.teacher.nodes.values():
            nn.init.kaiming_normal_(node.weight)
        carrier = self.teacher.flows[self.planted.key]
        if isinstance(carrier, ConvOperation | SeparableConv):
            # The flow becomes as strong as the input that it is added to.
            carrier.last.weight.data *= reference_scale(self.planted.operation)
        self.teacher.requires_grad_(False)
        self.seed = seed

    def batch(self, number: int) -> Batch:
        """Return pyramids, level → (N, C, H, W), and the outputs of the teacher for them."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + number)
        features = {
            level: F.avg_pool2d(
                torch.randn(BATCH, CHANNELS, side + 2, side + 2, generator=generator), 3, stride=1
            )
            * 3
            for level, side in LEVELS.items()
        }
        return features, self.teacher(features)


class Student(nn.Module):
    """The supernet on copies of the teacher's nodes."""

    def __init__(self, task: Task, space: SearchSpace, how: Relaxation) -> None:
        super().__init__()
        torch.manual_seed(task.seed + 1)
        self.architecture = Architecture(space, how)
        self.flow_graph = relaxed_flow_graph(self.architecture, channels=CHANNELS)
        self.flow_graph.nodes.load_state_dict(task.teacher.nodes.state_dict())

    def forward(self, features: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Return the outputs, branch → level → (N, C, H, W)."""
        self.architecture.draw()
        return self.flow_graph(features)


def losses(model: Callable[..., Any], batch: Batch) -> dict[str, Tensor]:
    """Return the squared error of each branch over the variance of the expected output."""
    features, expected = batch
    given = model(features)
    return {
        branch: torch.stack(
            [(given[branch][n] - x).square().mean() / x.var() for n, x in levels.items()]
        ).mean()
        for branch, levels in expected.items()
    }


@dataclass(frozen=True)
class Search:
    """Settings of a search, taken from a config.

    Attributes:
        how: Relaxation of the architecture.
        settings: Settings of the architecture's steps.
        rule: Name of the rule of derivation.
        budget: Largest cost of a genotype over that of the human flows.
        optimizer: ``SGD``, or another name for AdamW.
    """

    how: Relaxation
    settings: LearnerSettings
    rule: str
    budget: float
    optimizer: str

    @classmethod
    def of(cls, name: str, opts: list[str]) -> Search:
        """Read a config of :data:`SEARCHES`, with KEY VALUE pairs over it."""
        cfg = get_cfg(SEARCHES[name], opts)
        return cls(
            relaxation_from_config(cfg),
            learner_settings(cfg),
            cfg.SEARCH.RULE,
            cfg.SEARCH.BUDGET,
            cfg.SOLVER.OPTIMIZER,
        )


def space_of(name: str) -> SearchSpace:
    """Return the space of a search config, on the task's topology."""
    return SearchSpace.build(TOPOLOGY, operations=get_cfg(SEARCHES[name]).SEARCH.SPACE.OPERATIONS)


def costs_of(space: SearchSpace) -> tuple[Costs, float]:
    """Return the multiply-adds of each edge's operations, and those of the human flows."""
    areas = sum(side**2 for side in LEVELS.values())

    def cost(operation: str) -> float:
        return float(multiply_adds(operation, CHANNELS) * areas)

    costs = {(edge.key, name): cost(name) for edge in space.edges for name in edge.operations}
    return costs, sum(cost(flow.operation) for flow in human_genotype().flows)


def search(task: Task, space: SearchSpace, given: Search) -> Genotype:
    """Search as the search trainer does, with architecture and weight steps in turn."""
    student = Student(task, space, given.how)
    costs, human = costs_of(space)
    learner = ArchitectureLearner(
        student,
        student.architecture,
        given.settings,
        costs=costs,
        budget=given.budget * human,
        losses=losses,
    )
    weights = list(learner.architect.weights.values())
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(weights, lr=0.01, momentum=0.9)
        if given.optimizer == "SGD"
        else torch.optim.AdamW(weights, lr=0.002, weight_decay=0.0)
    )
    steps = given.settings.iterations
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for iteration in range(steps):
        train = task.batch(2 * iteration)
        held_out = task.batch(2 * iteration + 1) if learner.begin(iteration) else None
        if held_out and given.settings.order == 1:
            learner.step(iteration, held_out)
        optimizer.zero_grad()
        torch.stack(list(losses(student, train).values())).sum().backward()
        nn.utils.clip_grad_norm_(weights, 10.0)
        if held_out and given.settings.order == 2:
            # The virtual step is the one that the weights take next.
            learner.step(iteration, held_out, train=train, optimizer=optimizer)
        optimizer.step()
        schedule.step()
    strengths = RULES[given.rule](student.architecture)
    budget = given.budget * human if given.settings.cost > 0 else None
    return derive(student.architecture, strengths, name="found", costs=costs, budget=budget)


def first_gradient(task: Task, space: SearchSpace) -> Genotype:
    """Return the single flow whose parameter the gradient before any training raises most."""
    student = Student(task, space, Relaxation())
    costs, human = costs_of(space)
    learner = ArchitectureLearner(
        student, student.architecture, LearnerSettings(1), costs=costs, budget=human, losses=losses
    )
    _, gradients = learner.architect.first_order(task.batch(1))
    found = {
        edge.with_operation(name): float(-gradients[f"architecture.edges.{edge.key}"][i])
        for edge in space.edges
        for i, name in enumerate(edge.operations)
    }
    return Genotype("first", (max(found, key=lambda flow: found[flow]),))


def run_one(contestant: str, seed: int, opts: list[str]) -> dict[str, Any]:
    """Plant a flow, and let a contestant search for it.

    Args:
        contestant: One of :data:`CONTESTANTS`.
        seed: Seed of the task and of the search.
        opts: KEY VALUE pairs over the config of the search.
    """
    name = contestant if contestant in SEARCHES else "default"
    space = space_of(name)
    task = Task(space_of("default"), seed)
    start = time.perf_counter()
    match contestant:
        case "first_gradient":
            genotype = first_gradient(task, space)
        case "random":
            costs, human = costs_of(space)
            genotype = random_genotype(space, seed=seed, name="random", costs=costs, budget=human)
        case _:
            genotype = search(task, space, Search.of(contestant, opts))
    return {
        "contestant": contestant,
        "seed": seed,
        "planted": task.planted.to_dict(),
        "found": [flow.to_dict() for flow in genotype.flows],
        "seconds": round(time.perf_counter() - start, 1),
    }


def score(result: dict[str, Any]) -> tuple[bool, bool, int]:
    """Return whether the edge and its operation were found, and the number of other edges."""
    planted = Flow.from_dict(result["planted"])
    found = [Flow.from_dict(flow) for flow in result["found"]]
    edge = any(flow.edge == planted.edge for flow in found)
    return edge, planted in found, sum(flow.edge != planted.edge for flow in found)


def run(args: argparse.Namespace) -> None:
    """Do the runs that have no result yet."""
    torch.set_num_threads(args.threads)
    args.results.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for contestant in args.contestants:
            path = args.results / f"{contestant}-seed{seed}.json"
            if path.is_file():
                continue
            result = run_one(contestant, seed, args.opts)
            write_json(path, result, indent=None)
            edge, operation, others = score(result)
            print(
                f"{path.name}: edge {edge}, operation {operation}, {others} others, "
                f"{result['seconds']} s",
                flush=True,
            )


def report(args: argparse.Namespace) -> None:
    """Print the table, and complete pages with it."""
    results = [read_json(path, dict) for path in sorted(args.results.glob("*.json"))]
    rows = []
    for contestant in CONTESTANTS:
        mine = [r for r in results if r["contestant"] == contestant]
        if not mine:
            continue
        scores = [score(r) for r in mine]
        rows.append(
            [
                contestant,
                f"{sum(s[0] for s in scores)} of {len(scores)}",
                f"{sum(s[1] for s in scores)} of {len(scores)}",
                f"{sum(s[2] for s in scores) / len(scores):.1f}",
                f"{sum(s[0] and not s[2] for s in scores)} of {len(scores)}",
                f"{sum(r['seconds'] for r in mine) / len(mine):.0f}",
            ]
        )
    head = ["", "edge found", "with its operation", "other edges, mean", "it alone", "s"]
    text = table(head, rows)
    print(text)
    complete(args.write, {"recovery": text})


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--results", type=Path, default=RESULTS)
    runs = commands.add_parser("run", parents=[common])
    runs.add_argument("--seeds", type=int, nargs="+", default=range(10))
    runs.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    runs.add_argument("--threads", type=int, default=torch.get_num_threads())
    runs.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    tables = commands.add_parser("report", parents=[common])
    tables.add_argument("--write", type=Path, nargs="*", default=[])
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()
    {"run": run, "report": report}[arguments.command](arguments)
