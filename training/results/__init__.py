"""The results of a training: export, registration, predictions, evaluation and report.

In the main job, a version gets its alias only if Spark's scores equal the training framework's, within a tolerance.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.training.results import delivery
    from mirrorspark.training.results.alias import name_version
    from mirrorspark.training.results.delivery import deliver, keep_report
    from mirrorspark.training.results.export import ExportProcess, has_scann
    from mirrorspark.training.results.export_ahead import ExportAhead
    from mirrorspark.training.results.fit_result import FitResult
    from mirrorspark.training.results.kept_result import keep_delivery, recall_delivery, recall_summary
    from mirrorspark.training.results.recommender_result import RecommenderResult
    from mirrorspark.training.results.scored import score_and_compare
    from mirrorspark.training.results.trained import Trained
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "ExportAhead",
    "ExportProcess",
    "FitResult",
    "RecommenderResult",
    "Trained",
    "deliver",
    "delivery",
    "has_scann",
    "keep_delivery",
    "keep_report",
    "name_version",
    "recall_delivery",
    "recall_summary",
    "score_and_compare",
]
