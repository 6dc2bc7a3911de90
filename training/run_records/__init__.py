"""The records of a run: its folder, its events, its MLflow run.

The folder alone is enough to resume a run, even while MLflow is unreachable.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training.run_records import run_history, run_state
    from mirrorspark.training.run_records.find_run import RunFinishedError, require_unfinished, runs_of_identity
    from mirrorspark.training.run_records.opened_run import OpenRun, leave, open_run
    from mirrorspark.training.run_records.run_folder import RunFolder
    from mirrorspark.training.run_records.run_state import hold_lock
    from mirrorspark.training.run_records.run_title import settings_in_words
    from mirrorspark.training.run_records.sources import COMMIT_TAG, environment, source_tags
    from mirrorspark.training.run_records.tracked_run import OuterRun, TrackedRun, TrackingError
    from mirrorspark.training.run_records.tracking import Tracking, store_of
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "COMMIT_TAG",
    "OpenRun",
    "OuterRun",
    "RunFinishedError",
    "RunFolder",
    "TrackedRun",
    "Tracking",
    "TrackingError",
    "environment",
    "hold_lock",
    "leave",
    "open_run",
    "require_unfinished",
    "run_history",
    "run_state",
    "runs_of_identity",
    "settings_in_words",
    "source_tags",
    "store_of",
]
