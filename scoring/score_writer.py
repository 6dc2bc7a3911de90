"""The tasks that write scores to Parquet files: of rows that they read themselves, or of rows that Spark hands them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.file_writes import outcome
from data_pipelines.publish import WriteJob, WrittenFile
from data_pipelines.raw_columns import ColumnError
from data_pipelines.task_numbers import partition_id
from scoring.counters import Tally
from scoring.loaded_model import LoadedModel
from scoring.regroup import grouped, regrouped
from scoring.scorer import VERSION_COLUMN, Scorer
from scoring.shares import Shares

_ROW_GROUP_ROWS = 2**20
_ROW_GROUP_BYTES = 64 * 2**20


def file_name(attempt: str) -> str:
    """Return the name of the file that a task's attempt writes."""
    return f"part-{attempt}.parquet"


@dataclass(frozen=True)
class ScoreWriter:
    """Scores rows and writes one file of it.

    Attributes:
        job: Where the files go.
        keys: Columns that pass through.
        schema: The columns of the scores.
        scorer: Where the model is and how to call it.
    """

    job: WriteJob
    keys: tuple[str, ...]
    schema: pa.Schema
    scorer: Scorer

    def write(self, number: int, batches: Iterable[pa.RecordBatch]) -> pa.RecordBatch:
        """Return what became of share ``number``, whose rows are ``batches``."""
        tally = Tally()
        return outcome(
            self.job,
            lambda: self._written(number, batches, tally),
            refusals=(ColumnError,),
            report=tally.report,
        )

    def parquet(self, sink: Any) -> pq.ParquetWriter:
        """Return what writes scores into ``sink``."""
        # To look for repetitions among keys and scores takes longer than to write them. Readers are to see texts, not
        # Arrow's own types.
        repeated = [VERSION_COLUMN] if VERSION_COLUMN in self.schema.names else False
        return pq.ParquetWriter(sink, self.schema, use_dictionary=repeated, store_schema=False)

    def scored(self, model: LoadedModel, rows: pa.RecordBatch, tally: Tally) -> Iterator[pa.RecordBatch]:
        """Yield the scores of ``rows`` as they are written."""
        # What Spark hands over has its session's time zone, and its own names for the elements of lists.
        for scored in self.scorer.scored_parts(model, rows, tally, self.keys):
            yield scored.cast(self.schema)

    def _written(self, number: int, batches: Iterable[pa.RecordBatch], tally: Tally) -> list[WrittenFile]:
        with self.job.attempt(number) as attempt:
            path = file_name(attempt)
            file = self.job.attempt_file(attempt, path)
            with file.open_write() as sink, self.parquet(sink) as parquet:
                # What is written at a time becomes a row group, of which readers like large ones.
                written = 0
                for group in grouped(self._scored(batches, tally), _ROW_GROUP_ROWS, _ROW_GROUP_BYTES):
                    scored = pa.Table.from_batches(group, self.schema)
                    parquet.write_table(scored, _ROW_GROUP_ROWS)
                    written += scored.num_rows
            # A row of the input may become several, or none; then it counts as read.
            rows = written if self.scorer.settings.outputs.keeps_rows else tally.rows
            return [WrittenFile(attempt, path, rows, rows, file.size())]

    def _scored(self, batches: Iterable[pa.RecordBatch], tally: Tally) -> Iterator[pa.RecordBatch]:
        model = None
        for rows in regrouped(batches):
            model = model or self.scorer.load(tally)
            yield from self.scored(model, rows, tally)


@dataclass(frozen=True)
class FilesTask:
    """The body of a task that reads its share of the row groups itself.

    Attributes:
        shares: The rows of each task.
        writer: Scores and writes them.
    """

    shares: Shares
    writer: ScoreWriter

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield what became of each share that ``batches`` number."""
        for number, rows in self.shares.read(batches):
            yield self.writer.write(number, rows)


@dataclass(frozen=True)
class RowsTask:
    """The body of a task that scores the rows of its partition.

    Attributes:
        writer: Scores and writes them.
    """

    writer: ScoreWriter

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield what became of them."""
        yield self.writer.write(partition_id(), batches)
