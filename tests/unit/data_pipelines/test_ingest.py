"""The plan of the files holds every row once, near the wanted size; types are as they can be (M9)."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.data_pipelines.ingest import ColumnRange, RowGroup, Span, column_ranges, narrow_schema, plan_files


def group(number: int, rows: int, size: int) -> RowGroup:
    return RowGroup("staged.parquet", number, rows, size)


def test_files_are_cut_at_the_target_and_the_last_one_has_the_rest() -> None:
    # 10 bytes a row: files of 25 rows, cut inside row groups of 10.
    groups = [group(number, 10, 100) for number in range(6)]
    plan = plan_files(groups, 250)
    assert [[(span.group.number, span.start, span.stop) for span in file] for file in plan] == [
        [(0, 0, 10), (1, 0, 10), (2, 0, 5)],
        [(2, 5, 10), (3, 0, 10), (4, 0, 10)],
        [(5, 0, 10)],
    ]


def test_a_row_larger_than_the_target_is_a_file_of_its_own() -> None:
    assert plan_files([group(0, 2, 2_000)], 10) == [[Span(group(0, 2, 2_000), 0, 1)], [Span(group(0, 2, 2_000), 1, 2)]]


@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(0, 50_000)), min_size=1, max_size=20), st.integers(1, 40_000)
)
def test_any_plan_holds_every_row_once_and_in_order(sizes: list[tuple[int, int]], target: int) -> None:
    groups = [group(number, rows, size) for number, (rows, size) in enumerate(sizes)]
    plan = plan_files(groups, target)
    rows = [(span.group.number, row) for file in plan for span in file for row in range(span.start, span.stop)]
    assert rows == [(number, row) for number, (count, _) in enumerate(sizes) for row in range(count)]
    assert all(plan)
    largest_row = max(max(size, 1) / rows for rows, size in sizes)
    for file in plan[:-1]:
        size = sum((span.stop - span.start) * max(span.group.bytes, 1) / span.group.rows for span in file)
        # Off by at most half a row at the end, or one row that does not fit.
        assert abs(size - target) <= largest_row


@pytest.mark.parametrize(
    ("values", "narrow"),
    [
        ([-128, 127, None], pa.int8()),
        ([-129], pa.int16()),
        ([128], pa.int16()),
        ([2**15], pa.int32()),
        ([-(2**31), 2**31 - 1], pa.int32()),
        ([2**31], pa.int64()),
        ([None], pa.int64()),
    ],
)
def test_whole_numbers_get_the_narrowest_type_that_holds_them(values: list[int | None], narrow: pa.DataType) -> None:
    table = pa.table({"n": pa.array(values, pa.int64())})
    assert narrow_schema(table.schema, column_ranges(table)).field("n").type == narrow
    assert table.cast(narrow_schema(table.schema, column_ranges(table))).column("n").to_pylist() == values


@pytest.mark.parametrize(
    ("values", "narrow"),
    [
        ([0.5, -2.0, None, float("nan"), float("inf")], pa.float32()),
        ([0.1], pa.float64()),
        ([1e300], pa.float64()),
        ([2.0**24 + 1], pa.float64()),
    ],
)
def test_doubles_become_float32_where_no_value_changes(values: list[float | None], narrow: pa.DataType) -> None:
    table = pa.table({"x": pa.array(values, pa.float64())})
    assert narrow_schema(table.schema, column_ranges(table)).field("x").type == narrow


def test_no_type_becomes_wider_and_others_stay() -> None:
    table = pa.table({"n": pa.array([1], pa.int8()), "s": ["a"], "f": pa.array([np.float32(0.1)], pa.float32())})
    assert narrow_schema(table.schema, column_ranges(table)) == table.schema


def test_ranges_merge_to_what_holds_both() -> None:
    merged = ColumnRange(1, 5).merged(ColumnRange(-7, 2, fits_float32=False)).merged(ColumnRange())
    assert merged == ColumnRange(-7, 5, fits_float32=False)
