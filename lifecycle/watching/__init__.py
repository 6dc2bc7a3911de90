"""Watching a model in production: drift of its inputs and scores since the training, and its live quality.

A snapshot of the training travels with the model, so watching needs no training data.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.lifecycle.watching.counting import NothingToWatchError
    from mirrorspark.lifecycle.watching.drift import DriftLimits
    from mirrorspark.lifecycle.watching.live import ExpectedMetrics, live_metrics
    from mirrorspark.lifecycle.watching.page import log_watch, watch_page
    from mirrorspark.lifecycle.watching.snapshot import SNAPSHOT_FILE, Snapshot, SnapshotError, score_column
    from mirrorspark.lifecycle.watching.watcher import watch, watch_stream
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "SNAPSHOT_FILE",
    "DriftLimits",
    "ExpectedMetrics",
    "NothingToWatchError",
    "Snapshot",
    "SnapshotError",
    "live_metrics",
    "log_watch",
    "score_column",
    "watch",
    "watch_page",
    "watch_stream",
]
