#!/usr/bin/env python
"""Compute every claim of the study from the results that are kept in this repository.

    python -m experiments.study.claims

Prints each claim with a difference in PQ and its 95 % interval, and whether two aims are met. The
first aim: a searched genotype is above the human one on real data, at no more operations, and above
the mean random genotype on all data sets. The aim of PLAN.md: the mean of our searches is above the
mean random genotype, too. The exit status is 0 only if the aim of PLAN.md is met.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from experiments.study.analysis import Claim, Outcome, claims, missed, outcomes
from experiments.study.settings import RESULTS
from spatialflow.analysis.tables import table

HEAD = ("data", "claim", "measured", "holds", "holds where")
HOLDS = {True: "yes", False: "no", None: "—"}


def all_claims(found: Iterable[Outcome]) -> list[Claim]:
    """Return the claims of all data sets and rounds."""
    return [claim for outcome in found for claim in claims(outcome)]


def cells(found: list[Claim]) -> list[list[str]]:
    """Return claims as rows of a table under :data:`HEAD`."""
    return [[c.data, c.statement, c.measured, HOLDS[c.holds], c.rule] for c in found]


def claims_table(found: list[Claim]) -> str:
    """Return claims as a Markdown table."""
    return table(list(HEAD), cells(found))


def main() -> int:
    """Print the claims, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kept", type=Path, default=RESULTS, help="folder of kept results")
    found = all_claims(outcomes(parser.parse_args().kept))
    print(claims_table(found))
    lacks = missed(found)
    at_first = missed(found, of_plan=False)
    for aim, missing in (("as it was first put", at_first), ("of PLAN.md", lacks)):
        print(f"The aim {aim} is {'not met:' if missing else 'met.'}")
        for each in missing:
            print(f"  {each}")
    return 1 if lacks else 0


if __name__ == "__main__":
    sys.exit(main())
