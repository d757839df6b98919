"""Compare this network with outputs of the authors' code.

    python tools/check_parity.py FIXTURE_DIR --config-file CFG [KEY VALUE ...]

Prints a table. The exit status is 0 only if every row holds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from spatialflow import get_cfg
from spatialflow.cli.errors import errors_in_one_line
from spatialflow.reference.parity import check_parity, format_table, read_fixture
from spatialflow_cli.arguments import Parser, path_argument


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description="Compare with the authors' code on a fixture.")
    parser.add_argument(
        "fixture", type=path_argument, metavar="FIXTURE_DIR", help="checkpoint.pth and expected.npz"
    )
    parser.add_argument(
        "--config-file", type=path_argument, required=True, help="config of the fixture's model"
    )
    parser.add_argument(
        "--things-other-index",
        type=int,
        help="index of things-other among the checkpoint's stuff outputs (default: the stuff label "
        "under the fixture's thing masks; without them 36 of 54 outputs, else the last)",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison, and return the exit status."""
    arguments = parse_arguments(argv)
    with errors_in_one_line():
        cfg = get_cfg(arguments.config_file, arguments.opts)
        fixture = read_fixture(arguments.fixture)
        result = check_parity(fixture, cfg, things_other=arguments.things_other_index)
        print(f"checkpoint: {result.conversion.summary()}")
        print(f"things-other: index {result.things_other_index} of the authors' stuff classes")
        if result.compact:
            print("compact fixture: weights rounded to 16 bits, hence wider tolerances")
        print()
        print(format_table(result.rows))
        failed = [row.key for row in result.rows if not row.holds]
        print()
        print(f"FAILED: {', '.join(failed)}" if failed else "all rows hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
