"""Check the text of config files, and merge each with the files that it is based on.

Detectron2 takes whatever PyYAML builds: a key that is given twice, an alias that stands for a
billion values, or a file that is its own base would be ignored, or end in another error.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from fvcore.common.config import BASE_KEY

from spatialflow.config.values import shown
from spatialflow.utils.errors import ConfigError
from spatialflow.utils.paths import absolute_path

_URLS = ("http://", "https://")
MOST_NODES = 100_000
"""Values of a file from which it is refused, each counted as often as aliases repeat it."""


def check_yaml(path: Path, cfg: CfgNode) -> None:
    """Check a config file and the files that it is based on.

    Args:
        path: YAML file.
        cfg: Config that it will be merged into.

    Raises:
        ConfigError: If a file cannot be read, is not a mapping of keys as YAML in UTF-8, has a key
            twice, has too many values or too deep ones, or if it is its own base.
    """
    _check(path, cfg, ())


def configs_root() -> Path:
    """Return the folder of configs: the package's if it is installed, else the repository's."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def merged_with_bases(path: Path) -> dict[str, Any]:
    """Return the content of a config file over that of the files that it is based on.

    As Detectron2 merges them, but for one thing: a base that is not beside the file may be one that
    comes along, as for ``--config-file``. So a config in any folder can name it.

    Args:
        path: YAML file that :func:`check_yaml` has found sound.

    Raises:
        yaml.YAMLError: If a value cannot be built.
        ValueError: If a key is a section in one file and a value in the other.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    names = content.pop(BASE_KEY, [])
    merged: dict[str, Any] = {}
    for name in [names] if isinstance(names, str) else names:
        if name.startswith(_URLS):
            _merge(CfgNode.load_yaml_with_base(name, allow_unsafe=False), merged)
        else:
            _merge(merged_with_bases(_base_of(path, name)), merged)
    _merge(content, merged)
    return merged


def _merge(content: dict[str, Any], into: dict[str, Any]) -> None:
    for key, value in content.items():
        if isinstance(value, dict) and key in into:
            if not isinstance(into[key], dict):
                raise ValueError(f"{key}: keys given, and its {BASE_KEY} has a value there")
            _merge(value, into[key])
        else:
            into[key] = value


def _check(path: Path, cfg: CfgNode, above: tuple[Path, ...]) -> None:
    real = Path(os.path.realpath(path))
    if real in above:
        chain = " → ".join(str(file) for file in (*above, real))
        raise ConfigError(f"config {path}: its {BASE_KEY} leads back to it: {chain}")
    try:
        text = _Text(path)
        text.check_sections(text.root, cfg)
        for base in text.bases():
            if not base.startswith(_URLS):
                _check(_base_of(path, base), cfg, (*above, real))
    except RecursionError as error:
        raise ConfigError(f"config {path}: nested too deeply") from error


def _base_of(path: Path, base: str) -> Path:
    if base.startswith("~"):
        base = absolute_path(base, f"config {path}: {BASE_KEY}")
    beside, along = path.parent / base, configs_root() / base
    # A file may have the name of the one that comes along, and be based on it.
    if os.path.isfile(beside) and not (os.path.isfile(along) and os.path.samefile(beside, path)):
        return beside
    if os.path.isfile(along):
        return along
    raise ConfigError(
        f"config {path}: {BASE_KEY}: no such file: {shown(str(beside))}, and no such name in "
        f"{configs_root()}"
    )


def _kind(node: yaml.Node) -> str:
    kinds = {yaml.ScalarNode: "value", yaml.SequenceNode: "list", yaml.MappingNode: "mapping"}
    return kinds[type(node)]


class _Text:
    """A config file as nodes of YAML, which are not yet values."""

    def __init__(self, path: Path) -> None:
        """Read and check a file."""
        self.path = path
        self._sizes: dict[int, int] = {}
        try:
            text = path.read_bytes().decode("utf-8")
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except OSError as error:
            raise self._error(error.strerror or str(error)) from error
        except UnicodeDecodeError as error:
            raise self._error(f"byte {error.start} is not UTF-8; a YAML file expected") from error
        except yaml.MarkedYAMLError as error:
            line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
            raise self._error(f"{line}{error.problem or error.context}") from error
        except yaml.YAMLError as error:
            raise self._error(" ".join(str(error).split())) from error
        if not isinstance(root, yaml.MappingNode):
            found = "nothing" if root is None else f"a {_kind(root)}"
            raise self._error(f"{found} found, keys and values as YAML expected")
        self.root = root
        if self._size(root) > MOST_NODES:
            raise self._error(f"more than {MOST_NODES} values, aliases counted")

    def bases(self) -> list[str]:
        """Return the files that this one is based on, as it names them."""
        for key, value in self.root.value:
            if key.value == BASE_KEY:
                nodes = value.value if isinstance(value, yaml.SequenceNode) else [value]
                names = [node.value for node in nodes if node.tag == "tag:yaml.org,2002:str"]
                if len(names) < len(nodes) or not all(names):
                    raise self._error(f"{BASE_KEY}: the path of a file expected", key)
                return names
        return []

    def check_sections(self, node: yaml.Node, cfg: CfgNode) -> None:
        """Check that sections, such as MODEL, are mappings, and that the version is a number."""
        for key, value in node.value:
            section = cfg.get(key.value)
            if isinstance(section, CfgNode):
                if not isinstance(value, yaml.MappingNode):
                    raise self._error(f"{key.value}: a {_kind(value)} found, keys expected", key)
                self.check_sections(value, section)
            elif key.value == "VERSION" and value.tag != "tag:yaml.org,2002:int":
                raise self._error(f"VERSION: {shown(value.value)} given, a number expected", key)

    def _size(self, node: yaml.Node) -> int:
        """Return the number of values, with repetitions, and check the keys of mappings."""
        if id(node) in self._sizes:
            return self._sizes[id(node)]
        self._sizes[id(node)] = MOST_NODES + 1  # for an alias of a node within itself
        children = []
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
            children = [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        size = 1 + sum(map(self._size, children))
        self._sizes[id(node)] = size
        return size

    def _check_keys(self, mapping: yaml.MappingNode) -> None:
        seen: dict[str, yaml.Node] = {}
        for key, _ in mapping.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != "tag:yaml.org,2002:str":
                raise self._error(f"key {shown(key.value)}: a name expected", key)
            if key.value in seen:
                line = seen[key.value].start_mark.line + 1
                raise self._error(f"key {shown(key.value)} is given in line {line}, too", key)
            seen[key.value] = key

    def _error(self, message: str, node: yaml.Node | None = None) -> ConfigError:
        line = f", line {node.start_mark.line + 1}" if node else ""
        return ConfigError(f"config {self.path}{line}: {message}")
