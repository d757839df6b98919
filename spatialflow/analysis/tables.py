"""What benchmarks have in common: their arguments, their tables, and the pages that have them."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

MARK = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def parser_of(doc: str | None, *, threads: bool = True) -> argparse.ArgumentParser:
    """Return a parser with ``--write`` and ``--threads``, whose help begins with a docstring."""
    found = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if threads:
        found.add_argument("--threads", type=int, default=torch.get_num_threads())
    found.add_argument("--write", type=Path, nargs="*", default=[], help="pages to complete")
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def complete(pages: Iterable[Path], tables: Mapping[str, str]) -> None:
    """Put tables into pages, as :func:`fill`, and name those that no page has a mark for."""
    texts = {page: page.read_text() for page in pages}
    for page, text in texts.items():
        page.write_text(fill(text, tables, str(page)))
    missing = set(tables) - {name for text in texts.values() for name in marks(text)}
    if texts and missing:
        print(f"no page given has a mark for the tables {sorted(missing)}", file=sys.stderr)


def marks(text: str) -> list[str]:
    """Return the names of the tables that a page has a place for."""
    return [found[1] for found in MARK.findall(text)]


def fill(text: str, tables: Mapping[str, str], where: str) -> str:
    """Put tables between ``<!-- table: NAME -->`` and ``<!-- end -->``; those of others stay.

    Raises:
        ValueError: If the page has a mark of none of them.
    """
    if not set(marks(text)) & set(tables):
        raise ValueError(f"{where}: tables {marks(text)} marked, some of {list(tables)} expected")
    return MARK.sub(lambda m: f"{m[1]}\n{tables[m[2]]}\n\n{m[3]}" if m[2] in tables else m[0], text)
