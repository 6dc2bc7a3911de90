"""The arithmetic of an epoch's order: every row once, steps known beforehand, any step computed directly (T2, T6)."""

import numpy as np
import pytest

from data_pipelines.order import MAX_LANES, EpochOrder, RowRange


def order(block_rows: list[int], batch: int, *, seed: int | None = 7, epoch: int = 0) -> EpochOrder:
    return EpochOrder(np.array(block_rows, np.int64), batch, seed, epoch)


def rows_of(ranges: list[RowRange]) -> list[tuple[int, int]]:
    return [(part.block, row) for part in ranges for row in range(part.start, part.stop)]


def rows_of_step(epoch: EpochOrder, step: int) -> list[tuple[int, int]]:
    return [row for lane in range(epoch.lanes) for row in rows_of(epoch.lane_rows(lane, step, step + 1))]


def random_cases(count: int) -> list[tuple[list[int], int]]:
    rng = np.random.default_rng(5)
    return [([*rng.integers(0, 40, rng.integers(1, 12)).tolist(), 1], int(rng.integers(1, 200))) for _ in range(count)]


CASES = [([5], 5), ([5], 7), ([5], 2), ([1], 64), ([3, 0, 4], 4), ([0, 1, 0], 3), ([130] * 3, 128), *random_cases(40)]


@pytest.mark.parametrize(("block_rows", "batch"), CASES)
def test_every_row_stands_in_one_step_and_only_the_last_step_is_short(block_rows: list[int], batch: int) -> None:
    epoch = order(block_rows, batch)
    steps = [rows_of_step(epoch, step) for step in range(epoch.steps)]
    everything = [(block, row) for block, rows in enumerate(block_rows) for row in range(rows)]
    assert sorted(row for step in steps for row in step) == everything
    assert epoch.rows == len(everything)
    assert [len(step) for step in steps[:-1]] == [batch] * (epoch.steps - 1)
    assert len(steps[-1]) == len(everything) - batch * (epoch.steps - 1)


@pytest.mark.parametrize(("block_rows", "batch"), CASES[::3])
def test_reading_several_steps_at_once_gives_the_same_rows(block_rows: list[int], batch: int) -> None:
    epoch = order(block_rows, batch)
    for lane in range(epoch.lanes):
        singly = [row for step in range(epoch.steps) for row in rows_of(epoch.lane_rows(lane, step, step + 1))]
        assert rows_of(epoch.lane_rows(lane, 0, epoch.steps)) == singly
        assert len({len(epoch.lane_rows(lane, step, step)) for step in range(epoch.steps)} | {0}) == 1


def test_without_a_seed_lanes_run_through_the_rows_as_they_are_stored() -> None:
    # Five rows in batches of two: two lanes; the last batch has one row, which the second lane gives.
    epoch = order([3, 2], 2, seed=None)
    assert (epoch.lanes, epoch.rows_per_lane_and_step, epoch.steps) == (2, 1, 3)
    assert rows_of(epoch.lane_rows(0, 0, 3)) == [(0, 0), (0, 1)]
    assert rows_of(epoch.lane_rows(1, 0, 3)) == [(0, 2), (1, 0), (1, 1)]
    assert rows_of_step(epoch, 2) == [(1, 1)]
    assert epoch.row_permutation(0) is None


def test_the_rest_of_the_last_step_is_dealt_out_over_the_lanes() -> None:
    # Ten rows in batches of eight: two are left, one in the lower and one in the upper half of the lanes.
    epoch = order([10], 8, seed=None)
    in_last_step = [len(rows_of(epoch.lane_rows(lane, 1, 2))) for lane in range(8)]
    assert in_last_step == [0, 0, 0, 1, 0, 0, 0, 1]


@pytest.mark.parametrize(("batch", "lanes"), [(1, 1), (64, 64), (2048, 64), (96, 48), (100, 50), (131, 1), (12, 12)])
def test_lanes_divide_the_batch_and_are_never_too_many(batch: int, lanes: int) -> None:
    assert order([10], batch).lanes == lanes <= MAX_LANES


def test_the_rows_of_a_block_are_permuted_and_none_is_lost() -> None:
    epoch = order([100, 100], 10)
    first, second = epoch.row_permutation(0), epoch.row_permutation(1)
    assert first is not None
    assert second is not None
    assert sorted(first) == list(range(100))
    assert first.tolist() not in (list(range(100)), second.tolist())


def test_an_order_is_fixed_by_seed_and_epoch_and_changes_with_either() -> None:
    def signature(seed: int, epoch: int) -> tuple[object, ...]:
        one = order([4] * 50, 10, seed=seed, epoch=epoch)
        permutation = one.row_permutation(3)
        assert permutation is not None
        return rows_of_step(one, 0), permutation.tolist()

    assert signature(1, 0) == signature(1, 0)
    blocks = [signature(seed, epoch)[0] for seed, epoch in [(1, 0), (1, 1), (2, 0), (2, 1)]]
    assert all(blocks[i] != blocks[j] for i in range(4) for j in range(i))


def test_the_order_is_the_same_on_every_platform_and_numpy_version() -> None:
    # A changed stream would break resuming over an upgrade: this is what NumPy's Philox has always drawn.
    assert [part.block for part in order([2] * 6, 1, seed=1).lane_rows(0, 0, 12)] == [0, 5, 4, 1, 3, 2]
    permutation = order([6], 1, seed=1).row_permutation(0)
    assert permutation is not None
    assert permutation.tolist() == [2, 1, 5, 4, 0, 3]


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="global_batch_size 0 is below 1"):
        order([5], 0)
