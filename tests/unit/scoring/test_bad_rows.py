"""Rows that cannot be scored are found, named by their keys, and do not take others along."""

import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.data_pipelines.features.raw_columns import ColumnError
from mirrorspark.scoring.output.bad_rows import bad_row_errors, failure_message, good_rows


def refuse_negatives(batch: pa.RecordBatch) -> None:
    values = batch.column("x")
    bad = values.filter(pc.less(values, 0))
    if len(bad):
        raise ColumnError(f"x is {bad[0].as_py()}")


@given(st.lists(st.integers(-3, 30), max_size=40))
def test_all_faulty_rows_are_found_and_no_other(values: list[int]) -> None:
    found = bad_row_errors(pa.record_batch({"x": pa.array(values, pa.int64())}), refuse_negatives)
    assert found == {row: f"x is {value}" for row, value in enumerate(values) if value < 0}
    assert list(found) == sorted(found)
    assert good_rows(len(values), found).tolist() == [row for row, value in enumerate(values) if value >= 0]


def test_one_faulty_row_costs_few_checks() -> None:
    asked: list[int] = []

    def check(batch: pa.RecordBatch) -> None:
        asked.append(batch.num_rows)
        refuse_negatives(batch)

    values = [1] * 700 + [-1] + [1] * 323
    assert list(bad_row_errors(pa.record_batch({"x": values}), check)) == [700]
    assert len(asked) == 2 * 10 + 1  # 1,024 rows are halved ten times


def test_the_first_faulty_row_is_found_without_looking_for_the_others() -> None:
    batch = pa.record_batch({"x": [1] * 5 + [-1] * 1019})
    asked: list[int] = []

    def check(rows: pa.RecordBatch) -> None:
        asked.append(rows.num_rows)
        refuse_negatives(rows)

    assert list(bad_row_errors(batch, check, first=True)) == [5]
    assert len(asked) <= 2 * 10 + 1


def test_the_message_has_the_keys_of_the_first_row() -> None:
    batch = pa.record_batch({"id": ["a", "b"], "day": [1, 2]})
    assert failure_message(batch, ["id", "day"], {1: "x is -1"}).startswith(
        "the row id='b', day=2 cannot be scored: x is -1;"
    )
    assert failure_message(batch, [], {1: "no"}, advice="correct it") == (
        "the row number 1 of 2 scored together (the first is 0) cannot be scored: no; correct it"
    )
    assert failure_message(batch, ["id"], {0: "no"}, advice="fix it") == "the row id='a' cannot be scored: no; fix it"
