"""S5, S8: batches of a good size, the same rows in the same order."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.scoring.task.batches import pieces, regrouped


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


@given(st.lists(st.integers(0, 30)), st.integers(1, 100))
def test_no_batch_takes_more_bytes_than_it_may(sizes: list[int], group_bytes: int) -> None:
    """The limit holds for Spark's batches and for regrouped ones; a row has eight bytes, and may have to go alone."""
    found = list(regrouped(batches_of(sizes), 1000, group_bytes))
    assert all(batch.nbytes < group_bytes + 8 for batch in found)
    assert [value for batch in found for value in batch.column(0).to_pylist()] == list(range(sum(sizes)))


def test_a_batch_that_is_cut_is_not_put_together_again() -> None:
    found = [batch.num_rows for batch in regrouped(batches_of([21, 5, 5]), 1000, group_bytes=160)]
    assert found == [11, 20]


def test_a_batch_is_cut_without_a_copy_and_one_without_rows_is_one_piece() -> None:
    (batch,) = batches_of([100])
    found = list(pieces(batch, 300))
    assert [piece.num_rows for piece in found] == [34, 34, 32]
    assert {piece.column(0).buffers()[1].address for piece in found} == {batch.column(0).buffers()[1].address}
    assert [piece.num_rows for piece in pieces(batch.slice(0, 0))] == [0]


def test_no_more_is_taken_than_a_batch_needs() -> None:
    taken: list[int] = []

    def source() -> object:
        for number, batch in enumerate(batches_of([4, 4, 4])):
            taken.append(number)
            yield batch

    first = next(regrouped(source(), 8))  # type: ignore[arg-type]
    assert (first.num_rows, taken) == (8, [0, 1])
