"""Genotypes: which flows exist between the nodes of a network, and which choices its nodes take.

A genotype is data. Its JSON form (``docs/genotype.md``) is what a search writes, what a config
names, and what :class:`spatialflow.modeling.flow_graph.FlowGraph` builds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from darts.operations import OPERATIONS

VERSION = 1
PORTS = ("input", "gate", "offset")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, slots=True, order=True)
class Flow:
    """A directed edge from a node into a port of another.

    Attributes:
        source: The node whose output is carried, as ``branch.index`` (``box.4``).
        target: The node that receives it.
        port: ``input`` (added to the target's input), ``gate`` (multiplies it by
            ``1 + tanh(operation(source))``) or ``offset`` (steers a deformable target).
        operation: What happens to the source on the way, a name in
            :data:`darts.operations.OPERATIONS`.
    """

    source: str
    target: str
    port: str = "input"
    operation: str = "conv_3x3"

    def __post_init__(self) -> None:
        for value in (self.source, self.target):
            branch, _, index = value.rpartition(".") if isinstance(value, str) else ("", "", "")
            _require(
                bool(branch) and index.isdecimal() and int(index) > 0,
                f"flow {self}: a node is written 'branch.index' such as 'box.4', got {value!r}",
            )
        _require(self.port in PORTS, f"flow {self}: port must be one of {PORTS}")
        _require(
            self.operation in OPERATIONS,
            f"flow {self}: unknown operation; the known ones are {', '.join(OPERATIONS)}",
        )

    def __str__(self) -> str:
        return f"{self.source} -> {self.target} [{self.port}: {self.operation}]"

    @property
    def edge(self) -> tuple[str, str, str]:
        """Source, target and port: what at most one flow of a genotype may have."""
        return (self.source, self.target, self.port)

    @property
    def key(self) -> str:
        """The name of its module in a state dict, such as ``box_1_to_cls_1_input``."""
        return f"{self.source}_to_{self.target}_{self.port}".replace(".", "_")

    def to_dict(self) -> dict[str, str]:
        """Return the JSON form, whose keys are ``from``, ``to``, ``port``, ``operation``."""
        return {
            "from": self.source,
            "to": self.target,
            "port": self.port,
            "operation": self.operation,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Flow:
        """Build a flow from its JSON form.

        Raises:
            ValueError: If a key is missing, unknown, or has a value that is not allowed.
        """
        _require(isinstance(data, Mapping), f"a flow must be an object, got {data!r}")
        expected = {"from", "to", "port", "operation"}
        _require(
            set(data) == expected,
            f"flow {dict(data)}: expected exactly the keys {sorted(expected)}",
        )
        return cls(data["from"], data["to"], data["port"], data["operation"])


@dataclass(frozen=True, slots=True)
class Genotype:
    """Flows and choices, with a name and where they come from.

    Attributes:
        name: A short name for people.
        flows: The flows, in no meaningful order; at most one per (source, target, port).
        choices: Named attributes of nodes and heads, for example
            ``{"stuff.attention.merged": "none"}``. What is absent takes its default.
        provenance: Anything that says where the genotype comes from; JSON values only.
    """

    name: str
    flows: tuple[Flow, ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(isinstance(self.name, str) and bool(self.name), "a genotype needs a name")
        seen: set[tuple[str, str, str]] = set()
        for flow in self.flows:
            _require(flow.edge not in seen, f"genotype {self.name!r}: {flow} is given twice")
            seen.add(flow.edge)
        for key, value in self.choices.items():
            _require(
                isinstance(key, str) and isinstance(value, str),
                f"genotype {self.name!r}: choices map strings to strings, got {key!r}: {value!r}",
            )

    @property
    def hash(self) -> str:
        """Twelve hex digits that name the architecture: flows and choices, not name or origin."""
        content = {
            "flows": [flow.to_dict() for flow in sorted(self.flows)],
            "choices": dict(sorted(self.choices.items())),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """Return the JSON form as text, one flow a line, so that two genotypes diff well."""
        flows = ",\n".join(f"    {json.dumps(flow.to_dict())}" for flow in self.flows)
        lines = [
            f'  "version": {VERSION}',
            f'  "name": {json.dumps(self.name)}',
            f'  "flows": [\n{flows}\n  ]' if flows else '  "flows": []',
            f'  "choices": {json.dumps(dict(self.choices))}',
            f'  "provenance": {json.dumps(dict(self.provenance))}',
        ]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str, *, origin: str = "genotype") -> Genotype:
        """Parse the JSON form.

        Args:
            text: The JSON.
            origin: What to call it in errors, for example the file's path.

        Raises:
            ValueError: If it is not JSON, of another version, or not a valid genotype.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{origin}: not JSON: {error}") from error
        try:
            return cls._from_dict(data)
        except ValueError as error:
            raise ValueError(f"{origin}: {error}") from error

    @classmethod
    def _from_dict(cls, data: Any) -> Genotype:
        _require(isinstance(data, Mapping), "a genotype must be a JSON object")
        _require(
            data.get("version") == VERSION,
            f"genotype version {data.get('version')!r} given, {VERSION} expected",
        )
        required, optional = {"version", "name", "flows"}, {"choices", "provenance"}
        missing, unknown = required - set(data), set(data) - required - optional
        _require(not missing, f"missing key(s) {sorted(missing)}")
        _require(not unknown, f"unknown key(s) {sorted(unknown)}")
        _require(isinstance(data["flows"], list), "'flows' must be a list")
        for key in optional & set(data):
            _require(isinstance(data[key], Mapping), f"{key!r} must be an object")
        return cls(
            name=data["name"],
            flows=tuple(Flow.from_dict(flow) for flow in data["flows"]),
            choices=dict(data.get("choices", {})),
            provenance=dict(data.get("provenance", {})),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Genotype:
        """Read a genotype file.

        Raises:
            ValueError: If the file is missing or does not hold a valid genotype.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"genotype {os.fspath(path)}: cannot be read: {error}") from error
        return cls.from_json(text, origin=os.fspath(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON form to a file, whole or not at all."""
        beside = Path(path).with_suffix(".json.partial")
        beside.write_text(self.to_json(), encoding="utf-8")
        beside.replace(path)
