"""Scoring: models applied to tables, files and single rows.

By default, a scored row has its keys, its scores and the exact version of the model. Rows stream through a task in
batches.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.scoring import file_job
    from mirrorspark.scoring.batch import BatchTask, score
    from mirrorspark.scoring.errors import ScoringError
    from mirrorspark.scoring.files import score_files
    from mirrorspark.scoring.groups import score_by_group
    from mirrorspark.scoring.memory import score_in_memory, session_to_score
    from mirrorspark.scoring.package import package_model
    from mirrorspark.scoring.plan import ScoringPlan, SentColumns, check_keys
    from mirrorspark.scoring.predictor import Predictor
    from mirrorspark.scoring.registration import log_version, new_version, open_store, register_model
    from mirrorspark.scoring.run import error_text, fail
    from mirrorspark.scoring.sql import register_sql
    from mirrorspark.scoring.udf import scorer_udf
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "BatchTask",
    "Predictor",
    "ScoringError",
    "ScoringPlan",
    "SentColumns",
    "check_keys",
    "error_text",
    "fail",
    "file_job",
    "log_version",
    "new_version",
    "open_store",
    "package_model",
    "register_model",
    "register_sql",
    "score",
    "score_by_group",
    "score_files",
    "score_in_memory",
    "scorer_udf",
    "session_to_score",
]
