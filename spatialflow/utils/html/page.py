"""One HTML page without a server, a network or another file, legible on a phone and in the dark.

Fragments are strings of HTML; all text that is given is escaped.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

import cv2
import numpy as np

from spatialflow.utils.files import write_atomically

JPEG_QUALITY = 88
NUMBER = re.compile(r"[-+−]?\d")


class Page:
    """A title, and sections that a list of links leads to."""

    def __init__(self, title: str, lead: str) -> None:
        """Begin a page.

        Args:
            title: Of the page.
            lead: A sentence below it.
        """
        self.title = title
        self.lead = lead
        self._sections: list[tuple[str, str]] = []

    def section(self, heading: str, *fragments: str) -> None:
        """Add a section; one without fragments is left out."""
        if fragments:
            self._sections.append((heading, "\n".join(fragments)))

    def html(self) -> str:
        """Return the whole page."""
        files = resources.files(__package__)
        style, script = (files.joinpath(name).read_text() for name in ("style.css", "sort.js"))
        links, sections = [], []
        for i, (heading, content) in enumerate(self._sections):
            name, text = f"section-{i + 1}", escape(heading)
            links.append(f'<li><a href="#{name}">{text}</a></li>')
            sections.append(
                f'<section aria-labelledby="{name}"><h2 id="{name}">{text}</h2>{content}</section>'
            )
        return "\n".join(
            [
                '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<title>{escape(self.title)}</title><style>{style}</style></head><body>",
                '<a class="skip" href="#section-1">Skip to the first section</a><main>',
                f'<header><h1>{escape(self.title)}</h1><p class="lead">{escape(self.lead)}</p>',
                f'<nav aria-label="Sections"><ul>{"".join(links)}</ul></nav></header>',
                *sections,
                f"</main><script>{script}</script></body></html>\n",
            ]
        )

    def save(self, path: Path) -> Path:
        """Write the page, whole or not at all."""
        content = self.html().encode()
        write_atomically(path, lambda file: file.write(content))
        return path


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def drawing(svg: str, *, alt: str, caption: str = "", width: str = "own") -> str:
    """Return a vector drawing; its styles and names do not touch those of others.

    Args:
        svg: The document.
        alt: What it shows, for those who do not see it.
        caption: Below it.
        width: ``fits`` shrinks to the page's, ``large`` takes all of it, ``own`` stays as it is;
            the latter two scroll where the page is narrow.
    """
    data = base64.b64encode(svg.encode()).decode()
    return _figure(f"data:image/svg+xml;base64,{data}", alt, caption, width)


def beside(*fragments: str) -> str:
    """Return fragments side by side, or below each other where the page is narrow."""
    return f'<div class="beside">{"".join(fragments)}</div>'


def picture(rgb: np.ndarray, *, alt: str, caption: str = "") -> str:
    """Return a picture.

    Args:
        rgb: (H, W, 3) uint8.
        alt: What it shows.
        caption: Below it.
    """
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(rgb[:, :, ::-1]), quality)
    source = f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"
    return _figure(source, alt, caption, "large")


def _figure(source: str, alt: str, caption: str, width: str) -> str:
    text = escape(alt, quote=True)
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    # What scrolls has to be reached by the keyboard.
    scrolls = "" if width == "fits" else ' tabindex="0" role="region" aria-label="scrolls sideways"'
    return (
        f'<figure><div class="wide"{scrolls}><img class="{width}" src="{source}" alt="{text}">'
        f"</div>{below}</figure>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str) -> str:
    """Return a table that a click on a column's head sorts.

    Raises:
        ValueError: If a row has not a cell for each column.
    """
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"a row of {len(row)} cells given, {len(head)} expected: {head}")
    # The head stands where its column does.
    kinds = [_kind(cell) for cell in (rows[0] if rows else head)]
    heads = "".join(
        f'<th scope="col"{kind}>{escape(cell)}</th>' for cell, kind in zip(head, kinds, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(f"<td{_kind(cell)}>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    name = escape(caption, quote=True)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{name}"><table class="sortable">'
        f"<caption><span>{escape(caption)}</span></caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _kind(cell: str) -> str:
    return ' class="number"' if NUMBER.match(cell) else ""


def details(summary: str, text: str) -> str:
    """Return text as it is, closed until it is asked for."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"
