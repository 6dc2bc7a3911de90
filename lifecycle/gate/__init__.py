"""Validation of a candidate against the champion: sliced metrics, thresholds, and findings that block a promotion.

A gate without a measurement fails.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.lifecycle.gate.eval_config import EvalConfigError, read_eval_config
    from mirrorspark.lifecycle.gate.facts import MetricEstimate, SliceFacts
    from mirrorspark.lifecycle.gate.gate import SINGLE_ROWS, log_validation, validate
    from mirrorspark.lifecycle.gate.measure import MOST_SLICES, MeasurementSpec, measure_scores
    from mirrorspark.lifecycle.gate.page import PAGE_FILE
    from mirrorspark.lifecycle.gate.serving import SingleRowsError, score_single_rows
    from mirrorspark.lifecycle.gate.slices import OVERALL, Slicing, slicings_of
    from mirrorspark.lifecycle.gate.task_metrics import metrics_of_task
    from mirrorspark.lifecycle.gate.thresholds import Gap, Gates, Threshold, direction_of
    from mirrorspark.lifecycle.gate.validation import FORMAT_VERSION, Validation
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "FORMAT_VERSION",
    "MOST_SLICES",
    "OVERALL",
    "PAGE_FILE",
    "SINGLE_ROWS",
    "EvalConfigError",
    "Gap",
    "Gates",
    "MeasurementSpec",
    "MetricEstimate",
    "SingleRowsError",
    "SliceFacts",
    "Slicing",
    "Threshold",
    "Validation",
    "direction_of",
    "log_validation",
    "measure_scores",
    "metrics_of_task",
    "read_eval_config",
    "score_single_rows",
    "slicings_of",
    "validate",
]
