"""Checks of values that need no knowledge of their keys, and the keys whose values are paths."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

from detectron2.config import CfgNode

from spatialflow.utils.errors import ConfigError
from spatialflow.utils.paths import absolute_path

PATH_KEYS = (
    "OUTPUT_DIR",
    "MODEL.WEIGHTS",
    "MODEL.SPATIALFLOW.GENOTYPE",
    "MODEL.SPATIALFLOW.TRUNK_WEIGHTS",
    "DATASETS.FOLDER.PATH",
    "SEARCH.WEIGHTS",
)
"""Keys whose values are files or folders."""

OPTIONAL_KEYS = ("SOLVER.WEIGHT_DECAY_NORM",)
"""Keys that may be None though their default is not: the weight decay of all parameters then."""

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
MOST_LETTERS = 100
MOST = 2**63
"""Number from which a whole number does not fit PyTorch's."""


def expand_paths(cfg: CfgNode) -> None:
    """Make the paths of a config absolute, in place; URLs and names of genotypes stay.

    A run then repeats from any folder with the config that it saves.

    Raises:
        ConfigError: If a path begins with the home folder of nobody.
    """
    for key in PATH_KEYS:
        given = value_of(cfg, key)
        # A genotype is a file where its value is no plain name.
        plain = key.endswith("GENOTYPE") and not os.path.isfile(os.path.expanduser(given))
        if given and "://" not in given and not (plain and _is_name(given)):
            node, name = value_of(cfg, key.rpartition(".")[0]), key.rpartition(".")[2]
            node[name] = absolute_path(given, key)


def _is_name(text: str) -> bool:
    return os.sep not in text and not text.startswith("~")


def check_values(cfg: CfgNode, defaults: Mapping[str, Any]) -> None:
    """Check that values are of the kind of their defaults, as far as Detectron2 does not.

    Detectron2 accepts None for every key, and any element in a list.

    Args:
        cfg: Config after merging.
        defaults: Values before merging, as :func:`leaves` returns them.

    Raises:
        ConfigError: Naming the key.
    """
    for key, value in leaves(cfg).items():
        default = defaults.get(key)
        if default is None or (value is None and key in OPTIONAL_KEYS):
            continue
        if value is None:
            expected = KINDS.get(type(default), "a list")
            raise ConfigError(f"{key}: None given, {expected} expected")
        samples = tuple({type(item) for item in items(default)}) or tuple(KINDS)
        for item in items(value):
            problem = _problem(item, samples)
            if problem:
                raise ConfigError(f"{key}: {shown(value)} given, {problem} expected")


def _problem(item: Any, samples: tuple[type, ...]) -> str:
    """Return what is expected in place of a value, "" if nothing is wrong with it."""
    if isinstance(item, str) and "\0" in item:
        return "a text without NUL"
    if isinstance(item, float) and math.isnan(item):
        return "a number, not NaN,"
    if isinstance(item, int) and abs(item) >= MOST:
        return f"a number below {MOST:.0e}"
    allowed = {*samples, int, float} if {int, float} & {*samples} else {*samples}
    if (isinstance(item, bool) and bool not in samples) or type(item) not in allowed:
        return " or ".join(KINDS.get(kind, kind.__name__) for kind in samples)
    return ""


def items(value: Any) -> Iterator[Any]:
    """Yield a value, or the elements of nested lists."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from items(item)
    else:
        yield value


def leaves(node: CfgNode, prefix: str = "") -> dict[str, Any]:
    """Return the values of a config by their full keys; tuples are lists."""
    found: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, CfgNode):
            found |= leaves(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = list(value) if isinstance(value, tuple) else value
    return found


def value_of(cfg: CfgNode, key: str) -> Any:
    """Return the value of a key such as ``"MODEL.FPN.NORM"``; "" is the whole config."""
    return reduce(lambda node, name: node[name], key.split(".") if key else (), cfg)


def shown(value: object) -> str:
    """Return a value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]} …"
