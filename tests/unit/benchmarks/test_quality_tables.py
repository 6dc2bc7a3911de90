"""The benchmark of tables prints the columns of the page, and asks for no folder that it does not read."""

from pathlib import Path

import pytest

from benchmarks.quality_tables import CALIBRATION_TITLES, FIGURES, METRICS, arguments, columns, titles

PAGE = Path(__file__).parents[3] / "docs" / "quality.md"


@pytest.mark.parametrize("names", [titles(columns("adult", choose=False)), CALIBRATION_TITLES])
def test_the_columns_are_those_of_the_page(names: list[str]) -> None:
    assert f"| {' | '.join(names)} |" in PAGE.read_text(encoding="utf-8").splitlines()


def test_settings_are_chosen_without_a_figure_of_test_rows() -> None:
    for of_set in FIGURES:
        assert columns(of_set, choose=True) == [("validation", metric) for metric in METRICS]


def test_only_the_set_that_is_in_a_folder_asks_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert arguments(["--set", "flights"]).folder is None
    assert arguments(["adult"]).folder == Path("adult")
    with pytest.raises(SystemExit):
        arguments([])
    assert "--set adult needs the folder of adult.data and adult.test" in capsys.readouterr().err
