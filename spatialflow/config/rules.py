"""Rules for the values of config keys, and one error that names every wrong key."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from detectron2.config import CfgNode

from spatialflow.config.options import GROUP_NORM_GROUPS
from spatialflow.config.values import shown, value_of
from spatialflow.utils.errors import ConfigError

Test = Callable[[Any, CfgNode], bool]
"""Return whether a value is allowed, from the value and the whole config."""

Rule = tuple[str, str, Test]
"""A key, what its error says was expected, and the test of its value."""


def check_rules(cfg: CfgNode, rules: Iterable[Rule]) -> None:
    """Check a config by rules. A key's later rules are read only if its earlier ones hold.

    Raises:
        ConfigError: If a rule does not hold; the error names each wrong key, the value given and
            the value expected.
    """
    problems: dict[str, str] = {}
    for key, expected, test in rules:
        value = value_of(cfg, key)
        if key not in problems and not _holds(test, value, cfg):
            problems[key] = f"{key}: {shown(value)} given, {expected} expected"
    if problems:
        raise ConfigError("; also ".join(problems.values()))


def _holds(test: Test, value: Any, cfg: CfgNode) -> bool:
    try:
        return test(value, cfg)
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError):
        # Elements of lists have no fixed type: the value, or one it is compared with, may hold any.
        return False


def in_range(low: float, high: float, *keys: str) -> tuple[Rule, ...]:
    """Return a rule for each key: a number from low to high, both included."""
    return tuple((key, f"{low} to {high}", lambda v, _: low <= v <= high) for key in keys)


def at_least(low: float, *keys: str) -> tuple[Rule, ...]:
    """Return a rule for each key: a finite number from low on."""
    return tuple((key, f"{low} or more", lambda v, _: low <= v < math.inf) for key in keys)


def above_zero(*keys: str) -> tuple[Rule, ...]:
    """Return a rule for each key: finite numbers above 0, one or a list."""
    return tuple((key, "more than 0", _is_above_zero) for key in keys)


def _is_above_zero(value: Any, cfg: CfgNode) -> bool:
    if isinstance(value, list | tuple):
        return len(value) > 0 and all(_is_above_zero(item, cfg) for item in value)
    return bool(0 < value < math.inf)


def names(key: str) -> Rule:
    """Return the rule that a key has a list of texts, or an empty one."""
    return key, "a list of texts", lambda v, _: all(isinstance(name, str) for name in v)


def one_of(key: str, *options: Any) -> Rule:
    """Return the rule that a key has one of some values."""
    kind = "" if len(options) == 1 else "one of "
    return key, kind + ", ".join(map(repr, options)), lambda v, _: v in options


def only_with(condition: str, value: Any, *rules: Rule) -> tuple[Rule, ...]:
    """Return rules that are checked only where the key ``condition`` has the given value."""

    def unless(test: Test) -> Test:
        return lambda v, cfg: value_of(cfg, condition) != value or test(v, cfg)

    return tuple(
        (key, f"{expected} (with {condition} {value!r})", unless(test))
        for key, expected, test in rules
    )


def rising(values: Iterable[float]) -> bool:
    """Return whether no number is smaller than the one before."""
    values = list(values)
    return values == sorted(values)


def norm(key: str, channels_key: str, *more: str) -> tuple[Rule, Rule]:
    """Return the rules of a norm: its name, and a number of channels that its groups divide."""
    return (
        one_of(key, "", "GN", "LN", "FrozenBN", *more),
        (
            key,
            f"{channels_key} a multiple of {GROUP_NORM_GROUPS} or another norm",
            lambda v, c: v != "GN" or value_of(c, channels_key) % GROUP_NORM_GROUPS == 0,
        ),
    )


def matching(section: str) -> tuple[Rule, Rule]:
    """Return the rules of the IoU thresholds in a section, and of the labels between them."""
    thresholds = f"{section}.IOU_THRESHOLDS"
    return (
        (
            thresholds,
            "rising numbers up to 1, above 0,",
            lambda v, _: min(v) > 0 and max(v) <= 1 and rising(v),
        ),
        (
            f"{section}.IOU_LABELS",
            "one more than IOU_THRESHOLDS of -1, 0 and 1",
            lambda v, c: len(v) == len(value_of(c, thresholds)) + 1 and {*v} <= {-1, 0, 1},
        ),
    )
