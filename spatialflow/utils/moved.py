"""Import paths of version 0.1 that still work, for the names that its documentation used."""

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
"""Old module → new module."""


class MovedModule(ModuleType):
    """Stands where a module was, and gives its names with a warning that says where they are."""

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
    """Let the old paths be imported."""
    for old, new in MOVED.items():
        sys.modules[old] = MovedModule(old, new)
