"""Measurement of a model's speed on a sample of the rows, before they are assigned to tasks."""

import logging
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
from pyspark.sql import SparkSession

from mirrorspark.data_pipelines.features import raw_columns
from mirrorspark.data_pipelines.reading import parquet_rows
from mirrorspark.data_pipelines.spark import WriteError, numbered_partitions, numbers_of, portable
from mirrorspark.scoring.model.loading import LoadedModel
from mirrorspark.scoring.task.counts import ScoringCounts
from mirrorspark.scoring.task.planner import TaskPlan
from mirrorspark.scoring.task.scorer import Scorer
from mirrorspark.spark_session import SPARK_ERRORS, session_of, task_message

if TYPE_CHECKING:  # files imports this module
    from mirrorspark.scoring.files import ScoreWriter

_LOGGER = logging.getLogger(__name__)

# Minimum rows of the first piece of the sample, which pays for one-time work such as tracing a graph. It has at least
# the rows of a padded call.
_FIRST_ROWS = 256
# The sample ends when all pieces together reach this number of rows, or the pieces after the first this many seconds.
_MOST_ROWS = 2 * parquet_rows.BATCH_ROWS
_MOST_SECONDS = 2.0
# If the first piece takes this long, the sample ends with it, because the next one might take as long.
_MOST_FIRST_SECONDS = 30.0
_MEASURED = pa.schema([("rows", pa.int64()), ("seconds", pa.float64()), ("loads", pa.int64())])
_MEASURED_DDL = "rows long, seconds double, loads long"
_CONF = "spark.mirrorspark.rowsPerSecond"


@dataclass(frozen=True)
class Speed:
    """Measured speed of a model.

    Attributes:
        rows_per_second: Speed of one core, including reading and writing but not loading the model.
        loads: Loads of the model for the measurement.
    """

    rows_per_second: float
    loads: int = 0


@dataclass(frozen=True)
class ProbeTask:
    """Body of the tasks of a probe. Task 0 scores the sample.

    The other tasks load the model meanwhile, because their slots need it later in any case.
    """

    source: parquet_rows.ParquetRows
    sample: tuple[parquet_rows.RowGroups, ...]
    writer: "ScoreWriter"

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield rows, seconds and loads of each task whose number is in ``batches``; 0 rows without a measurement."""
        for number in numbers_of(batches):
            counts = ScoringCounts()
            model = self.writer.scorer.load(counts)
            rows, seconds = self._measured(model) if number == 0 else (0, 0.0)
            yield pa.RecordBatch.from_pylist([{"rows": rows, "seconds": seconds, "loads": counts.loads}], _MEASURED)

    def _measured(self, model: LoadedModel) -> tuple[int, float]:
        try:
            pieces = self._timed(model)
        except (raw_columns.ColumnError, OSError):
            # The tasks of the job report rows that cannot be read or scored.
            return 0, 0.0
        # The first piece includes one-time work. It counts only if it is the only one.
        counted = pieces[1:] or pieces
        return sum(rows for rows, _ in counted), sum(seconds for _, seconds in counted)

    def _timed(self, model: LoadedModel) -> list[tuple[int, float]]:
        """Return rows and seconds of each piece of the sample."""
        timed: list[tuple[int, float]] = []
        begin = time.perf_counter()
        # With padded calls, fewer rows would take as a whole call, or include compilation in the measurement.
        first = max(_FIRST_ROWS, model.least_rows(self.writer.scorer.options.batch_size))
        scoring = self.writer.scoring(lambda _: (), ScoringCounts())
        with scoring.open_parquet(pa.MockOutputStream()) as parquet, closing(self._pieces(first)) as pieces:
            for piece in pieces:
                for scored in scoring.scored(piece):
                    parquet.write_batch(scored.cast(scoring.schema))
                now = time.perf_counter()
                timed.append((piece.num_rows, now - begin))
                if _is_enough(timed):
                    break
                begin = now
        return timed

    def _pieces(self, first: int) -> Generator[pa.RecordBatch, None, None]:
        """Yield pieces of the sample: ``first`` rows, then each time as many rows as so far."""
        rows = 0
        for batch in self.source.batches(self.sample, 1):
            start = 0
            while start < batch.num_rows:
                piece = batch.slice(start, rows or first)
                yield piece
                start += piece.num_rows
                rows += piece.num_rows


def _is_enough(timed: Sequence[tuple[int, float]]) -> bool:
    """Return whether the sample is complete, given rows and seconds of its pieces so far.

    If all rows take equally long, the sample takes less than a minute or has only one piece. The second piece has as
    many rows as the first and takes no longer, so less than 30 s. If it takes less than 2 s, all pieces after the first
    take less than 6 s.
    """
    first, *others = timed
    return (
        sum(rows for rows, _ in timed) >= _MOST_ROWS
        or sum(seconds for _, seconds in others) >= _MOST_SECONDS
        or first[1] >= _MOST_FIRST_SECONDS
    )


def speed_of(spark: SparkSession, source: parquet_rows.ParquetRows, writer: "ScoreWriter") -> Speed | None:
    """Return the speed of the model, measured once per session; None if the sample cannot be scored.

    Raises:
        WriteError: A task failed; the message gives the reason.
    """
    name = _conf_name(writer.scorer)
    known = spark.conf.get(name, "")
    if known:
        return Speed(float(known))
    found = _measured(spark, source, writer)
    if found is not None:
        spark.conf.set(name, repr(found.rows_per_second))
    return found


def log_plan(plan: TaskPlan, speed: Speed, task_seconds: float) -> None:
    """Log the tasks that were planned by a measured speed, and warn of row groups that are too large."""
    _LOGGER.info(
        "%d tasks, the longest of some %.1f s: a core scores %.0f rows a second",
        plan.tasks,
        plan.longest_seconds,
        speed.rows_per_second,
    )
    if plan.has_large_groups:
        _LOGGER.warning(
            "a row group of %d rows takes a task %.0f s, above task_seconds %g, and no task reads a part of one; write "
            "the files with row groups of at most %d rows",
            plan.largest_group_rows,
            plan.largest_group_rows / speed.rows_per_second,
            task_seconds,
            max(1, plan.fitting_group_rows),
        )


def _measured(spark: SparkSession, source: parquet_rows.ParquetRows, writer: "ScoreWriter") -> Speed | None:
    slots = session_of(spark).default_parallelism
    largest = max(range(len(source.groups)), key=source.group_rows.__getitem__)
    task = ProbeTask(source, (source.groups[largest],), writer)
    try:
        reports = numbered_partitions(spark, slots).mapInArrow(portable(task), _MEASURED_DDL).collect()
    except SPARK_ERRORS as error:
        raise WriteError(f"{writer.job.target} cannot be written: {task_message(error)}") from error
    rows, seconds = sum(row.rows for row in reports), sum(row.seconds for row in reports)
    return Speed(rows / seconds, sum(row.loads for row in reports)) if seconds else None


def _conf_name(scorer: Scorer) -> str:
    """Return the session's configuration key for the speed of a model with one form."""
    return f"{_CONF}.{scorer.model.digest}.{scorer.options.outputs!r}"
