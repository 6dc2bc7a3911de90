"""Metrics and their bootstrap intervals, shared by training, gates and experiments.

They need only NumPy and scikit-learn, and neither read nor write files.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.evaluation import bootstrap
    from mirrorspark.evaluation.metrics import (
        PRECISION_KS,
        SEGMENTS,
        binary_metrics,
        check_binary_label,
        is_better,
        multi_class_metrics,
        multi_label_metrics,
        precisions_at,
        rank_columns,
        rank_metrics,
        regression_metrics,
    )
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "PRECISION_KS",
    "SEGMENTS",
    "binary_metrics",
    "bootstrap",
    "check_binary_label",
    "is_better",
    "multi_class_metrics",
    "multi_label_metrics",
    "precisions_at",
    "rank_columns",
    "rank_metrics",
    "regression_metrics",
]
