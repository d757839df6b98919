"""Paths that a user gives: in a config, in the environment, or to a program."""

from __future__ import annotations

import os

from spatialflow.utils.errors import ConfigError


def absolute_path(path: str | os.PathLike[str], what: str) -> str:
    """Return a path as an absolute one; ``~`` and ``~user`` are home folders, ``$`` is a letter.

    Args:
        path: The path. A relative one counts from the current folder.
        what: Key, variable or argument that the path is from, for the error.

    Raises:
        ConfigError: If there is no such home folder, or the path contains a NUL.
    """
    given = os.fspath(path)
    if "\0" in given:
        raise ConfigError(f"{what}: {given!r} given, a path without NUL expected")
    expanded = os.path.expanduser(given)
    if expanded.startswith("~"):
        raise ConfigError(
            f"{what}: {given!r} given, but {given.partition('/')[0]!r} has no home folder; for a "
            "file of that name, './' before it expected"
        )
    return os.path.abspath(expanded)
