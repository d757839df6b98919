"""Keep import paths of version 0.1 working, for the names that its documentation used."""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

MOVED = {
    "spatialflow.backbone": "spatialflow.modeling.backbone",
    "spatialflow.flows": "spatialflow.modeling.flow_graph",
    "spatialflow.fusion": "spatialflow.modeling.fusion",
    "spatialflow.heads": "spatialflow.modeling.heads",
    "spatialflow.losses": "spatialflow.modeling.losses",
    "spatialflow.trunks": "spatialflow.modeling.backbone.trunks",
    "spatialflow.visualize": "spatialflow.utils.visualize",
}
"""New module of each old one."""


class MovedModule(ModuleType):
    """A module at an old path, which gets its names from the new one and warns about it."""

    def __init__(self, name: str, target: str) -> None:
        super().__init__(name, f"Moved to :mod:`{target}`.")
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


def keep_moved_modules() -> None:
    """Make the old paths importable; nothing is imported until a name is used."""
    for old, new in MOVED.items():
        module = sys.modules[old] = MovedModule(old, new)
        package, name = old.split(".")
        setattr(sys.modules[package], name, module)
