"""Markdown tables, and the marks in pages that programs complete with them.

A page has a place for a table between ``<!-- table: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from spatialflow.utils.errors import ConfigError
from spatialflow.utils.files import write_text
from spatialflow.utils.text import cell

logger = logging.getLogger(__name__)

MARK = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def program_parser(doc: str | None, *, threads: bool = True) -> argparse.ArgumentParser:
    """Return a parser with ``--write`` and ``--threads``.

    Args:
        doc: Docstring of the program, shown by ``--help``.
        threads: Whether the program takes ``--threads``.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if threads:
        parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", type=Path, nargs="*", default=[], help="pages to complete")
    return parser


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; cells are text, in which a bar is no end of a cell."""
    lines = ["| " + " | ".join(map(cell, row)) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def complete(pages: Iterable[Path], tables: Mapping[str, str]) -> None:
    """Write tables into pages, and warn of tables that no page has a mark for.

    Args:
        pages: Markdown files that are changed in place.
        tables: Content of each table, by the name in its mark.

    Raises:
        ValueError: If a page has no mark of any of the tables.
    """
    texts = {page: page.read_text() for page in pages}
    for page, text in texts.items():
        write_text(page, fill(text, tables, str(page)))
    missing = set(tables) - {name for text in texts.values() for name in marks(text)}
    if texts and missing:
        logger.warning("no page given has a mark for the tables %s", sorted(missing))


def marks(text: str) -> list[str]:
    """Return the names of the tables that a page has marks for."""
    return [found[1] for found in MARK.findall(text)]


def fill(text: str, tables: Mapping[str, str], where: str) -> str:
    """Return a page with tables between their marks; other tables stay as they are.

    Args:
        text: Content of the page.
        tables: Content of each table, by the name in its mark.
        where: Name of the page, for the error.

    Raises:
        ConfigError: If the page has no mark of any of the tables.
    """
    if not set(marks(text)) & set(tables):
        raise ConfigError(f"{where}: tables {marks(text)} marked, some of {list(tables)} expected")
    return MARK.sub(lambda m: f"{m[1]}\n{tables[m[2]]}\n\n{m[3]}" if m[2] in tables else m[0], text)
