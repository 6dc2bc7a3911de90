"""How many rows a core scores in a second: measured on a sample of the rows, before the job is cut into tasks."""

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa
from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from data_pipelines.file_writes import WriteError
from data_pipelines.parquet_rows import BATCH_ROWS, ParquetRows, RowGroups
from data_pipelines.raw_columns import ColumnError
from data_pipelines.spark_errors import task_message
from data_pipelines.task_numbers import numbered_partitions, numbers_of
from scoring.counters import Tally
from scoring.loaded_model import LoadedModel
from scoring.score_writer import ScoreWriter
from scoring.scorer import Scorer
from scoring.shipping import portable

# Rows of the first piece of the sample, or more where one call has: it pays for what is done once, such as a graph that
# the first call traces.
_FIRST_ROWS = 256
# The sample ends with the piece that fills one of these: rows of all pieces, seconds of those after the first.
_MOST_ROWS = 2 * BATCH_ROWS
_MOST_SECONDS = 2.0
# A first piece of so many seconds is the whole sample: the next one might take as long.
_MOST_FIRST_SECONDS = 30.0
_MEASURED = pa.schema([("rows", pa.int64()), ("seconds", pa.float64()), ("loads", pa.int64())])
_MEASURED_DDL = "rows long, seconds double, loads long"
_CONF = "spark.mirrorspark.rowsPerSecond"


@dataclass(frozen=True)
class Speed:
    """How fast a model scores.

    Attributes:
        rows_per_second: Of one core; reading and writing are part of it, loading the model is not.
        loads: How often the model was loaded to find out.
    """

    rows_per_second: float
    loads: int = 0


@dataclass(frozen=True)
class ProbeTask:
    """The body of the tasks of a probe: number 0 scores the sample.

    The others load the model meanwhile, as their slots would have to in any case, so that none waits for it later.

    Attributes:
        source: The rows.
        sample: The row groups that the sample begins with.
        writer: Scores and writes them.
    """

    source: ParquetRows
    sample: tuple[RowGroups, ...]
    writer: ScoreWriter

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield rows, seconds and loads of each task that ``batches`` number; no rows where there is no measurement."""
        for number in numbers_of(batches):
            tally = Tally()
            model = self.writer.scorer.load(tally)
            rows, seconds = self._measured(model) if number == 0 else (0, 0.0)
            yield pa.RecordBatch.from_pylist([{"rows": rows, "seconds": seconds, "loads": tally.loads}], _MEASURED)

    def _measured(self, model: LoadedModel) -> tuple[int, float]:
        try:
            pieces = self._timed(model)
        except (ColumnError, OSError):
            # Rows that cannot be read or scored are told by the tasks whose rows they are.
            return 0, 0.0
        # What the first piece pays for is not of the speed; without another piece it is all that is known.
        counted = pieces[1:] or pieces
        return sum(rows for rows, _ in counted), sum(seconds for _, seconds in counted)

    def _timed(self, model: LoadedModel) -> list[tuple[int, float]]:
        """Return rows and seconds of one piece of the sample after the other."""
        timed: list[tuple[int, float]] = []
        begin = time.perf_counter()
        # Where calls are padded, fewer rows would take as long as a call, or be compiled when time is taken.
        first = max(_FIRST_ROWS, model.least_rows(self.writer.scorer.settings.batch_size))
        with self.writer.parquet(pa.MockOutputStream()) as parquet, closing(self._pieces(first)) as pieces:
            for piece in pieces:
                for scored in self.writer.scored(model, piece, Tally()):
                    parquet.write_batch(scored)
                now = time.perf_counter()
                timed.append((piece.num_rows, now - begin))
                if _is_enough(timed):
                    break
                begin = now
        return timed

    def _pieces(self, first: int) -> Generator[pa.RecordBatch, None, None]:
        """Yield the sample's rows: so many first, then as many as so far. Of a slow model a few hundred take long."""
        rows = 0
        for batch in self.source.batches(self.sample, 1):
            start = 0
            while start < batch.num_rows:
                piece = batch.slice(start, rows or first)
                yield piece
                start += piece.num_rows
                rows += piece.num_rows


def _is_enough(timed: Sequence[tuple[int, float]]) -> bool:
    """Whether the pieces scored so far, by their rows and seconds, are the whole sample.

    Where a row takes as long as another, they take less than a minute together, or there is only the first. The second
    has as many rows as the first, and takes no longer: less than 30 s. Where it takes less than 2 s, all after the
    first take less than 6 s.
    """
    first, *others = timed
    return (
        sum(rows for rows, _ in timed) >= _MOST_ROWS
        or sum(seconds for _, seconds in others) >= _MOST_SECONDS
        or first[1] >= _MOST_FIRST_SECONDS
    )


def speed_of(spark: SparkSession, source: ParquetRows, writer: ScoreWriter) -> Speed | None:
    """Return how fast the model scores, measured once in a session; None where the sample cannot be scored.

    Raises:
        WriteError: A task failed; the message says why.
    """
    name = _conf_name(writer.scorer)
    known = spark.conf.get(name, "")
    if known:
        return Speed(float(known))
    found = _measured(spark, source, writer)
    if found is not None:
        spark.conf.set(name, repr(found.rows_per_second))
    return found


def _measured(spark: SparkSession, source: ParquetRows, writer: ScoreWriter) -> Speed | None:
    slots = spark.sparkContext.defaultParallelism
    largest = max(range(len(source.groups)), key=source.group_rows.__getitem__)
    task = ProbeTask(source, (source.groups[largest],), writer)
    try:
        told = numbered_partitions(spark, slots).mapInArrow(portable(task), _MEASURED_DDL).collect()
    except (Py4JJavaError, PySparkException) as error:
        raise WriteError(f"{writer.job.target} cannot be written: {task_message(error)}") from error
    rows, seconds = sum(row.rows for row in told), sum(row.seconds for row in told)
    return Speed(rows / seconds, sum(row.loads for row in told)) if seconds else None


def _conf_name(scorer: Scorer) -> str:
    """Return under which name the session keeps the speed: that of a model, in one form, on the session's cluster."""
    return f"{_CONF}.{scorer.model.digest}.{scorer.settings.outputs!r}"
