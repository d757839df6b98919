"""Write an HTML page that is one file, needs no network, and fits phones and dark screens.

The functions of this module return fragments of a page. All text that they are given is escaped.
The templates lie beside this module, with the style sheet and the script that sorts tables.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from spatialflow.utils.files import write_atomically

JPEG_QUALITY = 88
_NUMBER = re.compile(r"[-+−]?\d")

_ENVIRONMENT = Environment(
    loader=PackageLoader(__package__, package_path=""),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.tests["numeric"] = lambda cell: _NUMBER.match(cell) is not None
# The macros of a template are attributes that only exist at run time.
_FRAGMENTS: Any = _ENVIRONMENT.get_template("fragments.html").module


class Page:
    """Page with a title, sections, and links to them.

    Attributes:
        title: Title of the page.
        lead: Sentence below the title.
    """

    def __init__(self, title: str, lead: str) -> None:
        self.title = title
        self.lead = lead
        self._sections: list[tuple[str, tuple[Markup, ...]]] = []

    def section(self, heading: str, *fragments: Markup) -> None:
        """Add a section; a section without fragments is left out.

        Args:
            heading: Heading of the section, also the text of the link to it.
            fragments: Content, by the functions of this module; a plain string is escaped.
        """
        if fragments:
            self._sections.append((heading, fragments))

    def html(self) -> str:
        """Return the whole page."""
        return _ENVIRONMENT.get_template("page.html").render(
            title=self.title,
            lead=self.lead,
            sections=self._sections,
            style=_file("style.css"),
            script=_file("sort.js"),
        )

    def save(self, path: Path) -> Path:
        """Write the page to a file; an interrupted write leaves the file unchanged.

        Returns:
            The path of the file.
        """
        content = self.html().encode(errors="backslashreplace")
        write_atomically(path, lambda file: file.write(content))
        return path


def paragraph(text: str) -> Markup:
    """Return a paragraph of plain text."""
    return _FRAGMENTS.paragraph(text)


def drawing(svg: str, *, alt: str, caption: str = "", width: str = "own") -> Markup:
    """Return a vector drawing as an image, so that its styles and ids do not affect the page.

    Args:
        svg: SVG document.
        alt: Text for readers who cannot see the drawing.
        caption: Text below the drawing; "" for none.
        width: ``fits`` shrinks the drawing to the width of the page; ``large`` stretches it to the
            width of the page; ``own`` keeps its width. The last two scroll on a narrow page.
    """
    return _FRAGMENTS.figure(
        _data_url("image/svg+xml", svg.encode(errors="backslashreplace")), alt, caption, width
    )


def picture(rgb: np.ndarray, *, alt: str, caption: str = "") -> Markup:
    """Return a picture as wide as the page, which scrolls on a narrow page.

    Args:
        rgb: (H, W, 3) uint8, H and W the height and width in pixels.
        alt: Text for readers who cannot see the picture.
        caption: Text below the picture; "" for none.
    """
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(rgb[:, :, ::-1]), quality)
    return _FRAGMENTS.figure(_data_url("image/jpeg", data.tobytes()), alt, caption, "large")


def beside(*fragments: Markup) -> Markup:
    """Return fragments side by side, or one below the other on a narrow page."""
    return _FRAGMENTS.beside(fragments)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str) -> Markup:
    """Return a table that sorts by a column when its head is clicked.

    Args:
        head: Text of each column's head.
        rows: Text of each cell, row by row.
        caption: Text above the table.

    Raises:
        ValueError: If a row does not have one cell for each column.
    """
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"a row of {len(row)} cells given, {len(head)} expected: {head}")
    return _FRAGMENTS.table(head, rows, caption)


def details(summary: str, text: str) -> Markup:
    """Return preformatted text that a reader can open.

    Args:
        summary: Text to click.
        text: Text that opens, with its line breaks.
    """
    return _FRAGMENTS.details(summary, text)


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _file(name: str) -> Markup:
    """Return a file of this package as text that a template does not escape."""
    return Markup((Path(__file__).parent / name).read_text(encoding="utf-8"))
