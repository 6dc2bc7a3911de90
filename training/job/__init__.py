"""The job of a training: the run is prepared, with its sources and checks, and opened; its program trains.

The driver resolves stores, models and settings once, before the training starts.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training.job.prepared_run import (
        PreparedRun,
        dry_run,
        open_checked_session,
        prepare,
        prepare_training,
    )
    from mirrorspark.training.job.program import Cluster, Program, epochs_in_words, supervisor_of
    from mirrorspark.training.job.source_tables import SourceTables, recipe_table, source_files
    from mirrorspark.training.job.training_job import LearntModel, TrainingJob, open_job
    from mirrorspark.training.job.warm_start import resolve_warm_start
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "Cluster",
    "LearntModel",
    "PreparedRun",
    "Program",
    "SourceTables",
    "TrainingJob",
    "dry_run",
    "epochs_in_words",
    "open_checked_session",
    "open_job",
    "prepare",
    "prepare_training",
    "recipe_table",
    "resolve_warm_start",
    "source_files",
    "supervisor_of",
]
