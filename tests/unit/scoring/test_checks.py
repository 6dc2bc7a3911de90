"""S7, S18: what a table lacks, or has twice, is told by name before a task starts."""

import pytest

from data_pipelines.raw_columns import ColumnError
from scoring.checks import ScoringError, check_columns
from scoring.inputs import Column, ColumnInputs

INPUTS = ColumnInputs((Column("x", "double"), Column("y", "double")))


@pytest.mark.parametrize(
    ("names", "key", "error", "message"),
    [
        (["x", "y"], "id", ScoringError, r"key columns \['id'\] are missing; the table has \['x', 'y'\]"),
        (["id", "x"], "id", ColumnError, r"column 'y' is missing; the table has \['id', 'x'\]"),
        (["id", "y", "x", "y", "x", "x"], "id", ScoringError, r"the table has the columns \['x', 'y'\] twice"),
        (["id", "x", "y", "id"], "id", ScoringError, r"the table has the columns \['id'\] twice; drop or rename"),
        (["score", "x", "y"], "score", ScoringError, r"the result would have the columns \['score'\] twice"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_by_name(
    names: list[str], key: str, error: type[ValueError], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_columns(names, [key], INPUTS, ["score"])


def test_columns_that_nobody_reads_may_come_twice() -> None:
    check_columns(["id", "other", "x", "other", "y", "score"], ["id"], INPUTS, ["score"])
