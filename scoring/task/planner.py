"""Assignment of row groups to tasks of a limited duration, so that a lost machine costs little work."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from mirrorspark.data_pipelines.reading import parquet_rows

DEFAULT_TASK_SECONDS = 120.0
# Assumed minimum speed of a core; only rare models are slower, such as encoders of long texts. It gives 192,000 rows in
# the default of 120 s, and tasks with fewer rows are not measured.
ASSUMED_ROWS_PER_SECOND = 1_600


@dataclass(frozen=True)
class TaskPlan:
    """Assignment of row groups to tasks.

    Attributes:
        groups_per_task: Number of consecutive row groups of each task.
        longest_seconds: Predicted duration of the task with the most rows.
        largest_group_rows: Rows of the largest row group; a row group is never divided.
        fitting_group_rows: Largest number of rows that a task scores within the target.
    """

    groups_per_task: tuple[int, ...]
    longest_seconds: float
    largest_group_rows: int
    fitting_group_rows: int

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return len(self.groups_per_task)

    @property
    def has_large_groups(self) -> bool:
        """True if a single row group takes longer than the target."""
        return self.largest_group_rows > self.fitting_group_rows


def plan_tasks(
    group_rows: Sequence[int],
    groups_per_task: Sequence[int],
    rows_per_second: float,
    slots: int,
    task_seconds: float,
) -> TaskPlan:
    """Assign row groups to tasks with a predicted duration of at most ``task_seconds``.

    Tasks that are short enough stay as they are. Otherwise the number of tasks is the smallest possible one, rounded up
    to a multiple of ``slots`` if there are enough row groups, and the longest task is as this number allows. A
    row group that is too large becomes a task.

    Args:
        group_rows: Rows of each row group.
        groups_per_task: Current assignment: the number of consecutive row groups of each task.
        rows_per_second: Speed of one core.
        slots: Number of tasks that run at the same time.
        task_seconds: The target.
    """
    fitting = int(rows_per_second * task_seconds)
    if parquet_rows.largest_share(group_rows, groups_per_task) > fitting:
        fewest = len(_filled(group_rows, fitting))
        groups_per_task = _balanced(group_rows, min(len(group_rows), -(-fewest // slots) * slots), fitting)
    longest_seconds = parquet_rows.largest_share(group_rows, groups_per_task) / rows_per_second
    return TaskPlan(tuple(groups_per_task), longest_seconds, max(group_rows), fitting)


def _balanced(group_rows: Sequence[int], tasks: int, most_rows: int) -> tuple[int, ...]:
    """Return an assignment to ``tasks`` tasks of at most ``most_rows``, with the smallest possible longest task."""
    # The number of tasks falls as the limit of rows grows, so bisection finds the smallest sufficient limit.
    least = bisect_left(range(most_rows), True, key=lambda rows: len(_filled(group_rows, rows)) <= tasks)
    return _filled(group_rows, least, tasks)


def _filled(group_rows: Sequence[int], most_rows: int, tasks: int = 1) -> tuple[int, ...]:
    """Return the assignment to the fewest tasks of at most ``most_rows``, filled one after the other.

    Args:
        group_rows: Rows of each row group; one with more than ``most_rows`` becomes a task.
        most_rows: Largest number of rows of a task.
        tasks: Smallest number of tasks; if fewer would suffice, the last ones get one row group each.
    """
    counts, rows = [0], 0
    for number, size in enumerate(group_rows):
        is_last_for_a_task = len(group_rows) - number <= tasks - len(counts)
        if counts[-1] and (rows + size > most_rows or is_last_for_a_task):
            counts.append(0)
            rows = 0
        counts[-1] += 1
        rows += size
    return tuple(counts)
