"""Values and connections that driver, executors and workers share.

This folder imports none of the three. Every connection is authenticated by the run's token.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training.protocol.elastic import BatchRule, Elastic, WorkerRange, parse_workers, resume_step
    from mirrorspark.training.protocol.limits import Budgets, PhaseLimits
    from mirrorspark.training.protocol.main_thread import woken_main_thread
    from mirrorspark.training.protocol.names import (
        EVENTS_FILE,
        RUNS_FOLDER,
        STATE_FILE,
        SUMMARY_FILE,
        WARM_START_FOLDER,
    )
    from mirrorspark.training.protocol.plan import PROGRESS_STATE, AttemptPlan, TrainingPlan
    from mirrorspark.training.protocol.roles import COORDINATOR, RankRole, Roles, shards
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "COORDINATOR",
    "EVENTS_FILE",
    "PROGRESS_STATE",
    "RUNS_FOLDER",
    "STATE_FILE",
    "SUMMARY_FILE",
    "WARM_START_FOLDER",
    "AttemptPlan",
    "BatchRule",
    "Budgets",
    "Elastic",
    "PhaseLimits",
    "RankRole",
    "Roles",
    "TrainingPlan",
    "WorkerRange",
    "parse_workers",
    "resume_step",
    "shards",
    "woken_main_thread",
]
