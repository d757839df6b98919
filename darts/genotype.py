"""Genotypes: the flows between the nodes of a network, and the choices of its nodes and heads.

A genotype is data. A search writes it as JSON (``docs/genotype.md``), a config names the file, and
:class:`spatialflow.modeling.flow_graph.FlowGraph` builds the network.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from darts.operations import OPERATIONS

VERSION = 1
PORTS = ("input", "gate", "offset")
INDEX = re.compile(r"[1-9][0-9]{0,5}")
"""Number of a node in its branch."""
MOST_LETTERS = 200
"""Length from which a flow is cut in messages."""


class GenotypeError(ValueError):
    """A genotype or its file is not valid, or does not fit the network or the search space."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise GenotypeError(message)


def _finite(value: Any) -> Any:
    """Return JSON values with null in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise GenotypeError(f"key {twice!r:.80} is given twice")
    return found


@dataclass(frozen=True, slots=True, order=True)
class Flow:
    """Directed edge from a node into a port of another node.

    Attributes:
        source: Name of the node whose output flows, ``branch.index`` such as ``box.4``.
        target: Name of the node that receives the flow.
        port: ``input`` adds operation(source) to the target's input; ``gate`` multiplies the
            target's input by ``1 + tanh(operation(source))``; ``offset`` adds the source to the map
            from which a deformable target predicts its offsets.
        operation: Name in :data:`darts.operations.OPERATIONS`.

    Raises:
        GenotypeError: If a name is not valid.
    """

    source: str
    target: str
    port: str = "input"
    operation: str = "conv_3x3"

    def __post_init__(self) -> None:
        for value in (self.source, self.target):
            branch, _, index = value.rpartition(".") if isinstance(value, str) else ("", "", "")
            _require(
                bool(branch) and INDEX.fullmatch(index) is not None,
                f"flow {self}: a node is written 'branch.index' such as 'box.4', got {value!r:.80}",
            )
        _require(self.port in PORTS, f"flow {self}: port must be one of {PORTS}")
        _require(
            isinstance(self.operation, str) and self.operation in OPERATIONS,
            f"flow {self}: unknown operation; the known ones are {', '.join(OPERATIONS)}",
        )

    def __str__(self) -> str:
        text = f"{self.source} -> {self.target} [{self.port}: {self.operation}]"
        return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]} …"

    @property
    def edge(self) -> tuple[str, str, str]:
        """Source, target and port; a genotype has at most one flow with the same three."""
        return (self.source, self.target, self.port)

    @property
    def key(self) -> str:
        """Name of the flow's module in a state dict, such as ``box_1_to_cls_1_input``."""
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
            GenotypeError: If a key is missing, unknown, or has a value that is not allowed.
        """
        _require(isinstance(data, Mapping), f"a flow must be an object, got {data!r:.80}")
        expected = {"from", "to", "port", "operation"}
        _require(
            set(data) == expected,
            f"flow {dict(data)!r:.200}: expected exactly the keys {sorted(expected)}",
        )
        return cls(data["from"], data["to"], data["port"], data["operation"])


@dataclass(frozen=True, slots=True)
class Genotype:
    """Flows and choices of a network, with a name and a provenance.

    Attributes:
        name: Short name for people.
        flows: Flows in any order; at most one per (source, target, port).
        choices: Option of each named attribute of nodes and heads, for example
            ``{"stuff.attention.merged": "none"}``. A missing choice takes its default.
        provenance: Origin of the genotype, as JSON values.

    Raises:
        GenotypeError: If the name is empty, a flow is given twice, or a choice is not a string.
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
                f"genotype {self.name!r}: choices map strings to strings, got "
                f"{key!r:.80}: {value!r:.80}",
            )

    @property
    def hash(self) -> str:
        """Twelve hex digits of a hash over flows and choices, without name and provenance."""
        content = {
            "flows": [flow.to_dict() for flow in sorted(self.flows)],
            "choices": dict(sorted(self.choices.items())),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """Return the JSON form as text, with one flow per line so that a diff is easy to read.

        NaN and infinity in the provenance, which JSON does not have, become null.
        """
        flows = ",\n".join(f"    {json.dumps(flow.to_dict())}" for flow in self.flows)
        lines = [
            f'  "version": {VERSION}',
            f'  "name": {json.dumps(self.name)}',
            f'  "flows": [\n{flows}\n  ]' if flows else '  "flows": []',
            f'  "choices": {json.dumps(dict(self.choices))}',
            f'  "provenance": {json.dumps(_finite(self.provenance), allow_nan=False)}',
        ]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str, *, origin: str = "genotype") -> Genotype:
        """Parse the JSON form.

        Args:
            text: JSON text.
            origin: Name of the text in error messages, for example the path of its file.

        Raises:
            GenotypeError: If the text is not JSON, has another version, or is not a valid genotype.
        """
        try:
            data = json.loads(
                text.removeprefix("\ufeff"),  # the mark with which some editors begin a file
                parse_constant=lambda _: None,
                object_pairs_hook=_unique,
            )
        except RecursionError as error:
            raise GenotypeError(f"{origin}: nested too deeply") from error
        except GenotypeError as error:
            raise GenotypeError(f"{origin}: {error}") from error
        except ValueError as error:
            raise GenotypeError(f"{origin}: not JSON: {error}") from error
        try:
            return cls._from_dict(data)
        except GenotypeError as error:
            raise GenotypeError(f"{origin}: {error}") from error

    @classmethod
    def _from_dict(cls, data: Any) -> Genotype:
        _require(isinstance(data, Mapping), "a genotype must be a JSON object")
        _require(
            data.get("version") == VERSION and type(data["version"]) is int,
            f"genotype version {data.get('version')!r:.80} given, {VERSION} expected",
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
            GenotypeError: If the file is missing or does not hold a valid genotype.
        """
        try:
            if Path(path).exists() and not Path(path).is_file():  # a FIFO would block for ever
                raise GenotypeError(f"genotype {os.fspath(path)}: is no file")
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise GenotypeError(f"genotype {os.fspath(path)}: cannot be read: {error}") from error
        return cls.from_json(text, origin=os.fspath(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON form to a file; an interrupted write leaves the file unchanged."""
        beside = Path(path).with_suffix(".json.partial")
        try:
            beside.write_text(self.to_json(), encoding="utf-8")
            beside.replace(path)
        except OSError as error:  # that of a write names no file
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
