"""The one way to read a config."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_get_cfg

from spatialflow.config.defaults import add_search_config, add_spatialflow_config
from spatialflow.config.options import SUPERNET

SEARCH_ENABLED = "SEARCH.ENABLED"
"""What made a config one of a search in version 0.1; configs that were saved then still load."""


def get_cfg(
    config_file: str | os.PathLike[str] | None = None, opts: Sequence[object] = ()
) -> CfgNode:
    """Return a config with Detectron2's and SpatialFlow's keys.

    Args:
        config_file: A YAML file: a path, or one relative to the project's ``configs`` folder.
            With none, the defaults of ``Base-SpatialFlow.yaml``.
        opts: KEY VALUE pairs, as on the command line.

    Raises:
        ValueError: If there is no such file, or it or ``opts`` have a key that does not exist or
            a value of another type.
    """
    cfg = detectron2_get_cfg()
    add_spatialflow_config(cfg)
    add_search_config(cfg)
    cfg.register_deprecated_key(SEARCH_ENABLED)
    cfg.MODEL.DEVICE = "auto"  # a GPU where there is one, unless something else is asked for
    path = find_config(config_file or "Base-SpatialFlow.yaml")
    try:
        search = CfgNode.load_yaml_with_base(str(path), allow_unsafe=False).get("SEARCH", {})
        cfg.merge_from_file(str(path), allow_unsafe=False)
        if search.get("ENABLED", False):
            cfg.MODEL.META_ARCHITECTURE = SUPERNET
    except (AssertionError, AttributeError, KeyError, OSError, ValueError, yaml.YAMLError) as error:
        # Detectron2 has no common error for YAML that is none, is no mapping, or lacks its base.
        reason = error.args[0] if isinstance(error, KeyError) else str(error)
        raise ValueError(f"config {path}: {' '.join(reason.split())}") from error
    flags = [word for word in opts if str(word).startswith("--")]
    if flags:
        raise ValueError(f"{flags[0]} has to come before the KEY VALUE pairs")
    if len(opts) % 2:
        raise ValueError(
            f"options must be KEY VALUE pairs, got {len(opts)} words that end with {opts[-1]!r}"
        )
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        if key == SEARCH_ENABLED:
            searches = str(value).lower() == "true"
            key, value = "MODEL.META_ARCHITECTURE", SUPERNET if searches else "SpatialFlow"
        try:
            cfg.merge_from_list([key, value])
        except (AssertionError, AttributeError, KeyError, ValueError) as error:
            raise ValueError(f"option {key} {value!r}: {error.args[0]}") from error
    if cfg.MODEL.DEVICE == "auto":
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    return cfg


def configs_root() -> Path:
    """Return the folder of configs: the one installed with the package, or the repository's."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find_config(name: str | os.PathLike[str]) -> Path:
    """Return the path of a config file, given as a path or relative to :func:`configs_root`.

    Raises:
        ValueError: If there is no such file.
    """
    candidates = [Path(name).expanduser(), configs_root() / name]
    for path in candidates:
        if path.is_file():
            return path
    tried = " and ".join(str(path) for path in candidates)
    raise ValueError(f"config file {os.fspath(name)!r} not found; looked for {tried}")
