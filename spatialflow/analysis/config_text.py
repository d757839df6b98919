"""The text of a config file: one line for each key, with the reason beside or above it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from spatialflow.utils.text import printable

COLUMNS = 100
"""Width up to which a reason is behind its value, not in a line of its own."""


@dataclass(frozen=True)
class Choice:
    """A proposed value.

    Attributes:
        key: Key of the config.
        value: Its value.
        reason: Why, in numbers of the data; one short line.
    """

    key: str
    value: Any
    reason: str


def config_text(choices: Sequence[Choice], base: str, header: str) -> str:
    """Return a config as YAML.

    Args:
        choices: Keys with their values; keys of one section are together.
        base: Config that this one is based on.
        header: Comment at the beginning, one line or several.
    """
    lines = [*(f"# {printable(line)}" for line in header.splitlines()), f"_BASE_: {base}"]
    before: list[str] = []
    for choice in choices:
        *sections, name = choice.key.split(".")
        shared = 0
        while shared < min(len(before), len(sections)) and before[shared] == sections[shared]:
            shared += 1
        lines += [f"{'  ' * i}{sections[i]}:" for i in range(shared, len(sections))]
        indent = "  " * len(sections)
        line = f"{indent}{name}: {_yaml(choice.value)}"
        reason = f"# {printable(choice.reason)}" if choice.reason else ""
        if len(line) + len(reason) + 2 <= COLUMNS or not reason:
            lines.append(f"{line}  {reason}".rstrip())
        else:
            lines += [f"{indent}{reason}", line]
        before = sections
    return "\n".join(lines) + "\n"


def _yaml(value: Any) -> str:
    """Return a value in one line of YAML; texts are in quotes."""
    if isinstance(value, str):
        return yaml.safe_dump(value, default_style='"', width=math.inf).strip()
    return json.dumps(value)
