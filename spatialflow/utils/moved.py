"""Keep import paths of version 0.1 working, for the names that its documentation used."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class MovedModule(ModuleType):
    """A module at an old path, which gets its names from the new one and warns about it."""

    def __init__(self, name: str, target: str) -> None:
        super().__init__(name, f"Moved to :mod:`{target}`.")
        self.__spec__ = ModuleSpec(name, None)
        self._target = target

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = getattr(importlib.import_module(self._target), name)
        warnings.warn(
            f"{self.__name__} has moved: from {self._target} import {name}",
            DeprecationWarning,
            stacklevel=2,
        )
        return value


def keep_moved_modules(moved: Mapping[str, str]) -> None:
    """Make old paths importable; nothing is imported until a name is used.

    Args:
        moved: New path of each module by its old path, ``"package.module"``.
    """
    for old, new in moved.items():
        module = sys.modules[old] = MovedModule(old, new)
        package, name = old.split(".")
        setattr(sys.modules[package], name, module)
