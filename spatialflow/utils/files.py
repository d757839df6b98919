"""Write files so that no interruption breaks them, tell files from FIFOs, and use JSON lines."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

from spatialflow.utils.errors import ConfigError, DataError

PARTIAL_SUFFIX = ".partial"

Json = TypeVar("Json", dict[str, Any], list[Any])

# A name may have 255 bytes, a character up to four of them; the hidden file's name is longer.
_PREFIX = 50
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def why_no_file(path: str | os.PathLike[str]) -> str | None:
    """Return why a path is no regular file, such as "is a FIFO, not a file"; None if it is one.

    Whatever opens a path that a user gave asks this before: to open a FIFO, or to read a device,
    may take for ever.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "is a link to no file" if os.path.islink(path) else "no such file"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except ValueError:  # a null byte, or a character that no path can have
        return "is not the name of a file"
    if stat.S_ISREG(mode):
        return None
    return f"is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file"


def write_atomically(path: str | os.PathLike[str], write: Callable[[IO[bytes]], object]) -> None:
    """Write a hidden file beside ``path``, flush it to the disk, and rename it to ``path``.

    If the process ends at any time, ``path`` holds either the old content or the new content. A
    killed process can leave the hidden file; :func:`remove_partial_files` removes it.

    Args:
        path: Path of the file; its folder must exist.
        write: Write the content to an open binary file.

    Raises:
        OSError: If the disk is full or the folder cannot be written; the error names ``path``.
    """
    path = Path(path)
    try:
        descriptor, beside = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name[:_PREFIX]}.", suffix=PARTIAL_SUFFIX
        )
        try:
            # mkstemp makes files that only their owner can read: set the mode of open() instead.
            os.fchmod(descriptor, 0o666 & ~_umask())
            with os.fdopen(descriptor, "wb") as file:
                _write(_Recorder(file), write)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            Path(beside).unlink(missing_ok=True)
    except OSError as error:
        raise _named(error, path) from error
    _flush_folder(path.parent)


def check_outputs(
    folder: str | os.PathLike[str], names: Iterable[str], *, replaced: bool = False
) -> None:
    """Make a folder, and check that files can be written into it, before the work that fills them.

    Args:
        folder: Folder of the files.
        names: Names of the files.
        replaced: Whether the files are written by :func:`write_atomically`, so that the modes of
            those before do not matter.

    Raises:
        ConfigError: If a file is in the place of a folder or a folder in that of a file, or if
            the folder or one of the files may not be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(
            f"{folder}: results go there, and it is a file or lies below one; a folder expected"
        ) from error
    except OSError as error:
        raise ConfigError(f"{folder}: results go there, and: {error.strerror}") from error
    for path in (folder / name for name in names):
        if path.is_dir():
            raise ConfigError(f"{path}: a result goes there, and it is a folder; move that away")
        if path.exists() and not (replaced or os.access(path, os.W_OK)):
            raise ConfigError(
                f"{path}: a result goes there, and it may not be written; move it away"
            )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder}: results go there, and it may not be written")


@contextlib.contextmanager
def errors_name(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let an error of the operating system inside name a file: that of a write names none."""
    try:
        yield
    except OSError as error:
        raise _named(error, path) from error


def _named(error: OSError, path: str | os.PathLike[str]) -> OSError:
    # The error of a rename names the hidden file.
    return OSError(error.errno or errno.EIO, error.strerror or str(error), os.fspath(path))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text as UTF-8, atomically.

    Raises:
        OSError: If the disk is full or the folder cannot be written; the error names ``path``.
    """
    write_atomically(path, lambda file: file.write(text.encode()))


def remove_partial_files(folder: str | os.PathLike[str]) -> None:
    """Remove the hidden files of interrupted calls of :func:`write_atomically` from a folder.

    Another process may be writing such a file: only who holds the folder may call this
    (:mod:`spatialflow.utils.hold`).
    """
    for path in Path(folder).glob(f".*{PARTIAL_SUFFIX}"):
        path.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], content: Any, *, indent: int | None = 2) -> None:
    """Write JSON atomically; NaN and infinity, which JSON does not have, become null.

    Args:
        path: Path of the file; its folder must exist.
        content: Numbers and texts in nested dicts and lists.
        indent: Spaces before an element, for each dict or list around it; None for one line.

    Raises:
        OSError: If the disk is full or the folder cannot be written.
    """
    text = json.dumps(_finite(content), indent=indent, allow_nan=False) + "\n"
    write_text(path, text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_json(path: str | os.PathLike[str], kind: type[Json]) -> Json:
    """Read a file that this project has written.

    Args:
        path: JSON file.
        kind: What it holds: ``dict`` or ``list``.

    Raises:
        DataError: If it is not JSON, or holds something else; the error names the file.
        OSError: If it cannot be read.
    """
    try:
        content = json.loads(Path(path).read_bytes(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise DataError(f"{os.fspath(path)}: not JSON: {reason}") from error
    if not isinstance(content, kind):
        found = type(content).__name__
        raise DataError(f"{os.fspath(path)}: a {found} found, a {kind.__name__} expected")
    return content


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def append_json_line(path: str | os.PathLike[str], line: dict[str, Any]) -> None:
    """Append an object to a file of JSON lines.

    If a killed process left an incomplete line at the end, the object goes on a new line.
    """
    with errors_name(path), open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(_finite(line), allow_nan=False).encode() + b"\n")


def read_json_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines, and skip incomplete lines."""
    found = []
    for text in Path(path).read_text(errors="replace").splitlines():
        try:
            found.append(json.loads(text))
        except (ValueError, RecursionError):
            continue
    return [line for line in found if isinstance(line, dict)]


class _Recorder:
    """Binary file that remembers its first error, as PyTorch replaces it by a RuntimeError."""

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
    """Make the rename itself survive a power failure, if the system supports it."""
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
