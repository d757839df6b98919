#!/usr/bin/env python
"""Write the searched genotype that is above the human one, from kept results.

    python -m experiments.study.winner

The genotype goes to configs/genotypes/nas_spatialflow.json, and its drawing to
docs/images/nas_spatialflow.svg.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import spatialflow  # noqa: F401  # isort: skip  # before PyTorch, for its threads
from darts.drawing import to_svg
from darts.genotype import Genotype
from experiments.study.analysis import (
    FINALIST_ABOVE_HUMAN,
    REAL,
    Outcome,
    beats_human,
    claims,
    outcomes,
)
from experiments.study.settings import REPOSITORY, RESULTS
from spatialflow.modeling.topology import spatialflow_topology

NAME = "nas_spatialflow"


def winner(kept: Path) -> Genotype:
    """Return the last finalist on real data that is above the human flows.

    Raises:
        ValueError: If no finalist is.
    """
    for outcome in reversed(outcomes(kept)):
        if outcome.base not in REAL:
            continue
        found = {claim.statement: claim for claim in claims(outcome)}
        if beats_human(found):
            return with_provenance(outcome, found[FINALIST_ABOVE_HUMAN].measured)
    raise ValueError(f"{kept}: no finalist on {', '.join(REAL)} is above the human flows")


def with_provenance(outcome: Outcome, over_human: str) -> Genotype:
    """Return the finalist of an outcome, with its provenance.

    Args:
        outcome: Kept results of a data set and round.
        over_human: Difference to the human flows in PQ, as text.
    """
    assert outcome.finalist is not None
    name = outcome.finalist["finalist"]
    found = outcome.genotype(name)
    method = name.rpartition("_")[0]
    config = [outcome.data.config_of(method), *outcome.data.search_opts(method, outcome.round)]
    provenance = {
        "study": f"docs/study.md, {outcome.name}, {name}",
        "search": " ".join(map(str, config)),
        "PQ over spatialflow": over_human,
    }
    return replace(found, name=NAME, provenance={**provenance, **found.provenance})


def main() -> None:
    """Write the genotype and its drawing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kept", type=Path, default=RESULTS, help="folder of kept results")
    try:
        found = winner(parser.parse_args().kept)
    except ValueError as error:
        sys.exit(f"study: {error}")
    found.save(REPOSITORY / "configs" / "genotypes" / f"{NAME}.json")
    drawn = to_svg(found, spatialflow_topology())
    (REPOSITORY / "docs" / "images" / f"{NAME}.svg").write_text(drawn)


if __name__ == "__main__":
    main()
