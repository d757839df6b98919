#!/usr/bin/env python
r"""Measure the cost of attention in the stuff head, and write genotypes for an ablation of it.

    python benchmarks/attention.py cost --write docs/attention.md
    python benchmarks/attention.py genotypes --output output/attention
    spatialflow trials --config-file benchmarks/peers/nuclei.yaml \
        --genotypes spatialflow thing_guided output/attention/*.json --seeds 0 1 2 \
        --output output/attention_nuclei --write docs/attention.md \
        --opts DATASETS.FOLDER.PATH nuclei_train433 \
        SOLVER.MAX_ITER 300 SOLVER.WARMUP_ITERS 30 SOLVER.BASE_LR 0.001

Costs are for one image of 800 × 1344 pixels at the two sites of the published R50: the levels P3
to P5 with 256 channels, and their sum with 128 channels. The input is random. Times are of forward
and backward, with all blocks in turn in one process. Memory is what autograd saves for the backward
pass.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import spatialflow  # noqa: F401  # isort: skip  # before PyTorch, for its threads
import torch
from torch import Tensor, nn

from darts.genotype import Genotype
from spatialflow.analysis.memory import SavedTensors
from spatialflow.analysis.tables import complete, table
from spatialflow.analysis.timing import time_in_turn
from spatialflow.config import load_genotype
from spatialflow.config.options import ATTENTION_OPTIONS, ATTENTION_SITES
from spatialflow.modeling.heads.attention import attention_multiply_adds, build_attention

# Site → channels and the sizes of its maps, for an image of 800 × 1344 pixels.
MAPS = {
    ATTENTION_SITES[0]: (256, ((100, 168), (50, 84), (25, 42))),
    ATTENTION_SITES[1]: (128, ((100, 168),)),
}
ROUNDS = 5


def genotypes() -> Iterator[Genotype]:
    """Yield the published design with each block at each of the two sites."""
    human = load_genotype("spatialflow")
    for site in ATTENTION_SITES:
        for option in ATTENTION_OPTIONS[1:]:
            name = f"{site.rpartition('.')[2]}_{option}"
            yield replace(human, name=name, choices={site: option}, provenance={})


class Block:
    """An attention block with its inputs at full size.

    Attributes:
        maps: One (1, C, H, W) input for each level of the site.
    """

    def __init__(self, site: str, option: str) -> None:
        self.channels, self.sizes = MAPS[site]
        self.option = option
        self.module: nn.Module = build_attention(option, self.channels)
        self.maps = [
            torch.randn(1, self.channels, *size, requires_grad=True) for size in self.sizes
        ]

    def step(self) -> None:
        """Run forward and backward on all maps."""
        torch.autograd.backward([self.module(x).sum() for x in self.maps])

    def saved_mib(self) -> float:
        """Return the MiB that autograd saves in a forward pass on all maps."""
        counted = SavedTensors(self.module)
        with counted.counting():
            outputs: list[Tensor] = [self.module(x) for x in self.maps]
        del outputs
        return counted.mib

    def multiply_adds(self) -> float:
        """Return the multiply-adds of a forward pass on all maps."""
        areas = [height * width for height, width in self.sizes]
        return sum(attention_multiply_adds(self.option, self.channels, area) for area in areas)


def cost_table() -> str:
    """Measure all blocks at both sites, and return a Markdown table."""
    rows = []
    for site in ATTENTION_SITES:
        blocks = {option: Block(site, option) for option in ATTENTION_OPTIONS[1:]}
        times = time_in_turn(
            {option: block.step for option, block in blocks.items()}, rounds=ROUNDS
        )
        for option, block in blocks.items():
            seconds = times[option]
            rows.append(
                [
                    f"`{site.rpartition('.')[2]}`",
                    f"`{option}`",
                    f"{sum(p.numel() for p in block.module.parameters()):,}",
                    f"{block.multiply_adds() / 1e9:.2f}",
                    f"{block.saved_mib():.0f}",
                    f"{1000 * statistics.median(seconds):.0f} "
                    f"({1000 * min(seconds):.0f} to {1000 * max(seconds):.0f})",
                ]
            )
    head = ["site", "block", "parameters", "GMAC", "MiB kept", "ms, forward and backward"]
    return table(head, rows)


def main() -> None:
    """Measure the costs, or write the genotypes."""
    args = parse_arguments()
    if args.command == "genotypes":
        args.output.mkdir(parents=True, exist_ok=True)
        for genotype in genotypes():
            genotype.save(args.output / f"{genotype.name}.json")
            print(args.output / f"{genotype.name}.json")
        return
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    text = cost_table()
    print(text)
    complete(args.write, {"attention cost": text})


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("genotypes")
    writing.add_argument("--output", type=Path, default=Path("output/attention"))
    cost = commands.add_parser("cost")
    cost.add_argument("--threads", type=int, default=torch.get_num_threads())
    cost.add_argument("--write", type=Path, nargs="*", default=[], help="pages to complete")
    return parser.parse_args()


if __name__ == "__main__":
    main()
