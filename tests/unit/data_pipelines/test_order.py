"""The arithmetic of an epoch's order: every row once, steps known beforehand, any step computed directly (T2, T6)."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.data_pipelines.reading.order import (
    MAX_LANES,
    RANGE_BLOCK,
    RANGE_LANE,
    RANGE_SKIPPED,
    RANGE_START,
    RANGE_STOP,
    EpochOrder,
)


def order(block_rows: list[int], batch: int, *, seed: int | None = 7, epoch: int = 0) -> EpochOrder:
    return EpochOrder(np.array(block_rows, np.int64), batch, seed, epoch)


def rows_of(ranges: np.ndarray) -> list[tuple[int, int]]:
    return [(int(part[RANGE_BLOCK]), row) for part in ranges for row in range(part[RANGE_START], part[RANGE_STOP])]


def rows_of_lane(epoch: EpochOrder, lane: int, first_step: int, last_step: int) -> list[tuple[int, int]]:
    return rows_of(epoch.ranges(lane, lane + 1, first_step, last_step))


def rows_of_step(epoch: EpochOrder, step: int) -> list[tuple[int, int]]:
    return rows_of(epoch.ranges(0, epoch.lanes, step, step + 1))


def random_cases(count: int) -> list[tuple[list[int], int]]:
    rng = np.random.default_rng(5)
    return [([*rng.integers(0, 40, rng.integers(1, 12)).tolist(), 1], int(rng.integers(1, 200))) for _ in range(count)]


CASES = [
    *[([5], 5), ([5], 7), ([5], 2), ([1], 64), ([3, 0, 4], 4), ([0, 1, 0], 3), ([130] * 3, 128)],
    # Batches that 64 does not divide: 389 rows are left in the last one, 129 of 130, and all but one.
    *[([900, 507], 1018), ([389, 130], 130), ([300, 94], 131), ([2000, 41], 1021)],
    *random_cases(40),
]


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
        singly = [row for step in range(epoch.steps) for row in rows_of_lane(epoch, lane, step, step + 1)]
        assert rows_of_lane(epoch, lane, 0, epoch.steps) == singly
        assert not len(epoch.ranges(lane, lane + 1, 0, 0))


@pytest.mark.parametrize(("block_rows", "batch"), CASES[::3])
def test_reading_several_lanes_at_once_gives_them_one_after_the_other(block_rows: list[int], batch: int) -> None:
    epoch = order(block_rows, batch)
    together = epoch.ranges(0, epoch.lanes, 0, epoch.steps)
    assert sorted(together[:, RANGE_LANE]) == together[:, RANGE_LANE].tolist()
    for lane in range(epoch.lanes):
        mine = together[together[:, RANGE_LANE] == lane]
        assert rows_of(mine) == rows_of_lane(epoch, lane, 0, epoch.steps)
        lengths = mine[:, RANGE_STOP] - mine[:, RANGE_START]
        assert mine[:, RANGE_SKIPPED].tolist() == (np.cumsum(lengths) - lengths).tolist()


def test_without_a_seed_lanes_run_through_the_rows_as_they_are_stored() -> None:
    # Five rows in batches of two: two lanes; the last batch has one row, which the second lane gives.
    epoch = order([3, 2], 2, seed=None)
    assert (epoch.lanes, epoch.lane_rows.tolist(), epoch.steps, epoch.full_steps) == (2, [0, 1, 2], 3, 2)
    assert rows_of_lane(epoch, 0, 0, 3) == [(0, 0), (0, 1)]
    assert rows_of_lane(epoch, 1, 0, 3) == [(0, 2), (1, 0), (1, 1)]
    assert rows_of_step(epoch, 2) == [(1, 1)]
    assert epoch.row_positions(0).tolist() == [0, 1, 2]


def test_the_rest_of_the_last_step_is_dealt_out_over_the_lanes() -> None:
    # Ten rows in batches of eight: two are left, one in the lower and one in the upper half of the lanes.
    epoch = order([10], 8, seed=None)
    in_last_step = [len(rows_of_lane(epoch, lane, 1, 2)) for lane in range(8)]
    assert in_last_step == [0, 0, 0, 1, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("batch", "lanes"), [(1, 1), (12, 12), (63, 63), (64, 64), (96, 64), (131, 64), (1018, 64), (1021, 64), (2048, 64)]
)
def test_every_batch_has_as_many_lanes_as_it_can(batch: int, lanes: int) -> None:
    epoch = order([10], batch)
    assert epoch.lanes == lanes <= MAX_LANES
    widths = np.diff(epoch.lane_rows)
    assert (epoch.lane_rows[0], epoch.lane_rows[-1], len(widths)) == (0, batch, lanes)
    assert 1 <= widths.min() <= widths.max() <= widths.min() + 1


def test_lanes_that_give_more_rows_to_a_batch_are_longer() -> None:
    # 66 rows: all lanes give one row, the 32nd and the 64th two. Of 99 rows the last batch has 33, every second place.
    epoch = order([99], 66, seed=None)
    assert np.flatnonzero(np.diff(epoch.lane_rows) == 2).tolist() == [31, 63]
    assert rows_of_lane(epoch, 31, 0, 1) == [(0, 46), (0, 47)]
    assert [len(rows_of_lane(epoch, lane, 1, 2)) for lane in (0, 1, 30, 31, 62, 63)] == [0, 1, 0, 1, 1, 1]


@given(
    rows=st.integers(0, 3000), batch=st.integers(1, 1500), workers=st.integers(1, 7), seed=st.sampled_from([None, 3])
)
def test_any_batch_is_dealt_to_its_lanes_once_and_every_step_begins_anywhere(
    rows: int, batch: int, workers: int, seed: int | None
) -> None:
    epoch = order([rows // 2, rows - rows // 2], batch, seed=seed)
    whole = epoch.ranges(0, epoch.lanes, 0, epoch.steps)
    assert sorted(rows_of(whole)) == [(block, row) for block in (0, 1) for row in range(epoch.block_rows[block])]
    steps = [rows_of_step(epoch, step) for step in range(epoch.steps)]
    assert [len(step) for step in steps] == [min(batch, rows - first) for first in range(0, rows, batch)]
    # No lane gives more to a step than its place in the batch has room for.
    widths = np.diff(epoch.lane_rows)
    for step in {0, max(epoch.steps - 1, 0)}:
        ranges = epoch.ranges(0, epoch.lanes, step, step + 1)
        given = np.bincount(ranges[:, RANGE_LANE], ranges[:, RANGE_STOP] - ranges[:, RANGE_START], epoch.lanes)
        assert (given <= widths).all()
    # Workers touch the lanes that hold their rows, and no others.
    borders = [batch * rank // workers for rank in range(workers + 1)]
    for first, last in itertools.pairwise(borders):
        if first < last:
            held = [lane for row in range(first, last) for lane in [int((epoch.lane_rows <= row).sum()) - 1]]
            assert epoch.lanes_of(first, last) == (min(held), max(held) + 1)


def test_the_rows_of_a_block_are_permuted_and_none_is_lost() -> None:
    epoch = order([100, 100], 10)
    first, second = epoch.row_positions(0).tolist(), epoch.row_positions(1).tolist()
    assert sorted(first) == sorted(second) == list(range(100))
    assert first not in (list(range(100)), second)
    assert order([0, 1], 10).row_positions(0).tolist() == []
    assert order([0, 1], 10).row_positions(1).tolist() == [0]


def test_every_order_of_a_small_block_is_as_likely_as_any_other() -> None:
    drawn = [tuple(order([3], 1, seed=seed).row_positions(0).tolist()) for seed in range(6000)]
    counts = [drawn.count(permutation) for permutation in sorted(set(drawn))]
    # Six orders, 1000 of each expected: chi-squared with 5 degrees of freedom, below 20.5 in 999 of 1000 cases.
    assert len(counts) == 6
    assert sum((count - 1000) ** 2 / 1000 for count in counts) < 20.5


def test_an_order_is_fixed_by_seed_and_epoch_and_changes_with_either() -> None:
    def signature(seed: int, epoch: int) -> tuple[list[tuple[int, int]], list[int]]:
        one = order([4] * 50, 10, seed=seed, epoch=epoch)
        return rows_of_step(one, 0), order([50] * 4, 10, seed=seed, epoch=epoch).row_positions(3).tolist()

    assert signature(1, 0) == signature(1, 0)
    signatures = [signature(seed, epoch) for seed, epoch in [(1, 0), (1, 1), (2, 0), (2, 1)]]
    assert all(signatures[i][part] != signatures[j][part] for i in range(4) for j in range(i) for part in (0, 1))


def mix(state: int) -> int:
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
    return state ^ state >> 31


def splitmix64_shuffle(seed: int, epoch: int, block: int, rows: int) -> list[int]:
    """Return the kernel's permutation, computed with Python's integers."""
    golden = 0x9E3779B97F4A7C15
    # The first number that SplitMix64 gives for this seed, as published at https://rosettacode.org.
    assert mix((1234567 + golden) % 2**64) == 6457827717110365317
    state = mix((mix(mix((seed + golden) % 2**64) ^ epoch) + golden) % 2**64 ^ block)
    shuffled = list(range(rows))
    for row in range(rows - 1, 0, -1):
        state = (state + golden) % 2**64
        other = (mix(state) >> 32) * (row + 1) >> 32
        shuffled[row], shuffled[other] = shuffled[other], shuffled[row]
    return shuffled


@pytest.mark.parametrize(("seed", "epoch", "block"), [(0, 0, 0), (1, 2, 3), (2**64 - 1, 7, 1), (2**80 + 5, 0, 2)])
def test_the_kernel_draws_the_same_order_as_its_plain_twin(seed: int, epoch: int, block: int) -> None:
    drawn = order([60] * 4, 1, seed=seed, epoch=epoch).row_positions(block)
    assert drawn.tolist() == splitmix64_shuffle(seed % 2**64, epoch, block, 60)


def test_the_order_is_the_same_on_every_platform_and_numpy_version() -> None:
    # A changed stream would break resuming over an upgrade: this is what NumPy's Philox has always drawn, and what the
    # plain twin above gives.
    assert order([2] * 6, 1, seed=1).ranges(0, 1, 0, 12)[:, RANGE_BLOCK].tolist() == [0, 5, 4, 1, 3, 2]
    assert order([8, 8], 1, seed=1, epoch=2).row_positions(1).tolist() == [3, 6, 7, 4, 5, 0, 1, 2]


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="global_batch_size 0 is below 1"):
        order([5], 0)
