"""The columns after the scores: their order, when they are there, and their values."""

import numpy as np
import pytest

from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.output.added_columns import ADDED_COLUMNS, Entries
from mirrorspark.scoring.output.bad_rows import BadRows
from mirrorspark.scoring.task import ScoringOptions

ONE_TO_ONE = Entries(3, None, "flights/3", {})
# Of two rows the first has two entries.
SEVERAL = Entries(3, np.array([0, 0, 1]), "flights/3", {1: "too large"})
WITHOUT_MODEL = Entries(2, None, None, {0: "no model for north", 1: "no model for south"})


@pytest.mark.parametrize(
    ("with_columns", "bad_rows", "names"),
    [
        (("model_version",), "fail", ["model_version"]),
        (("model_version",), "mark", ["error", "model_version"]),
        ((), "mark", ["error"]),
        ((), "fail", []),
    ],
)
def test_columns_stand_in_one_order(with_columns: tuple[str, ...], bad_rows: BadRows, names: list[str]) -> None:
    settings = ScoringOptions(with_columns=with_columns, bad_rows=bad_rows)
    assert [column.name for column in settings.added] == names


@pytest.mark.parametrize("name", ["error", "scored"])
def test_a_column_that_cannot_be_asked_for_is_refused(name: str) -> None:
    with pytest.raises(ScoringError, match=rf"names \['{name}'\], which scoring does not add; use some of \["):
        ScoringOptions(with_columns=("model_version", name))


@pytest.mark.parametrize(
    ("entries", "errors", "versions"),
    [
        (ONE_TO_ONE, [None] * 3, ["flights/3"] * 3),
        (SEVERAL, [None, None, "too large"], ["flights/3"] * 3),
        (WITHOUT_MODEL, ["no model for north", "no model for south"], [None, None]),
        (Entries(0, None, "flights/3", {}), [], []),
    ],
)
def test_every_entry_has_its_values(entries: Entries, errors: list[str | None], versions: list[str | None]) -> None:
    values = {column.name: column.values(entries) for column in ADDED_COLUMNS}
    assert values["error"].to_pylist() == errors
    assert values["model_version"].to_pylist() == versions
    found = [(len(values[column.name]), values[column.name].type) for column in ADDED_COLUMNS]
    assert found == [(entries.count, column.type) for column in ADDED_COLUMNS]
