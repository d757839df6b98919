"""What the documents show exists and runs."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

import spatialflow
from spatialflow.config import get_cfg

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"(?P<before>[^\n]*)\n```(?P<language>\w+)\n(?P<code>.*?)\n```", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*")
RUNNABLE = "<!-- runnable -->"
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
        script = next(word for word in arguments if word.endswith(".py"))
        arguments = arguments[arguments.index(script) :]
    else:
        assert program in ("python", ".venv/bin/python"), program
    if arguments[0] == "-m":
        assert (ROOT / f"{arguments[1].replace('.', '/')}.py").is_file()
        return
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
