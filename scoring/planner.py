"""How row groups go to tasks so that none takes longer than a target: a machine that is lost then costs little."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from scoring.checks import ScoringError

DEFAULT_TASK_SECONDS = 120.0
# A core that scores fewer rows a second has a rare model: an encoder of long texts, say. In the default of 120 s it
# does 192,000 rows, and tasks of fewer are taken to be short enough without a look.
SURE_ROWS_PER_SECOND = 1_600


@dataclass(frozen=True)
class Plan:
    """How row groups go to tasks.

    Attributes:
        groups_per_task: How many of the row groups, in their order, each task gets.
        longest_seconds: What the task with most rows is predicted to take.
        largest_group_rows: Rows of the largest row group, of which a task reads all or nothing.
        fitting_group_rows: Most rows that a task does within the target.
    """

    groups_per_task: tuple[int, ...]
    longest_seconds: float
    largest_group_rows: int
    fitting_group_rows: int

    @property
    def tasks(self) -> int:
        """How many there are."""
        return len(self.groups_per_task)

    @property
    def has_large_groups(self) -> bool:
        """Whether a row group alone takes longer than the target."""
        return self.largest_group_rows > self.fitting_group_rows


def check_task_seconds(task_seconds: float) -> None:
    """Refuse a target that no task can meet.

    Raises:
        ScoringError: It is 0, below, or no number.
    """
    if not task_seconds > 0:
        raise ScoringError(f"task_seconds {task_seconds} is not above 0; use what a lost machine may cost, such as 120")


def may_take_longer(group_rows: Sequence[int], groups_per_task: Sequence[int], task_seconds: float) -> bool:
    """Whether a task may take longer than the target, so that it is worth a measurement of how fast rows are scored."""
    return _longest(group_rows, groups_per_task) > SURE_ROWS_PER_SECOND * task_seconds


def plan_tasks(
    group_rows: Sequence[int],
    groups_per_task: Sequence[int],
    rows_per_second: float,
    slots: int,
    task_seconds: float,
) -> Plan:
    """Return how row groups go to tasks so that none is predicted to take longer than ``task_seconds``.

    Where the tasks are short enough as they are, they stay so. Otherwise there are as few as will do, rounded up to a
    multiple of ``slots`` where there are so many row groups, and the longest of them has as few rows as that allows. A
    row group that is too large is a task of its own.

    Args:
        group_rows: Rows of each row group.
        groups_per_task: How they go to tasks so far: neighbours together, none left out.
        rows_per_second: Of one core.
        slots: Tasks that run at the same time.
        task_seconds: The target.
    """
    fitting = int(rows_per_second * task_seconds)
    if _longest(group_rows, groups_per_task) > fitting:
        fewest = len(_filled(group_rows, fitting))
        groups_per_task = _even(group_rows, min(len(group_rows), -(-fewest // slots) * slots), fitting)
    longest_seconds = _longest(group_rows, groups_per_task) / rows_per_second
    return Plan(tuple(groups_per_task), longest_seconds, max(group_rows), fitting)


def _longest(group_rows: Sequence[int], groups_per_task: Sequence[int]) -> int:
    """Return the rows of the task that has most of them."""
    rows = iter(group_rows)
    return max((sum(islice(rows, count)) for count in groups_per_task), default=0)


def _even(group_rows: Sequence[int], tasks: int, most_rows: int) -> tuple[int, ...]:
    """Return the groups of so many tasks, none of more than ``most_rows``, the longest as short as can be."""
    # The more rows a task may have, the fewer tasks are filled: the least that will do is found by bisection.
    least = bisect_left(range(most_rows), True, key=lambda rows: len(_filled(group_rows, rows)) <= tasks)
    return _filled(group_rows, least, tasks)


def _filled(group_rows: Sequence[int], most_rows: int, tasks: int = 1) -> tuple[int, ...]:
    """Return the groups of as few tasks as hold all, one after the other filled with ``most_rows`` or less.

    Args:
        group_rows: Rows of each row group; one of more than ``most_rows`` is a task of its own.
        most_rows: Of a task.
        tasks: There are at least so many; the last ones get a row group each where fewer would hold all.
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
