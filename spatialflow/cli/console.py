"""Print lines that stay lines, on any console."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO

from spatialflow.utils.text import printable


def print_line(line: str, stream: TextIO | None = None) -> None:
    """Write a line; what is not printable, or not in the console's encoding, becomes an escape.

    Args:
        line: The line, without its end. Names of files and classes in it may hold anything.
        stream: Stream to write to; None for the standard output.

    Raises:
        BrokenPipeError: If the reader, such as ``head``, has closed the pipe.
    """
    stream = sys.stdout if stream is None else stream
    encoding = stream.encoding or "utf-8"
    text = printable(line).encode(encoding, "backslashreplace").decode(encoding)
    stream.write(text + "\n")


def divert(stream: Any) -> None:
    """Let a stream that cannot be written end in nothing: it is flushed again at the very end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
