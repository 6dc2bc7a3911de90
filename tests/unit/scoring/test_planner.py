"""S20: tasks stay below a target, by as few of them as will do; a row group that is too large is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.scoring.errors import ScoringError
from mirrorspark.scoring.file_job import check_task_seconds
from mirrorspark.scoring.files import may_take_longer
from mirrorspark.scoring.task.planner import DEFAULT_TASK_SECONDS, TaskPlan, plan_tasks


def rows_of_tasks(group_rows: list[int], plan: TaskPlan) -> list[list[int]]:
    """Return the rows of each row group of each task."""
    rows = iter(group_rows)
    return [[next(rows) for _ in range(count)] for count in plan.groups_per_task]


@given(
    st.lists(st.integers(0, 5_000), min_size=1, max_size=60),
    st.floats(1, 1e4),
    st.integers(1, 12),
    st.floats(0.01, 100),
)
def test_no_task_is_predicted_to_take_longer_unless_one_row_group_does(
    group_rows: list[int], rows_per_second: float, slots: int, task_seconds: float
) -> None:
    plan = plan_tasks(group_rows, [len(group_rows)], rows_per_second, slots, task_seconds)
    tasks = rows_of_tasks(group_rows, plan)
    assert [rows for task in tasks for rows in task] == group_rows
    assert all(tasks)
    slack = 1 + 1e-9
    longest = max(sum(task) / rows_per_second for task in tasks)
    assert plan.longest_seconds == pytest.approx(longest)
    assert all(sum(task) / rows_per_second <= task_seconds * slack or len(task) == 1 for task in tasks)
    assert plan.has_large_groups or plan.longest_seconds <= task_seconds * slack
    assert plan.tasks in (1, len(group_rows)) or plan.tasks % slots == 0


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(9, 40))
def test_no_other_cut_into_as_few_tasks_has_a_shorter_longest_one(group_rows: list[int], target: int) -> None:
    plan = plan_tasks(group_rows, [len(group_rows)], 1.0, 1, float(target))
    best = shortest(group_rows, plan.tasks)
    assert plan.longest_seconds == best
    assert plan.tasks == 1 or shortest(group_rows, plan.tasks - 1) > target


def shortest(group_rows: list[int], tasks: int) -> int:
    """Return the rows of the longest task in the best cut, by trying all."""
    if tasks == 1:
        return sum(group_rows)
    cuts = range(1, len(group_rows) - tasks + 2)
    return min(max(sum(group_rows[:cut]), shortest(group_rows[cut:], tasks - 1)) for cut in cuts)


def test_there_are_as_many_tasks_as_fill_the_slots_evenly() -> None:
    # Of 25 rows a task takes two row groups: five tasks, and six are a multiple of two.
    plan = plan_tasks([10] * 10, [5, 5], rows_per_second=1.0, slots=2, task_seconds=25.0)
    assert plan == TaskPlan((2, 2, 2, 2, 1, 1), longest_seconds=20.0, largest_group_rows=10, fitting_group_rows=25)
    assert (plan.tasks, plan.has_large_groups) == (6, False)


def test_tasks_that_are_short_enough_stay_as_they_are() -> None:
    plan = plan_tasks([10, 10, 5, 15], [1, 3], rows_per_second=2.0, slots=2, task_seconds=15.0)
    assert (plan.groups_per_task, plan.longest_seconds) == ((1, 3), 15.0)


def test_a_row_group_that_is_too_large_is_a_task_of_its_own_and_is_told() -> None:
    plan = plan_tasks([10, 1000, 10, 10], [4], rows_per_second=1.0, slots=1, task_seconds=25.0)
    assert plan.groups_per_task == (1, 1, 2)
    assert (plan.longest_seconds, plan.largest_group_rows, plan.fitting_group_rows) == (1000.0, 1000, 25)
    assert plan.has_large_groups


def test_a_speed_at_which_no_row_fits_still_gives_a_plan() -> None:
    plan = plan_tasks([3, 0, 2], [3], rows_per_second=1.0, slots=4, task_seconds=0.5)
    assert plan.groups_per_task == (1, 1, 1)
    assert plan.has_large_groups


def test_only_jobs_with_large_tasks_are_worth_a_measurement() -> None:
    assert not may_take_longer([100_000, 90_000, 150_000], [2, 1], DEFAULT_TASK_SECONDS)
    assert may_take_longer([100_000, 100_000, 150_000], [2, 1], DEFAULT_TASK_SECONDS)
    assert may_take_longer([2_000], [1], 1.0)
    assert not may_take_longer([], [], 1.0)


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_a_target_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ScoringError, match=f"task_seconds {seconds} is not above 0"):
        check_task_seconds(seconds)
