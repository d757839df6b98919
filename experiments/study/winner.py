#!/usr/bin/env python
"""Write configs/genotypes/nas_spatialflow.json, the searched genotype that is above the human one.

It is drawn in docs/images/nas_spatialflow.svg.

python -m experiments.study.winner
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

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
from experiments.study.keep import ROOT
from spatialflow.analysis.trials import ROOT as REPOSITORY
from spatialflow.modeling.flow_graph import spatialflow_topology

NAME = "nas_spatialflow"


def winner(kept: Path) -> Genotype:
    """Return the finalist of the last round on real data that is above the human flows.

    Raises:
        ValueError: If none is.
    """
    for outcome in reversed(outcomes(kept)):
        if outcome.base not in REAL:
            continue
        found = {claim.statement: claim for claim in claims(outcome)}
        if beats_human(found):
            return with_provenance(outcome, found[FINALIST_ABOVE_HUMAN].measured)
    raise ValueError(f"{kept}: no finalist on {', '.join(REAL)} is above the human flows")


def with_provenance(outcome: Outcome, over_human: str) -> Genotype:
    """Return an outcome's finalist with where it comes from, and what it has over human flows."""
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
    """Write the file, and draw it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kept", type=Path, default=ROOT, help="folder of kept results")
    try:
        found = winner(parser.parse_args().kept)
    except ValueError as error:
        sys.exit(f"study: {error}")
    found.save(REPOSITORY / "configs" / "genotypes" / f"{NAME}.json")
    drawn = to_svg(found, spatialflow_topology())
    (REPOSITORY / "docs" / "images" / f"{NAME}.svg").write_text(drawn)


if __name__ == "__main__":
    main()
