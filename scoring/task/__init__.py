"""Code of scoring tasks on the executors, and the planning of these tasks.

A task body pickles, loads its model once per process, and counts its rows.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.scoring.task.batches import RowCount, grouped, pieces, regrouped
    from mirrorspark.scoring.task.counts import Counters, JobCounters, MergedCounters, ScoringCounts, TaskCounts
    from mirrorspark.scoring.task.group_task import GroupTask, Unknown
    from mirrorspark.scoring.task.options import OtherVersions, ScoringOptions
    from mirrorspark.scoring.task.planner import ASSUMED_ROWS_PER_SECOND, DEFAULT_TASK_SECONDS, plan_tasks
    from mirrorspark.scoring.task.probe import Speed, log_plan, speed_of
    from mirrorspark.scoring.task.scorer import Scorer
    from mirrorspark.scoring.task.shipping import ShippedModel, ship, ship_all
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "ASSUMED_ROWS_PER_SECOND",
    "DEFAULT_TASK_SECONDS",
    "Counters",
    "GroupTask",
    "JobCounters",
    "MergedCounters",
    "OtherVersions",
    "RowCount",
    "Scorer",
    "ScoringCounts",
    "ScoringOptions",
    "ShippedModel",
    "Speed",
    "TaskCounts",
    "Unknown",
    "grouped",
    "log_plan",
    "pieces",
    "plan_tasks",
    "regrouped",
    "ship",
    "ship_all",
    "speed_of",
]
