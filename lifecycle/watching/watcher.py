"""The calls that watch rows: a table at once, or a stream window by window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql.streaming.query import StreamingQuery

from mirrorspark.lifecycle.watching.counting import counts_by_window, window_counts
from mirrorspark.lifecycle.watching.drift import ColumnDrift, DriftLimits, alarms_of, drift_of
from mirrorspark.lifecycle.watching.snapshot import Snapshot
from mirrorspark.spark_session import on_running_session

WEEK = "7 days"


@dataclass(frozen=True)
class WindowDrift:
    """The drift in a window.

    Attributes:
        start: When it starts, in UTC; None for a table without times.
        columns: Its columns.
    """

    start: datetime | None
    columns: tuple[ColumnDrift, ...]

    @property
    def alarms(self) -> list[str]:
        """Measures beyond their limits, in words."""
        return alarms_of(self.columns)

    @property
    def rows(self) -> int:
        """The rows of the window."""
        return max((one.rows for one in self.columns), default=0)


@on_running_session
def watch(
    table: DataFrame,
    snapshot: Snapshot | str | Path,
    *,
    time: str | None = None,
    window: str = WEEK,
    limits: DriftLimits | None = None,
) -> tuple[WindowDrift, ...]:
    """Compare rows with the snapshot of a training, window by window, in one pass of Spark.

    Args:
        table: Rows with raw columns, and scores if the snapshot has them. Columns that it lacks are not watched.
        snapshot: The snapshot, or its file.
        time: SQL expression of a row's time; None for one window. Rows without a time are left out.
        window: Length of a window.
        limits: From where a change is an alarm.

    Returns:
        The windows, the earliest first.

    Raises:
        NothingToWatchError: The table has no column of the snapshot.
        SnapshotError: The file is not a snapshot.
        PySparkException: A column has values of another type than in the training.
    """
    known = snapshot if isinstance(snapshot, Snapshot) else Snapshot.load(snapshot)
    counts = window_counts(table, known, time=time, window=window).collect()
    return _drifts(counts, known, limits or DriftLimits())


@on_running_session
def watch_stream(
    table: DataFrame,
    snapshot: Snapshot | str | Path,
    on_window: Callable[[WindowDrift], None],
    *,
    time: str,
    checkpoint: str,
    window: str = WEEK,
    late: str = "1 day",
    limits: DriftLimits | None = None,
) -> StreamingQuery:
    """Compare a stream of rows with the snapshot of a training, and report each window when it is complete.

    A window is complete when a row has come that is later than its end by ``late``. After a restart from the same
    checkpoint the stream goes on; a window is then reported at least once.

    Args:
        table: A stream of rows.
        snapshot: The snapshot, or its file.
        on_window: Gets each window, on the driver.
        time: SQL expression of a row's time.
        checkpoint: Folder of the stream's state.
        window: Length of a window.
        late: How late rows may come; later ones are left out.
        limits: From where a change is an alarm.

    Raises:
        NothingToWatchError: The stream has no column of the snapshot.
        SnapshotError: The file is not a snapshot.
    """
    known = snapshot if isinstance(snapshot, Snapshot) else Snapshot.load(snapshot)
    asked = limits or DriftLimits()

    def of_batch(counts: DataFrame, _: int) -> None:
        for one in _drifts(counts.collect(), known, asked):
            on_window(one)

    counts = window_counts(table, known, time=time, window=window, late=late)
    return (
        counts.writeStream.outputMode("append").foreachBatch(of_batch).option("checkpointLocation", checkpoint).start()
    )


def _drifts(counts: list[Any], snapshot: Snapshot, limits: DriftLimits) -> tuple[WindowDrift, ...]:
    # Spark gives times in the zone of this process, without naming it.
    return tuple(
        WindowDrift(start and start.astimezone(UTC), drift_of(snapshot, of_columns, limits))
        for start, of_columns in counts_by_window(counts, snapshot).items()
    )
