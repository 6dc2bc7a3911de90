"""S5: batches of a good size, the same rows in the same order."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from scoring.regroup import regrouped


def batches_of(sizes: list[int]) -> list[pa.RecordBatch]:
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [
        pa.record_batch({"x": pa.array(range(start, start + size), pa.int64())})
        for start, size in zip(starts, sizes, strict=True)
    ]


@given(st.lists(st.integers(0, 30)), st.integers(1, 50))
def test_all_rows_come_in_their_order_and_only_the_last_batch_is_small(sizes: list[int], rows: int) -> None:
    found = [batch.num_rows for batch in regrouped(batches_of(sizes), rows)]
    assert all(size >= rows for size in found[:-1])
    assert all(found)
    values = [value for batch in regrouped(batches_of(sizes), rows) for value in batch.column(0).to_pylist()]
    assert values == list(range(sum(sizes)))


def test_wide_rows_do_not_wait_for_others() -> None:
    found = [batch.num_rows for batch in regrouped(batches_of([10, 10, 10]), 1000, group_bytes=160)]
    assert found == [20, 10]


def test_no_more_is_taken_than_a_batch_needs() -> None:
    taken: list[int] = []

    def source() -> object:
        for number, batch in enumerate(batches_of([4, 4, 4])):
            taken.append(number)
            yield batch

    first = next(regrouped(source(), 8))  # type: ignore[arg-type]
    assert (first.num_rows, taken) == (8, [0, 1])
