"""T3, H2: in a notebook an error of ours is its message and the caller's lines."""

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from mirrorspark.serving.errors import RequestError
from mirrorspark.storage import StorageError

ROOT = Path(__file__).resolve().parents[2]
CELL = """from mirrorspark.data_pipelines.features import FeatureSpec
spec = FeatureSpec.from_dict({"label": "late", "keys": "id", "features": {"town": {"kind": "categoricall"}}})
"""


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    settings = Config()
    settings.HistoryManager.enabled = False
    settings.InteractiveShell.colors = "nocolor"
    yield InteractiveShell.instance(config=settings)
    InteractiveShell.clear_instance()


def shown(shell: InteractiveShell, cell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert not shell.run_cell(cell).success
    written = capsys.readouterr()
    return written.out + written.err


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb", "a b"),
        ("a\r\n \tb", "a b"),
        ("a\u2028b", "a b"),
        ("a\x1b[31m\0b", r"a\x1b[31m\x00b"),
        ("ä\u200dक", "ä\u200dक"),
    ],
)
def test_a_message_is_one_line_that_steers_no_terminal(name: str, shown: str) -> None:
    for error in (StorageError(f"no '{name}' here"), RequestError(400, f"no '{name}' here")):
        assert str(error) == f"no '{shown}' here"


def test_a_notebook_shows_the_callers_lines_and_the_message(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(shell, CELL, capsys)
    assert "----> 2 spec = FeatureSpec.from_dict(" in text
    assert (
        "FeatureSpecError: feature 'town': kind 'categoricall' is unknown (did you mean 'categorical'?); use one of"
        in text
    )
    assert "(The frames inside mirrorspark are folded; %xmode Verbose, then %tb, shows them.)" in text
    assert "plain_data.py" not in text
    shell.run_line_magic("xmode", "Verbose")
    assert "plain_data.py" in shown(shell, CELL, capsys)


def test_errors_that_led_to_it_are_folded_and_stay_for_a_debugger(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cell = (
        f"from mirrorspark.data_pipelines.features import FeatureSpec\nFeatureSpec.load({str(tmp_path / 'no.yaml')!r})"
    )
    text = shown(shell, cell, capsys)
    assert "no.yaml cannot be read" in text
    assert "direct cause" not in text
    result = shell.run_cell(cell)
    assert isinstance(result.error_in_exec, ValueError)
    assert isinstance(result.error_in_exec.__cause__, FileNotFoundError)


def test_an_error_of_the_callers_own_code_is_whole(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(shell, "from mirrorspark.storage import StorageError\nraise StorageError('mine')", capsys)
    assert "----> 2 raise StorageError('mine')" in text
    assert "folded" not in text


def test_outside_of_notebooks_an_error_is_as_any_other() -> None:
    with pytest.raises(ValueError, match="mine"):
        raise StorageError("mine")


def test_every_public_error_of_the_product_is_a_clear_one() -> None:
    plain = []
    for folder in sorted((ROOT / "src/mirrorspark").iterdir()):
        files = folder.resolve().rglob("*.py") if folder.is_dir() and folder.name != "testing" else []
        for file in files:
            text = file.read_text(encoding="utf-8")
            plain += [
                f"{file.relative_to(ROOT)}: {node.name}"
                for node in (ast.parse(text).body if "Error(" in text else [])
                if isinstance(node, ast.ClassDef)
                and node.name.endswith("Error")
                and not node.name.startswith("_")
                and node.bases
                and all(ast.unparse(base) in vars(builtins) for base in node.bases)
            ]
    assert plain == []
