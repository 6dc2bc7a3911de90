"""Statements of the documentation are true: flags, defaults, commands, messages, links, the example in the README."""

import ast
import builtins
import dataclasses
import functools
import inspect
import json
import re
import runpy
import shlex
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

import mirrorspark as ms
from mirrorspark.__main__ import COMMANDS
from mirrorspark.fleet.runs import command as fleet_command
from mirrorspark.lifecycle import command as promotion_command
from mirrorspark.lifecycle.pipeline import command as pipeline_command
from mirrorspark.scoring import run as scoring_run
from mirrorspark.scoring.output.added_columns import ADDED_COLUMNS
from mirrorspark.serving import command as serve_command
from mirrorspark.serving import lookup
from mirrorspark.serving.export import command as export_command
from mirrorspark.training.configuration.command_line import flag_groups, parse
from mirrorspark.training.configuration.config import RunConfig
from mirrorspark.training.entry_points import doctor, runs
from mirrorspark.training.sweep.command import read_options

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
NOT_PYTHON = ("export ", "python ", "mirrorspark ", "mlflow ", "SELECT ", "CREATE ")
# Each file that opens a listening socket, and its row in SECURITY.md.
LISTENERS = {
    "serving/command.py": "`mirrorspark serve`",
    "serving/http_server.py": "`mirrorspark serve`",
    "serving/lookup.py": "`mirrorspark lookup`",
    "testing/proxy.py": "fault-injecting proxy",
    "training/programs/parameter_servers/connections.py": "coordinator of parameter servers",
    "training/programs/parameter_servers/train.py": "TensorFlow's servers",
    "training/protocol/messages/event_server.py": "event channel of a training",
    "training/job/readiness/executor_probe.py": "preflight's probe",
    "training/protocol/ring/connection.py": "ring of workers",
}
# Calls that open one: those of sockets, asyncio, the standard library's servers, TensorFlow, gRPC, and our own.
LISTENING_CALLS = re.compile(
    r"\b(?:create_server|start_server|start_unix_server|add_insecure_port|add_secure_port|listening|uvicorn\.run)\("
    r"|\.listen\(\)|\.bind\(\(|\b\w*(?:HTTP|TCP|UDP|WSGI|XMLRPC)Server\(|distribute\.Server\(|\bListener\("
)
# Their samples are indented by four spaces; those of the others are marked as Python.
INDENTED_SAMPLES = (
    *("scoring.md", "other-models.md", "recommendations.md", "precomputed-rows.md", "own-training.md"),
    *("fleet.md", "fleet-runs.md", "metrics.md", "sql.md", "every-week.md", "your-table.md", "shipping-cost.md"),
    *("promotion.md", "experiments.md", "watching.md", "texts-and-pictures.md"),
)
# Parts of a Spark session other than its tables: its context, its JVM, its jobs and tasks, and the mark of its kind.
BEHIND_A_SESSION = {
    *("sparkContext", "SparkContext", "_sc", "_jvm", "_jdf", "_jsc", "_jconf", "_jsparkSession", "_gateway", "rdd"),
    *("getConf", "defaultParallelism", "statusTracker", "setJobGroup", "cancelJobGroup", "cancelAllJobs", "addJobTag"),
    *("setLocalProperty", "getLocalProperty", "parallelize", "accumulator", "Accumulator", "AccumulatorParam"),
    *("SparkFiles", "addArchive", "addFile", "addPyFile", "setCheckpointDir", "TaskContext"),
    *("BarrierTaskContext", "pyspark.sql.connect", "py4j.protocol"),
}
OTHER_FOLDERS = ("notebooks", "tests", "tools")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# A reference of a docstring to another name.
REFERENCE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`([^`]+)`")
FENCED_SAMPLES = ("data.md", "reading.md", "recipes.md", "tfrecord.md")
PACKAGES = (
    *("callbacks", "data_pipelines", "evaluation", "fleet", "lifecycle", "models", "recommending", "scoring"),
    *("serving", "spark_session", "storage", "testing", "training"),
)


def test_command_line_page_lists_every_flag_with_its_default() -> None:
    rows = re.findall(r"^\| `--([a-z-]+)` \| (?:`([^`]*)`)? ?\|", page("docs/command-line.md"), re.MULTILINE)

    documented = {flag.replace("-", "_"): default for flag, default in rows}

    assert len(documented) == len(rows), "a flag is listed twice"
    assert documented == {knob.name: shown(default_of(knob)) for knob in dataclasses.fields(RunConfig)}


def test_command_line_page_has_the_groups_of_the_help() -> None:
    sections = re.findall(r"^### (.*)\n((?:(?!###? ).*\n)*)", page("docs/command-line.md"), re.MULTILINE)
    documented = {title.lower(): re.findall(r"^\| `--([a-z-]+)` \|", text, re.MULTILINE) for title, text in sections}

    groups = {title: [name.replace("_", "-") for name in names] for title, names in flag_groups().items()}
    assert documented == groups


def test_commands_in_the_pages_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The pages' placeholders become a recipe and a data folder that exist.
    recipe = tmp_path / "path" / "to" / "my-recipe"
    recipe.mkdir(parents=True)
    write_example_recipe(recipe)
    monkeypatch.chdir(tmp_path)
    readers: dict[str, Callable[[list[str]], Any]] = {
        "train": parse,
        "sweep": read_options,
        "score": scoring_run._parser().parse_args,
        "fleet": fleet_command._parser().parse_args,
        "lookup": lookup._parser().parse_args,
        "pipeline": pipeline_command.read_arguments,
        "promotion": promotion_command._parser().parse_args,
        "export": export_command._parser().parse_args,
        "serve": serve_command._parser().parse_args,
        "doctor": doctor._build_parser().parse_args,
        "runs": runs._build_parser().parse_args,
    }
    commands = [words for path in PAGES for words in mirrorspark_commands(path.read_text())]
    assert {name for name, *_ in commands} == set(COMMANDS) == set(readers)

    for name, *arguments in commands:
        readers[name](arguments)  # raises, or exits, where it does not understand


def test_every_folder_has_a_readme_of_one_screen_whose_files_exist() -> None:
    folders = {path.parent for path in REPOSITORY.glob("*/__init__.py")} | {REPOSITORY / name for name in OTHER_FOLDERS}
    for folder in folders:
        text = (folder / "README.md").read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 40, folder.name
        named = re.findall(r"`([\w./*-]+(?:\.(?:py|sh|ipynb)|/))`", text)
        assert [name for name in named if not any([*folder.glob(name), *REPOSITORY.glob(name)])] == [], folder.name


def test_one_folder_alone_names_what_is_behind_a_spark_session() -> None:
    code = [path for package in (*PACKAGES, "plots", "src") for path in (REPOSITORY / package).rglob("*.py")]
    elsewhere = [path for path in code if path.is_relative_to(REPOSITORY) and "spark_session" not in path.parts]

    named = {
        f"{path.relative_to(REPOSITORY)}: {word}"
        for path in elsewhere
        for word in BEHIND_A_SESSION & words_in_code(tree_of(path))
    }

    assert not named, f"ask session_of(spark), or spark_session/task.py, for what this is for: {sorted(named)}"


def words_in_code(tree: ast.AST) -> set[str]:
    """Return the attributes and imports of code, and the texts that could be an attribute's name."""
    nodes = list(ast.walk(tree))
    found = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    found |= {name for node in imports for name in (str(node.module), *(entry.name for entry in node.names))}
    return found | {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_every_command_in_the_pages_has_a_name() -> None:
    nameless = re.compile(r"^ *mirrorspark --(?!help|version)", re.MULTILINE)
    assert [path.name for path in PAGES[1:] if nameless.search(path.read_text())] == []


def test_example_in_the_readme_is_the_notebooks_code_and_complete() -> None:
    [example] = re.findall(r"```python\n(.*?)```", page("README.md"), re.DOTALL)
    notebooks = [nbformat.read(path, as_version=4) for path in (REPOSITORY / "notebooks").glob("*.ipynb")]
    statements = {
        ast.dump(node)
        for cell in (cell for notebook in notebooks for cell in notebook.cells)
        if cell.cell_type == "code" and not cell.source.startswith("%%")  # a cell of another language
        for node in ast.parse(re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE)).body
    }
    tree = ast.parse(example)

    assert [ast.unparse(node) for node in tree.body if ast.dump(node) not in statements] == []
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    imported = {
        entry.asname or entry.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom | ast.Import)
        for entry in node.names
    }
    assigned = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    assert {node.id for node in names} <= imported | assigned | set(dir(builtins))


def test_the_notebook_uses_public_names_alone() -> None:
    notebook = nbformat.read(REPOSITORY / "notebooks" / "quickstart.ipynb", as_version=4)
    code = "\n".join(
        re.sub(r"^%.*$", "", cell.source, flags=re.M) for cell in notebook.cells if cell.cell_type == "code"
    )
    assert re.findall(r"^.*import.*mirrorspark.*|^from mirrorspark.*", code, re.MULTILINE) == [
        "import mirrorspark as ms"
    ]
    assert set(re.findall(r"\bms\.(\w+)", code)) <= set(ms.__all__)


@pytest.mark.process  # TensorFlow asks `uname` when it is imported
@pytest.mark.parametrize("name", [*INDENTED_SAMPLES, *FENCED_SAMPLES])
def test_samples_of_the_pages_call_what_there_is(name: str) -> None:
    """Every import, and the arguments of every call of a public name; nothing is called."""
    text = page(f"docs/{name}")
    blocks = [textwrap.dedent(found) for found in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
    if name in INDENTED_SAMPLES:
        blocks += [block for block in indented_blocks(text) if not block.startswith(NOT_PYTHON)]
    nodes = list(ast.walk(ast.parse("\n".join(blocks))))
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("mirrorspark"):
            exec(ast.unparse(node))  # noqa: S102 - an import of ours
    public = [node for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "ms"]
    assert {node.attr for node in public} - set(ms.__all__) == set()
    calls = [node for node in nodes if isinstance(node, ast.Call) and node.func in public]
    assert public
    for call in calls:
        function = getattr(ms, ast.unparse(call.func).removeprefix("ms."))
        inspect.signature(function).bind(*call.args, **{str(word.arg): word for word in call.keywords})
    of_classes = {node.attr: node.value for node in nodes if isinstance(node, ast.Attribute) and node.value in public}
    assert [name for name, owner in of_classes.items() if not hasattr(getattr(ms, ast.unparse(owner)[3:]), name)] == []


def test_scoring_page_lists_the_columns_after_the_scores() -> None:
    presence = {True: "by default", False: "if it is named"}
    rows = [
        f"| `{column.name}` | `{column.type}` | "
        + (f'with `bad_rows="{column.with_bad_rows}"`' if column.with_bad_rows else presence[column.by_default])
        + f" | {column.meaning} |"
        for column in ADDED_COLUMNS
    ]
    assert "\n".join(["|---|---|---|---|", *rows]) in page("docs/scoring.md")


@pytest.mark.process
def test_page_of_python_names_is_up_to_date() -> None:
    written = runpy.run_path(str(REPOSITORY / "tools" / "api_page.py"))["page"]()
    assert page("docs/api.md") == written, "run python tools/api_page.py"


def test_the_table_of_calls_over_spark_connect_is_that_of_the_calls_that_are_tested() -> None:
    tool = runpy.run_path(str(REPOSITORY / "tools" / "connect_table.py"))
    assert tool["page"](page("docs/platforms.md")) == page("docs/platforms.md"), "run python tools/connect_table.py"
    assert tool["not_listed"]() == []


def test_the_source_file_for_databricks_is_that_of_the_notebook() -> None:
    written = runpy.run_path(str(REPOSITORY / "tools" / "databricks_source.py"))["source"]()
    found = (REPOSITORY / "notebooks" / "databricks.py").read_text(encoding="utf-8")
    assert found == written, "run python tools/databricks_source.py"


def test_security_lists_every_listener() -> None:
    code = [path for package in (*PACKAGES, "pages", "src") for path in (REPOSITORY / package).rglob("*.py")]

    listening = {str(path.relative_to(REPOSITORY)) for path in code if LISTENING_CALLS.search(path.read_text())}

    assert listening == set(LISTENERS), "say in SECURITY.md who may use the listener, and name its row here"
    rows = re.findall(r"^\| (.*?) \|", page("SECURITY.md"), re.MULTILINE)
    assert [row for row in LISTENERS.values() if not any(one.startswith(row) for one in rows)] == []


def test_messages_in_troubleshooting_are_those_of_the_code() -> None:
    messages = "\n".join(message for name in (*PACKAGES, "src") for message in messages_of(REPOSITORY / name))
    rows = re.findall(r"^\| (`.*?`) \| .* \|$", page("docs/troubleshooting.md"), re.MULTILINE)
    quoted = [text for cell in rows for text in re.findall(r"`([^`]+)`", cell)]
    assert len(quoted) > 40

    unknown = [text for text in quoted if not re.search(pattern_of(text), messages)]

    assert not unknown, "\n".join(unknown)


def test_references_of_docstrings_lead_to_names() -> None:
    packages = (*PACKAGES, "pages", "src")
    code = {path.resolve() for package in packages for path in (REPOSITORY / package).rglob("*.py")}
    references = [(path, target) for path in code for target in REFERENCE.findall(path.read_text(encoding="utf-8"))]
    assert len(references) > 500

    lost = [f"{path.relative_to(REPOSITORY)}: {target}" for path, target in references if not leads(target, path)]

    assert not lost, "\n".join(sorted(lost))


def leads(reference: str, path: Path) -> bool:
    """Return whether a reference in a file is to a module, to a name of the file, or to one that it imports.

    A member may be that of any class of the file, and a name that comes from another library is taken on trust.
    """
    first, *rest = reference.lstrip("~.").removeprefix("mirrorspark.").split(".")
    if (package := REPOSITORY / first).is_dir():
        while rest and (package / rest[0]).is_dir():
            package /= rest.pop(0)
        module = package / f"{rest[0]}.py" if rest else package
        if module.exists():
            return not rest[1:] or leads(".".join(rest[1:]), module)
        return leads(".".join(rest), package / "__init__.py")
    if home := imports_of(path).get(first):
        return not home.startswith("mirrorspark.") or leads(".".join([home, *rest]), path)
    known = names_given_in(tree_of(path)) | set(dir(builtins))
    return {first, *rest} <= known


@functools.cache
def imports_of(path: Path) -> dict[str, str]:
    """Return the dotted path of each name that a file imports from a module."""
    imports = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.ImportFrom)]
    return {entry.asname or entry.name: f"{node.module}.{entry.name}" for node in imports for entry in node.names}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files_and_their_sections(path: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", path.read_text())
    files = [(path.parent / name if name else path, section) for name, section in targets]

    assert [file for file, _ in files if not file.exists()] == []
    assert [f"{file}#{section}" for file, section in files if section and section not in sections_of(file)] == []


def sections_of(path: Path) -> set[str]:
    """Return the names of a page's sections in addresses, as GitHub makes them of the headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.*?) *$", re.sub(r"\]\([^)]*\)", "", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@functools.cache  # several tests look through all code
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


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
    """Return the samples that are indented by four spaces, empty lines within them included."""
    return [textwrap.dedent(found) for found in re.findall(r"(?:^ {4}.*\n(?:\n(?= {4}))*)+", text, re.MULTILINE)]


def mirrorspark_commands(text: str) -> list[list[str]]:
    """Return the words behind ``mirrorspark`` of every command that names no placeholder in brackets."""
    blocks = [*re.findall(r"```bash\n(.*?)```", text, re.DOTALL), *indented_blocks(text)]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if re.match(r"mirrorspark [a-z](?!.*(\[-|…))", line)]


def write_example_recipe(folder: Path) -> None:
    """Write the recipe that the page about recipes shows."""
    text = page("docs/recipes.md")
    for name, language in (("recipe.yaml", "yaml"), ("table.sql", "sql")):
        content, *_ = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
        (folder / name).write_text(content, encoding="utf-8")


CHECKS = ("Check", "failure", "warning")


def messages_of(package: Path) -> list[str]:
    """Return every string of the package's code on one line, with a mark where a value goes in."""
    found = []
    for path in package.rglob("*.py"):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CHECKS:
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


def test_names_and_texts_in_the_code_and_pages_break_no_word_of_the_glossary() -> None:
    rows = re.findall(r"^\| [^|]+ \| [^|]+ \| ([^|]+) \|$", page("docs/glossary.md"), re.MULTILINE)
    refused = {word for cell in rows[1:] for word in cell.replace(",", " ").split() if word.isalpha()}
    assert {"knob", "strike"} <= refused
    texts = [(path.name, path.read_text()) for path in PAGES if path.name != "glossary.md"]
    for package in PACKAGES:
        texts += [(package, message) for message in messages_of(REPOSITORY / package)]
        for path in (REPOSITORY / package).rglob("*.py"):
            names = names_given_in(tree_of(path))
            texts += [(str(path.relative_to(REPOSITORY)), name) for name in names]
    broken = {
        f"{place}: {text if len(text) < 200 else found}"
        for place, text in texts
        if (found := refused & {form for word in words_of(text) for form in (word, word.removesuffix("s"))})
    }
    assert not broken, "\n".join(sorted(broken))


def names_given_in(tree: ast.AST) -> set[str]:
    """Return the names that code gives: to functions, classes, arguments, variables and attributes."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, DEFINITIONS)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    stored = [node for node in ast.walk(tree) if isinstance(getattr(node, "ctx", None), ast.Store)]
    names |= {node.id for node in stored if isinstance(node, ast.Name)}
    return names | {node.attr for node in stored if isinstance(node, ast.Attribute)}


def words_of(text: str) -> list[str]:
    """Return the words of a text, or of a name."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", text)]
