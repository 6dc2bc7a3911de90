"""T3: how the rows of a rare value are divided, and what a misspelt column of a split was meant to be."""

import re
from typing import Any

import pyarrow as pa
import pytest

from mirrorspark.data_pipelines.quality.memory_splits import with_split
from mirrorspark.data_pipelines.quality.split_rules import SplitError, rows_of_rare_value
from mirrorspark.data_pipelines.sources import MemorySource


@pytest.mark.parametrize(
    ("rows", "shares", "expected"),
    [
        (1, (0.8, 0.9), (1, 0)),
        (2, (0.8, 0.9), (1, 0)),
        (3, (0.8, 0.9), (1, 1)),
        (20, (0.8, 0.9), (16, 2)),
        (2, (0.3, 1.0), (1, 1)),
        (1, (0.0, 0.5), (0, 0)),
        (4, (0.1, 0.55), (1, 1)),
    ],
)
def test_a_value_of_few_rows_comes_to_training_first_then_to_test_then_to_validation(
    rows: int, shares: tuple[float, float], expected: tuple[int, int]
) -> None:
    assert rows_of_rare_value(rows, *shares) == expected


@pytest.mark.parametrize("given", [{"time": "daytime"}, {"time": "DAY_TIME"}, {"label": "lates"}])
def test_a_misspelt_column_is_answered_with_one_that_works(given: dict[str, str]) -> None:
    table = MemorySource.of(pa.table({"id": range(30), "day_time": range(30), "late": [0, 1] * 15}))
    fixed: dict[str, Any] = {"seed": 0, "split_column": "split", "time": None, "label": None}
    with pytest.raises(SplitError) as refused:
        with_split(table, ["id"], **fixed | given)
    meant = re.findall(r"\(did you mean '(\w+)'\?", str(refused.value))
    assert len(meant) == 1
    found = with_split(table, ["id"], **fixed | dict.fromkeys(given, meant[0]))
    assert set(found.column("split").to_pylist()) == {"train", "validation", "test"}
