"""Write files so that no interruption breaks them, tell files from FIFOs, and use JSON lines."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from spatialflow.utils.errors import ConfigError

PARTIAL_SUFFIX = ".partial"

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
        # The error of a write names no file, and the error of a rename names the hidden file.
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    _flush_folder(path.parent)


def check_outputs(folder: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Make a folder, and check that files can be written into it, before the work that fills them.

    Args:
        folder: Folder of the files.
        names: Names of the files; those that exist will be replaced.

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
        if path.exists() and not os.access(path, os.W_OK):
            raise ConfigError(
                f"{path}: a result goes there, and it may not be written; move it away"
            )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder}: results go there, and it may not be written")


def remove_partial_files(folder: str | os.PathLike[str]) -> None:
    """Remove the hidden files of interrupted calls of :func:`write_atomically` from a folder.

    Another process may be writing such a file: only who holds the folder may call this
    (:mod:`spatialflow.utils.hold`).
    """
    for path in Path(folder).glob(f".*{PARTIAL_SUFFIX}"):
        path.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write nested dicts as JSON, atomically; NaN, which JSON does not have, becomes null.

    Args:
        path: Path of the file; its folder must exist.
        content: Numbers and texts in nested dicts.

    Raises:
        OSError: If the disk is full or the folder cannot be written.
    """
    text = json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def append_json_line(path: str | os.PathLike[str], line: dict[str, Any]) -> None:
    """Append an object to a file of JSON lines.

    If a killed process left an incomplete line at the end, the object goes on a new line.
    """
    with open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(line).encode() + b"\n")


def read_json_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines, and skip incomplete lines."""
    found = []
    for text in Path(path).read_text(errors="replace").splitlines():
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
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
