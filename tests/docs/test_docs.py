"""What the documents show exists and runs."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

import spatialflow
from spatialflow.config import get_cfg
from spatialflow_cli.commands import COMMANDS, parser_of

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"(?P<before>[^\n]*)\n```(?P<language>\w+)\n(?P<code>.*?)\n```", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")
RUNNABLE = "<!-- runnable -->"
COMMAND = re.compile(r"^    spatialflow (.+)$|`spatialflow ([a-z-]+ [^`]+)`", re.MULTILINE)
RECIPES = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def blocks(language):
    return [
        pytest.param(path, match["code"], match["before"], id=f"{path.name}-{number}")
        for path in DOCUMENTS
        for number, match in enumerate(FENCE.finditer(path.read_text()), 1)
        if match["language"] == language
    ]


def commands():
    """Each command of the bash blocks, as a list of words."""
    for block in blocks("bash"):
        path, code, _ = block.values
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z0-9_]+=\S*", words[0]):
                words = words[1:]
            if words:
                yield pytest.param(words, id=f"{path.name}: {' '.join(words)[:60]}")


def check_command(words):
    """Check a command line of spatialflow by its own parser; return what follows the command."""
    count = 2 if " ".join(words[:2]) in COMMANDS else 1
    name, arguments = " ".join(words[:count]), words[count:]
    parser_of(COMMANDS[name], name).parse_args([w.replace("$RANK", "0") for w in arguments])
    return arguments


def indented_commands():
    """Each command of spatialflow in an indented block or in code inside a line."""
    for path in DOCUMENTS:
        if path.name == "CHANGELOG.md":  # it names commands and options without their arguments
            continue
        text = path.read_text().replace("\\\n", " ")
        for match in COMMAND.finditer(text):
            words = shlex.split(match[1] or match[2], comments=True)
            yield pytest.param(words, id=f"{path.name}: {' '.join(words)[:60]}")


def anchor(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_inside_the_repository_resolve(path):
    broken = []
    for match in LINK.finditer(path.read_text()):
        target = match[1] or match[2]
        if re.match(r"[a-z]+:", target):
            continue
        name, _, fragment = target.partition("#")
        file = path.parent / name if name else path
        if not file.exists():
            broken.append(target)
        elif fragment:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            if fragment not in map(anchor, headings):
                broken.append(target)
    assert not broken


@pytest.mark.parametrize(("path", "code", "before"), blocks("python"))
def test_python_blocks_run(path, code, before, after_demo):
    assert before == RUNNABLE, f"{path.name}: mark the block with {RUNNABLE} on the line before"
    exec(compile(code, path.name, "exec"), {"__name__": "example"})


@pytest.mark.parametrize("words", list(commands()))
def test_commands_name_what_exists(words):
    program, *arguments = words
    if program == "make":
        targets = [word for word in arguments if "=" not in word]
        assert set(targets) <= set(RECIPES)
        return
    if program in ("git", "cd"):
        return
    if program == "torchrun":
        start = arguments.index("-m")
        assert arguments[start + 1] == "spatialflow_cli"
        program, arguments = "spatialflow", arguments[start + 2 :]
    if program == "spatialflow":
        arguments = check_command(arguments)
    else:
        assert program in ("python", ".venv/bin/python"), program
        assert (ROOT / arguments[0]).is_file()
    if "--config-file" in arguments:
        config = arguments[arguments.index("--config-file") + 1]
        # A run's own config is the one that its training wrote.
        config = "Base-Small.yaml" if config.startswith("output/") else config
        keys = [
            i
            for i, word in enumerate(arguments)
            if re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*", word)
        ]
        get_cfg(config, arguments[keys[0] :] if keys else [])


@pytest.mark.parametrize("words", list(indented_commands()))
def test_commands_inside_the_text_are_accepted(words):
    if "--help" not in words:
        check_command(words)


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == spatialflow.__version__
    assert f"## [{spatialflow.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_tables_have_as_many_cells_as_their_heads(path):
    head = None
    for line in path.read_text().splitlines():
        if not line.startswith("|"):
            head = None
            continue
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1
        head = head or cells
        assert cells == head, line
