"""What the documentation says is so: flags, defaults, commands, messages, links and the example in the README."""

import ast
import builtins
import dataclasses
import importlib
import inspect
import json
import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

import nbformat
import pytest

from training.command_line import parse
from training.config import RunConfig

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
SHELL = ("export ", "python -m ")
SCORING_PAGES = ("scoring.md", "other-models.md", "recommendations.md", "precomputed-rows.md")
PACKAGES = ("callbacks", "data_pipelines", "models", "scoring", "training")


def test_command_line_page_lists_every_flag_with_its_default() -> None:
    rows = re.findall(r"^\| `--([a-z-]+)` \| (?:`([^`]*)`)? ?\|", page("docs/command-line.md"), re.MULTILINE)

    documented = {flag.replace("-", "_"): default for flag, default in rows}

    assert len(documented) == len(rows), "a flag is listed twice"
    assert documented == {knob.name: shown(default_of(knob)) for knob in dataclasses.fields(RunConfig)}


def test_flags_in_the_readme_exist() -> None:
    known = {knob.name.replace("_", "-") for knob in dataclasses.fields(RunConfig)}

    mentioned = set(re.findall(r"`--(?:no-)?([a-z][a-z-]+)", page("README.md")))

    assert mentioned
    assert mentioned <= known


def test_commands_in_the_pages_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The pages' placeholders become a recipe and a data folder that exist.
    recipe = tmp_path / "path" / "to" / "my-recipe"
    recipe.mkdir(parents=True)
    write_example_recipe(recipe)
    monkeypatch.chdir(tmp_path)
    commands = [command for path in PAGES for command in mirrorspark_commands(path.read_text())]
    assert len(commands) >= 8

    for command in commands:
        config = parse(shlex.split(command)[1:])
        assert isinstance(config, RunConfig), command


def test_example_in_the_readme_is_the_notebooks_code_and_complete() -> None:
    [example] = re.findall(r"```python\n(.*?)```", page("README.md"), re.DOTALL)
    notebook = nbformat.read(REPOSITORY / "notebooks" / "quickstart.ipynb", as_version=4)
    statements = {
        ast.dump(node)
        for cell in notebook.cells
        if cell.cell_type == "code"
        for node in ast.parse(re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE)).body
    }
    tree = ast.parse(example)

    assert [ast.unparse(node) for node in tree.body if ast.dump(node) not in statements] == []
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    imported = {entry.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for entry in node.names}
    assigned = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    assert {node.id for node in names} <= imported | assigned | set(dir(builtins))


@pytest.mark.parametrize("name", SCORING_PAGES)
def test_samples_of_the_scoring_pages_call_what_there_is(name: str) -> None:
    """Every import, and the arguments of every call of what is imported; nothing is called."""
    blocks = [block for block in indented_blocks(page(f"docs/{name}")) if not block.startswith(SHELL)]
    nodes = list(ast.walk(ast.parse("\n".join(blocks))))
    imported = {
        entry.asname or entry.name: getattr(importlib.import_module(str(node.module)), entry.name)
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for entry in node.names
    }
    calls = [(node.func.id, node) for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert any(function in imported for function, _ in calls)
    for function, call in calls:
        if function in imported:
            inspect.signature(imported[function]).bind(*call.args, **{str(word.arg): word for word in call.keywords})


def test_commands_of_scoring_in_the_pages_are_understood() -> None:
    lines = [line for path in PAGES for block in indented_blocks(path.read_text()) for line in block.splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("python -m scoring.")]
    assert {module for _, _, module, *_ in commands} == {"scoring.run", "scoring.lookup"}

    for _, _, module, *arguments in commands:
        importlib.import_module(module)._parser().parse_args(arguments)


def test_messages_in_troubleshooting_are_those_of_the_code() -> None:
    messages = "\n".join(message for name in PACKAGES for message in messages_of(REPOSITORY / name))
    rows = re.findall(r"^\| (`.*?`) \| .* \|$", page("docs/troubleshooting.md"), re.MULTILINE)
    quoted = [text for cell in rows for text in re.findall(r"`([^`]+)`", cell)]
    assert len(quoted) > 40

    unknown = [text for text in quoted if not re.search(pattern_of(text), messages)]

    assert not unknown, "\n".join(unknown)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files(path: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text())

    assert [target for target in targets if not (path.parent / target).exists()] == []


def page(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def default_of(knob: "dataclasses.Field[Any]") -> Any:
    return knob.default if knob.default_factory is dataclasses.MISSING else knob.default_factory()


def shown(value: Any) -> str:
    """Return a default as the page shows it; nothing for none and for an empty text."""
    if value is None or value == "":
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def indented_blocks(text: str) -> list[str]:
    """Return the samples that stand four spaces from the margin, empty lines within them included."""
    return [textwrap.dedent(found) for found in re.findall(r"(?:^ {4}.*\n(?:\n(?= {4}))*)+", text, re.MULTILINE)]


def mirrorspark_commands(text: str) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("mirrorspark ")]


def write_example_recipe(folder: Path) -> None:
    """Write the recipe that the page about recipes shows."""
    text = page("docs/recipes.md")
    for name, language in (("recipe.yaml", "yaml"), ("table.sql", "sql")):
        content, *_ = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
        (folder / name).write_text(content, encoding="utf-8")


def messages_of(package: Path) -> list[str]:
    """Return every string of the package's code on one line, with a mark where a value goes in."""
    found = []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Check":
                found.append(f"{text_of(node.args[0])}: {text_of(node.args[-1])}")
            elif isinstance(node, ast.JoinedStr | ast.Constant):
                found.append(text_of(node))
    return [" ".join(message.split()) for message in found]


def text_of(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else "\N{BULLET}"


def pattern_of(quoted: str) -> str:
    """Return the pattern of a quoted message, in which words in capitals and ``…`` stand for anything."""
    parts = re.split(r"\[NAMES\]|\b[A-Z]+\b|…", quoted)
    return ".*".join(re.escape(part) for part in parts)
