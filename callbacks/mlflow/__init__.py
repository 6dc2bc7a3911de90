"""Delivery of metrics, parameters, tags and artifacts to MLflow, even through an outage of its server.

Everything is first an event of a log: the run's, or the file of an ``MLflowLogger``. Requests are sent from the log in
the background, so no step waits for MLflow. A position in the log separates what MLflow has acknowledged.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.callbacks.mlflow import metric_requests, tracking_store
    from mirrorspark.callbacks.mlflow.metric_buffer import MetricBuffer
    from mirrorspark.callbacks.mlflow.metric_replay import report
    from mirrorspark.callbacks.mlflow.shared_view import share_view
    from mirrorspark.callbacks.mlflow.usage_metrics import STEP_PREFIX, WORK_PREFIX, SystemSampler
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "STEP_PREFIX",
    "WORK_PREFIX",
    "MetricBuffer",
    "SystemSampler",
    "metric_requests",
    "report",
    "share_view",
    "tracking_store",
]
