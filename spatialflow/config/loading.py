"""Read a config from a file and KEY VALUE pairs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_get_cfg

from spatialflow.config.defaults import add_spatialflow_config
from spatialflow.config.options import SUPERNET
from spatialflow.config.values import check_values, expand_paths, leaves, shown
from spatialflow.config.yaml_files import check_yaml, configs_root, merged_with_bases
from spatialflow.utils.errors import ConfigError
from spatialflow.utils.paths import absolute_path

MOST_LETTERS = 300
"""Length from which the reason in an error is cut: it may contain a whole value."""


def get_cfg(
    config_file: str | os.PathLike[str] | None = None,
    opts: Sequence[object] = (),
    *,
    absolute: bool = True,
) -> CfgNode:
    """Return a config with Detectron2's and SpatialFlow's keys.

    Args:
        config_file: YAML file, as a path or relative to the project's ``configs`` folder; None for
            ``Base-SpatialFlow.yaml``. Its ``_BASE_`` may be relative to that folder, too.
        opts: KEY VALUE pairs, as on the command line. They override the file.
        absolute: Whether to make paths (:data:`~spatialflow.config.values.PATH_KEYS`) absolute; a
            hash that shall not depend on the current folder takes them as they are given.

    Returns:
        The config.

    Raises:
        ConfigError: If the file does not exist or is no config, or if a key does not exist or has a
            value of another type.
    """
    cfg = detectron2_get_cfg()
    add_spatialflow_config(cfg)
    defaults = leaves(cfg)
    cfg.MODEL.DEVICE = "auto"
    with _search_enabled(cfg):
        _merge_file(cfg, find_config(config_file or "Base-SpatialFlow.yaml"))
    with _search_enabled(cfg):
        _merge_pairs(cfg, opts)
    check_values(cfg, defaults)
    if cfg.MODEL.DEVICE == "auto":
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    if absolute:
        expand_paths(cfg)
    return cfg


def _merge_file(cfg: CfgNode, path: Path) -> None:
    check_yaml(path, cfg)
    try:
        content = merged_with_bases(path)
        if content.get("VERSION") == cfg.VERSION:
            cfg.merge_from_other_cfg(CfgNode(content))
        else:  # without a version, or with an old one, that Detectron2 guesses and upgrades
            cfg.merge_from_file(str(path), allow_unsafe=False)
    except Exception as error:  # Detectron2 has no common error for text that does not fit
        raise ConfigError(f"config {path}: {_reason(error)}") from error


def _merge_pairs(cfg: CfgNode, opts: Sequence[object]) -> None:
    flags = [word for word in opts if str(word).startswith("--")]
    if flags:
        raise ConfigError(f"{flags[0]} has to come before the KEY VALUE pairs")
    if len(opts) % 2:
        raise ConfigError(
            f"options must be KEY VALUE pairs, got {len(opts)} words that end with "
            f"{shown(opts[-1])}"
        )
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        try:
            if key == "SEARCH.ENABLED":  # merge_from_list ignores deprecated keys
                old = CfgNode({"SEARCH": {"ENABLED": yaml.safe_load(str(value))}})
                cfg.merge_from_other_cfg(old)
            else:
                cfg.merge_from_list([key, value])
        except Exception as error:
            reason = _reason(error)
            raise ConfigError(f"option {shown(key)[1:-1]} {shown(value)}: {reason}") from error


def _reason(error: Exception) -> str:
    """Return the reason of an error of Detectron2, PyYAML or Python that is due to a user's text.

    Their errors have no common class: whatever they raise while they read or merge the text is due
    to the text.
    """
    if isinstance(error, RecursionError | MemoryError):
        return "nested too deeply"
    # str() of a KeyError quotes its message.
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]} …"


@contextmanager
def _search_enabled(cfg: CfgNode) -> Iterator[None]:
    """Accept the key ``SEARCH.ENABLED``, and replace it by ``MODEL.META_ARCHITECTURE``.

    Version 0.1 built the supernet of a search if ``SEARCH.ENABLED`` was true. Every config that it
    saved has the key.
    """
    before = cfg.SEARCH.ENABLED = cfg.MODEL.META_ARCHITECTURE == SUPERNET
    yield
    enabled = cfg.SEARCH.pop("ENABLED")
    if enabled != before:
        cfg.MODEL.META_ARCHITECTURE = SUPERNET if enabled else "SpatialFlow"


def find_config(name: str | os.PathLike[str]) -> Path:
    """Return the path of a config file.

    Args:
        name: A path, or a path relative to :func:`configs_root`.

    Raises:
        ConfigError: If there is no such file.
    """
    candidates = [Path(absolute_path(name, "--config-file")), configs_root() / name]
    for path in candidates:
        if os.path.isfile(path):
            return path
    tried = " and ".join(str(path) for path in candidates)
    raise ConfigError(f"config file {os.fspath(name)!r} not found; looked for {tried}")
