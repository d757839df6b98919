#!/usr/bin/env python
r"""Write the genotypes of an ablation: the published flows with each block of attention.

python benchmarks/attention.py --output output/attention
python tools/compare_genotypes.py --config-file benchmarks/peers/nuclei.yaml \
        --genotypes spatialflow thing_guided output/attention/*.json --seeds 0 1 2 \
        --opts DATASETS.FOLDER.PATH nuclei_train433 SOLVER.MAX_ITER 300 SOLVER.WARMUP_ITERS 30
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from darts.genotype import Genotype
from spatialflow.config import load_genotype
from spatialflow.heads.attention import OPTIONS, SITES


def genotypes() -> Iterator[Genotype]:
    """Yield the published design with each block at each of the two sites."""
    human = load_genotype("spatialflow")
    for site in SITES:
        for option in OPTIONS[1:]:
            name = f"{site.rpartition('.')[2]}_{option}"
            yield replace(human, name=name, choices={site: option}, provenance={})


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/attention"))
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    for genotype in genotypes():
        genotype.save(folder / f"{genotype.name}.json")
        print(folder / f"{genotype.name}.json")


if __name__ == "__main__":
    main()
