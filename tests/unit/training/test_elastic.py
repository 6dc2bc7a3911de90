"""T6: with how many workers a training goes on, and what that means for batch, learning rate and place in the epoch."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.data_pipelines.reading.order import EpochOrder
from mirrorspark.training.protocol.elastic import BatchRule, BatchSize, Elastic, WorkerRange, parse_workers, resume_step


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4", WorkerRange(4, 4)), (4, WorkerRange(4, 4)), ("2:4", WorkerRange(2, 4)), (" 1:16 ", WorkerRange(1, 16))],
)
def test_workers_are_a_number_or_a_range(text: str | int, expected: WorkerRange) -> None:
    assert parse_workers(text) == expected


@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_a_range_reads_back_as_it_is_written(fewest: int, more: int) -> None:
    workers = WorkerRange(fewest, fewest + more)
    assert parse_workers(str(workers)) == workers
    assert workers.is_elastic == (more > 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "workers '' is not a number of workers; use a number like 4, or fewest:most like 2:4"),
        ("two", "workers 'two' is not a number of workers"),
        ("2:", "workers '2:' is not a number of workers"),
        ("-1", "workers '-1' is not a number of workers"),
        ("1.5", "workers '1.5' is not a number of workers"),
        ("٣", "workers '٣' is not a number of workers"),
        ("0", "workers 0 begins below 1; use 1 or more"),
        ("0:4", "workers 0:4 begins below 1; use 1 or more"),
        ("4:2", "workers 4:2 ends before it begins; use 2:4"),
    ],
)
def test_an_invalid_number_of_workers_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_workers(text)


@pytest.mark.parametrize(
    ("slots", "workers"), [(0, None), (1, None), (2, 2), (3, 3), (4, 4), (5, 4), (6, 6), (7, 6), (100, 6)]
)
def test_only_numbers_of_workers_among_which_the_global_batch_divides_are_used(slots: int, workers: int | None) -> None:
    elastic = Elastic(WorkerRange(2, 6), 12)
    assert elastic.sizes == (2, 3, 4, 6)
    assert elastic.next_workers(slots) == workers


def test_a_batch_that_is_kept_per_worker_suits_every_number_of_workers() -> None:
    elastic = Elastic(WorkerRange(2, 5), 5 * 64, "keep_batch_per_worker")
    assert elastic.sizes == (2, 3, 4, 5)
    assert elastic.batch(5) == BatchSize(320, 1.0)
    assert elastic.batch(2) == BatchSize(128, 0.4)


def test_a_global_batch_that_is_kept_leaves_the_learning_rate_alone() -> None:
    elastic = Elastic(WorkerRange(1, 4), 12)
    assert [elastic.batch(size) for size in elastic.sizes] == [BatchSize(12, 1.0)] * 4


@pytest.mark.parametrize(
    ("workers", "slots", "larger"), [(2, 2, None), (2, 3, 3), (3, 2, None), (4, 9, None), (2, 1, None)]
)
def test_a_training_grows_where_slots_allow_more_workers_than_it_has(
    workers: int, slots: int, larger: int | None
) -> None:
    assert Elastic(WorkerRange(2, 4), 12).larger(workers, slots) == larger


@pytest.mark.parametrize(
    ("workers", "batch", "rule", "message"),
    [
        ("3", 8, "keep_global_batch", "global_batch_size 8 does not divide among 3 workers; use a multiple of 3"),
        ("3:4", 8, "keep_global_batch", "global_batch_size 8 does not divide among 3 workers"),
        ("2:3", 8, "keep_batch_per_worker", "global_batch_size 8 does not divide among 3 workers"),
        ("1", 0, "keep_global_batch", "global_batch_size is 0; use 1 or more"),
        ("1", 8, "keep_rate", "batch rule 'keep_rate' is unknown; use one of ['keep_global_batch', 'keep_batch_per"),
        ("2:4", 200, "keep_batch_per_worker", "batch of 50 rows per worker is not a multiple of 64"),
    ],
)
def test_a_batch_that_cannot_be_shared_out_is_refused(workers: str, batch: int, rule: BatchRule, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Elastic(parse_workers(workers), batch, rule)


def test_a_fixed_number_of_workers_may_have_any_batch_per_worker() -> None:
    assert Elastic(parse_workers("4"), 200, "keep_batch_per_worker").batch(4) == BatchSize(200, 1.0)


@pytest.mark.parametrize(("step", "old", "new", "resumed"), [(7, 256, 128, 14), (7, 128, 256, 3), (5, 192, 128, 7)])
def test_the_place_in_the_epoch_is_kept_in_rows_and_rounded_down(step: int, old: int, new: int, resumed: int) -> None:
    assert resume_step(step, old, new) == resumed


def rows_until(block_rows: list[int], batch: int, step: int) -> set[tuple[int, int]]:
    order = EpochOrder(np.array(block_rows, np.int64), batch, seed=3, epoch=1)
    ranges = order.ranges(0, order.lanes, 0, step)
    return {(int(block), row) for _, block, start, stop, _ in ranges for row in range(start, stop)}


@given(st.lists(st.integers(1, 400), min_size=1, max_size=8), st.data())
def test_no_row_is_skipped_when_the_batch_changes_and_less_than_a_batch_is_seen_twice(
    block_rows: list[int], data: st.DataObject
) -> None:
    share, workers, next_workers = 64 * data.draw(st.integers(1, 2)), *data.draw(st.tuples(*[st.integers(1, 4)] * 2))
    batch, next_batch = share * workers, share * next_workers
    step = data.draw(st.integers(0, sum(block_rows) // batch))
    seen = rows_until(block_rows, batch, step)
    passed_over = rows_until(block_rows, next_batch, resume_step(step, batch, next_batch))
    assert passed_over <= seen
    assert len(seen - passed_over) < next_batch
