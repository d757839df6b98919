"""What benchmarks have in common: their arguments, their tables, and the pages that have them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch


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
    """Put tables into pages, as :func:`fill`."""
    for page in pages:
        page.write_text(fill(page.read_text(), tables, str(page)))


def fill(text: str, tables: Mapping[str, str], where: str) -> str:
    """Put tables between ``<!-- table: NAME -->`` and ``<!-- end -->``; those of others stay.

    Raises:
        ValueError: If the page has a mark of none of them.
    """
    mark = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
    marks = [found[1] for found in mark.findall(text)]
    if not set(marks) & set(tables):
        raise ValueError(f"{where}: tables {marks} marked, some of {list(tables)} expected")
    return mark.sub(lambda m: f"{m[1]}\n{tables[m[2]]}\n\n{m[3]}" if m[2] in tables else m[0], text)
