"""Values and connections that driver, executors and workers share.

This folder imports none of the three. Every connection is authenticated by the run's token.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training.protocol import handshake, timing
    from mirrorspark.training.protocol.activity import Activity, Phase
    from mirrorspark.training.protocol.admissions import Admissions
    from mirrorspark.training.protocol.cause import SESSION_LOST, Attempt, Cause, RankError, Stop, known_errors
    from mirrorspark.training.protocol.elastic import BatchRule, Elastic, WorkerRange, parse_workers, resume_step
    from mirrorspark.training.protocol.event_client import EventClient
    from mirrorspark.training.protocol.event_server import EventServer
    from mirrorspark.training.protocol.events import Command, Event, EventAddress
    from mirrorspark.training.protocol.limits import Budgets, Limits
    from mirrorspark.training.protocol.names import (
        EVENTS_FILE,
        RUNS_FOLDER,
        STATE_FILE,
        SUMMARY_FILE,
        WARM_START_FOLDER,
        is_name,
    )
    from mirrorspark.training.protocol.plan import PROGRESS_STATE, AttemptPlan, TrainingPlan
    from mirrorspark.training.protocol.roles import COORDINATOR, Role, Roles, shards
    from mirrorspark.training.protocol.rounds import Every, every
    from mirrorspark.training.protocol.stop import StopSignal
    from mirrorspark.training.protocol.words import findings_in_words, numbers_in_words, ranks_in_words
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "COORDINATOR",
    "EVENTS_FILE",
    "PROGRESS_STATE",
    "RUNS_FOLDER",
    "SESSION_LOST",
    "STATE_FILE",
    "SUMMARY_FILE",
    "WARM_START_FOLDER",
    "Activity",
    "Admissions",
    "Attempt",
    "AttemptPlan",
    "BatchRule",
    "Budgets",
    "Cause",
    "Command",
    "Elastic",
    "Event",
    "EventAddress",
    "EventClient",
    "EventServer",
    "Every",
    "Limits",
    "Phase",
    "RankError",
    "Role",
    "Roles",
    "Stop",
    "StopSignal",
    "TrainingPlan",
    "WorkerRange",
    "every",
    "findings_in_words",
    "handshake",
    "is_name",
    "known_errors",
    "numbers_in_words",
    "parse_workers",
    "ranks_in_words",
    "resume_step",
    "shards",
    "timing",
]
