"""Files that are written whole or not at all, and logs of which no more than a line is lost."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

PARTIAL_SUFFIX = ".partial"


def write_atomically(path: str | os.PathLike[str], write: Callable[[IO[bytes]], object]) -> None:
    """Write a file beside its place, flush it to the disk, and rename it.

    Whenever the process ends, ``path`` is what it was before or what it should become. What a
    killed process leaves is a hidden file that :func:`remove_partial_files` finds.

    Args:
        path: The file; its folder must exist.
        write: Writes the content to an open binary file.

    Raises:
        OSError: If the disk is full or the folder cannot be written; it names ``path``.
    """
    path = Path(path)
    try:
        descriptor, beside = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL_SUFFIX
        )
        try:
            # mkstemp makes files that only their owner can read; others get what open() gives.
            os.fchmod(descriptor, 0o666 & ~_umask())
            with os.fdopen(descriptor, "wb") as file:
                _write(_Recorder(file), write)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            Path(beside).unlink(missing_ok=True)
    except OSError as error:
        # The error of a write names no file, and that of a rename the hidden one.
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    _flush_folder(path.parent)


def remove_partial_files(folder: str | os.PathLike[str]) -> None:
    """Remove what interrupted calls of :func:`write_atomically` left in a folder."""
    for path in Path(folder).glob(f".*{PARTIAL_SUFFIX}"):
        path.unlink(missing_ok=True)


def append_json_line(path: str | os.PathLike[str], line: dict[str, Any]) -> None:
    """Append an object to a file of JSON lines, whatever a killed process has left at its end."""
    with open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(line).encode() + b"\n")


def read_json_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines, without lines that are not whole."""
    found = []
    for text in Path(path).read_text(errors="replace").splitlines():
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return [line for line in found if isinstance(line, dict)]


class _Recorder:
    """Passes writes on and keeps the first error: PyTorch reports it as one of its own format."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self.file.flush()


def _write(recorder: _Recorder, write: Callable[[IO[bytes]], object]) -> None:
    try:
        write(recorder)  # type: ignore[arg-type]
    except RuntimeError:
        if recorder.error is not None:
            raise recorder.error from None
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush_folder(folder: Path) -> None:
    """Make the renaming itself survive a power failure, where the system offers that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
