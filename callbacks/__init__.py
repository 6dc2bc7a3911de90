"""Keras callbacks for any ``tf.distribute`` strategy, one per file.

They work in any ``model.fit``. All ranks save a checkpoint, and only the chief's copy is published.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.callbacks.backup import BackupAndRestore, restore_weights, resume_point
    from mirrorspark.callbacks.checkpoint import ChiefCheckpoint
    from mirrorspark.callbacks.early_stopping import AgreedEarlyStopping
    from mirrorspark.callbacks.mlflow_log import MLflowLogger
    from mirrorspark.callbacks.nan_guard import Locate, StopOnNaN
    from mirrorspark.callbacks.profile import ProfileSteps
    from mirrorspark.callbacks.progress import EventCallback, optimizer_step
    from mirrorspark.callbacks.reduce_lr import AgreedReduceLROnPlateau
    from mirrorspark.callbacks.short_executions import ShortExecutions
    from mirrorspark.callbacks.stop_request import StopOnRequest, TrainingStopped
    from mirrorspark.callbacks.throughput import Throughput
    from mirrorspark.callbacks.time_limit import AgreedTimeLimit
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "AgreedEarlyStopping",
    "AgreedReduceLROnPlateau",
    "AgreedTimeLimit",
    "BackupAndRestore",
    "ChiefCheckpoint",
    "EventCallback",
    "Locate",
    "MLflowLogger",
    "ProfileSteps",
    "ShortExecutions",
    "StopOnNaN",
    "StopOnRequest",
    "Throughput",
    "TrainingStopped",
    "optimizer_step",
    "restore_weights",
    "resume_point",
]
