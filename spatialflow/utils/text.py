"""Show names that come from data: they are text, whatever characters they have."""

from __future__ import annotations

from collections.abc import Sequence


def printable(text: str) -> str:
    """Return a text with line breaks, control characters and lone surrogates as escapes.

    Marks without a shape of their own count, too: those of zero width, and those that turn the
    direction of writing around.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def cell(text: str) -> str:
    """Return a text for a cell of a Markdown table: printable, and without a bar that ends it."""
    return printable(text).replace("|", "\\|")


def first_of(names: Sequence[str]) -> str:
    """Return up to three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
