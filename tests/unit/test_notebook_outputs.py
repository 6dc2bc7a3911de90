"""Notebook output of each object: its content, every text escaped, and no secret (H2, H9, T7)."""

from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.unit.notebook_outputs import HOSTILE, SECRET, comparison, outputs

# Texts that a reader looks for.
CONTENT = {
    "spec": ("label late (binary), keys flight_id", "distance", "max_size 50"),
    "dataset": ("244,737", "28,618", "3 features", "62% of the training rows", "dataset.html"),
    "validation": ("1 error, 1 warning, 1 note", "62% of the training rows"),
    "trained": (
        "The model is better than gradient boosting",
        "0.6997",
        "hist_gradient_boosting",
        "7c1f0e",
        "report.html",
    ),
    "fit result": ("The model is better than gradient boosting", "0.6997"),
    "explanation": ("What the predictions depend on", "2.0000"),
    "comparison": ("models:/late/3 is significantly better in log_loss.", "-0.0131"),
    "parity": ("53,991", "8.900e-08", "passed"),
    "parity that failed": ("FAILED", "7.000e-03", "Worst rows"),
    "sweep": ("best: trial 1, val_auc 0.8000", "NaN loss", "75%", "--learning-rate=0.003"),
    "live, at the end": ("12 epochs, best was 9", "9 (best)"),
}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    return outputs(tmp_path_factory.mktemp("flights"))


class Elements(HTMLParser):
    """Lists the elements of markup, and those that are not closed."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.open: list[str] = []
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        if tag != "img":
            self.open.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", CONTENT)
def test_an_object_shows_its_content(shown: Mapping[str, str], name: str) -> None:
    for text in CONTENT[name]:
        assert text in shown[name]


def test_every_text_is_escaped_and_every_secret_removed(shown: Mapping[str, str]) -> None:
    for name, markup in shown.items():
        assert HOSTILE not in markup, name
        assert SECRET not in markup, name
        elements = Elements(markup)
        assert not elements.open, name
        assert "script" not in elements.names, name
    hostile = ("dataset", "validation", "trained", "explanation", "comparison", "parity that failed", "sweep")
    for name in hostile:
        assert "&lt;img src=x onerror=alert(1)&gt;" in shown[name], name


def test_a_comparison_stays_a_table_of_pandas(tmp_path: Path) -> None:
    table = comparison()
    assert table.loc["log_loss", "better"] == "models:/late/3"
    assert table.loc["pr_auc", "better"] == ""
    assert type(table[table["better"] != ""]).__name__ == "DataFrame"
