"""The program ``mirrorspark``: its commands, its own help and version, and what it imports for them."""

import os
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from types import SimpleNamespace

import pytest

import mirrorspark as ms
from mirrorspark import __main__ as program
from mirrorspark.__main__ import COMMANDS, main
from mirrorspark.spark_session.errors import SparkStartError


def test_a_command_gets_the_arguments_behind_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, list[str]]] = []

    def module(name: str) -> SimpleNamespace:
        return SimpleNamespace(main=lambda arguments: called.append((name, arguments)) or 7)

    monkeypatch.setattr(program, "import_module", module)
    assert main(["runs", "list", "--json"]) == 7
    monkeypatch.setattr(sys, "argv", ["mirrorspark", "train"])
    assert main() == 7
    assert called == [("mirrorspark.training.entry_points.runs", ["list", "--json"]), ("mirrorspark.training.run", [])]


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (KeyboardInterrupt(), "interrupted", 130),
        (SparkStartError("Spark does not start:\nat sqlite://me:word@host"), "Spark does not start: at ", 1),
    ],
)
def test_an_interrupt_or_an_error_with_its_remedy_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, line: str, status: int
) -> None:
    def failing(_: object) -> int:
        raise error

    monkeypatch.setattr(program, "import_module", lambda _: SimpleNamespace(main=failing))
    assert main(["score"]) == status
    said = capsys.readouterr().err
    assert said.startswith(f"mirrorspark: {line}")
    assert said.count("\n") == 1
    assert "word" not in said


def test_a_failed_command_ends_in_an_exception_for_whoever_calls_the_entry_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job of Databricks calls the entry point, and does not look at what it returns."""
    statuses = iter([0, 1, 3])
    monkeypatch.setattr(program, "import_module", lambda _: SimpleNamespace(main=lambda _: next(statuses)))
    monkeypatch.setattr(sys, "argv", ["mirrorspark", "fleet", "run"])
    settings = ConfigParser()
    settings.read(Path(__file__).resolve().parents[2] / "setup.cfg")
    entry_point = getattr(program, settings["options.entry_points"]["console_scripts"].strip().partition(":")[2])
    entry_point()
    for status in (1, 3):
        with pytest.raises(SystemExit) as ended:
            entry_point()
        assert ended.value.code == status


@pytest.mark.process  # MLflow asks `uname` when it is imported
@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_names_it_and_begins_with_the_most_used_flags(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main([name, "--help"])
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status == 0
    page = capsys.readouterr().out
    assert page.startswith(f"usage: mirrorspark {name} ")
    groups = re.findall(r"^(\w[\w ]+):\n((?:  .*\n)+)", page, re.MULTILINE)
    flags = {title: re.findall(r"^  --[a-z-]+", text, re.MULTILINE) for title, text in groups}
    if sum(map(len, flags.values())) > 8:
        assert next(title for title in flags if flags[title]) == "most used"
        assert len(flags["most used"]) <= 10


def test_help_lists_every_command_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == main(["-h"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        assert [line.split(maxsplit=1) for line in lines].count([name, command.summary]) == 2
    assert max(map(len, lines)) <= 120
    assert main([]) == 2  # as of any command without what it needs


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mirrorspark {ms.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tarin"], "mirrorspark: command 'tarin' is unknown; did you mean train? (see mirrorspark --help)"),
        (["movielens"], "mirrorspark: command 'movielens' is unknown; use one of ['train', 'pipeline', 'score', "),
        (
            ["--workers", "2"],
            "mirrorspark: --workers is not a command; the flags of a run follow its command: ",
        ),
    ],
)
def test_an_unknown_command_is_bad_usage(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(message)


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--help"], {"tensorflow", "pyspark", "numpy", "yaml", "mlflow"}),
        (["runs", "--help"], {"tensorflow", "pyspark", "mlflow", "matplotlib", "jsonargparse"}),
        (["lookup", "--help"], {"tensorflow", "pyspark", "mlflow"}),
        (["train", "--workers", "none"], {"tensorflow", "mlflow"}),
    ],
    ids=["program", "runs", "lookup", "train"],
)
def test_only_the_chosen_command_is_imported(arguments: list[str], heavy: set[str]) -> None:
    code = (
        "import sys; from mirrorspark.__main__ import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        f"sys.exit(str({heavy!r} & set(sys.modules)) if {heavy!r} & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.process
@pytest.mark.parametrize(("given", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_openmp_sleep_while_they_wait_unless_the_user_says_otherwise(given: str | None, policy: str) -> None:
    """Gradient boosting on a busy machine; the runtime says what it has read when it is loaded."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_DISPLAY_ENV": "TRUE"} | ({"OMP_WAIT_POLICY": given} if given else {})
    done = subprocess.run(
        [sys.executable, "-c", "import mirrorspark, sklearn.ensemble"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=environment,
    )
    assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr
