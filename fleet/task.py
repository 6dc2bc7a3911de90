"""Tasks that score rows with a fleet and write the outputs, one file each."""

import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mirrorspark.data_pipelines.features import raw_columns
from mirrorspark.data_pipelines.spark import Shares, numbers_of, outcome
from mirrorspark.fleet.columns import FleetError
from mirrorspark.fleet.counting import packed_counts
from mirrorspark.fleet.fleet import Fleet
from mirrorspark.fleet.layout import Layout
from mirrorspark.fleet.scorer import FleetScorer
from mirrorspark.scoring import ROW_GROUP_BYTES, ROW_GROUP_ROWS, file_name
from mirrorspark.scoring.model import limit_numeric_libraries
from mirrorspark.scoring.task import ShippedModel, grouped, process_report, regrouped
from mirrorspark.spark_session import partition_id, task_cores
from mirrorspark.storage.publish import WriteJob, WrittenFile

# Outputs of a row group: lists of small numbers take four times as much while Parquet encodes them.
_GROUP_BYTES = ROW_GROUP_BYTES // 2

MODELS_KEY = "mirrorspark_models"
"""Key of the Parquet files' metadata under which the names of the models are, in the order of the lists' elements."""

FLEET_KEY = "mirrorspark_fleet"
"""Key of the Parquet files' metadata under which the digest of the fleet is."""

Read = Callable[[int], Iterable[pa.RecordBatch]]
"""Returns the rows of a task in batches of about a given number of rows."""


@dataclass
class FleetTally:
    """Counters of one task.

    Attributes:
        rows: Rows of the input.
        nulls: Rows of models without outputs, because a value is missing.
        read_seconds: Seconds in which the rows were read.
        score_seconds: Seconds in which they were scored.
        write_seconds: Seconds in which the outputs were encoded and written.
        began: When the task began, on a clock of its process.
        counts: int32 ``[models, BINS]``: outputs by bin, where a manifest needs them.
        digests: SHA-256 of the files by path, where a manifest needs them.
        failures: Models that raised an error, where these are left out.
        model_seconds: Seconds of each model, where a ledger needs them.
    """

    rows: int = 0
    nulls: int = 0
    read_seconds: float = 0.0
    score_seconds: float = 0.0
    write_seconds: float = 0.0
    began: float = field(default_factory=time.perf_counter)
    counts: np.ndarray | None = None
    digests: dict[str, str] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    model_seconds: list[float] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """Return the counters as JSON values, with all seconds, the process and its peak resident memory in bytes."""
        found = asdict(replace(self, counts=None)) | {"counts": packed_counts(self.counts)}
        return found | {"seconds": time.perf_counter() - self.began} | process_report()


@dataclass(frozen=True)
class FleetWriter:
    """Scores rows and writes the outputs into one file.

    Attributes:
        keys: The key columns, in the types of the file.
        fleet: Where tasks find the fleet.
        layout: Name of the layout.
        outputs: The outputs to write.
    """

    job: WriteJob
    keys: pa.Schema
    fleet: ShippedModel
    layout: str
    outputs: tuple[str, ...]

    def write(self, number: int, read: Read) -> pa.RecordBatch:
        """Score and write share ``number``, which ``read`` returns; return its outcome."""
        tally = FleetTally()
        return outcome(
            self.job,
            lambda: self._written(number, read, tally),
            refusals=(raw_columns.ColumnError,),
            report=tally.report,
        )

    def scorer(self) -> FleetScorer:
        """Return the scorer of the rows, from the cache of this process or from the fleet's files."""
        return cached_scorer(self.fleet.folder(), self.fleet.digest, self.layout, self.outputs)

    def path(self, number: int, attempt: str) -> str:
        """Return the name of the file of a share."""
        return file_name(attempt)

    def outputs_of(
        self, scorer: FleetScorer, rows: pa.RecordBatch, tally: FleetTally
    ) -> Iterator[tuple[pa.RecordBatch, int]]:
        """Yield keys and outputs of some rows, each with its number of null outputs."""
        return scorer.batches(rows, self.keys.names)

    def _written(self, number: int, read: Read, tally: FleetTally) -> list[WrittenFile]:
        scorer = self.scorer()
        tally.score_seconds += time.perf_counter() - tally.began
        begin = time.perf_counter()
        schema = pa.schema([*self.keys, *scorer.layout.fields])
        with self.job.attempt(number) as attempt:
            path = self.path(number, attempt)
            file = self.job.attempt_file(attempt, path)
            few = scorer.layout.dictionary_columns
            # Like score_files, without Arrow's own schema in the metadata: readers need Parquet's types alone.
            with (
                file.open_write() as sink,
                pq.ParquetWriter(sink, schema, use_dictionary=few, store_schema=False) as to,
            ):
                to.add_key_value_metadata({MODELS_KEY: json.dumps(scorer.layout.models), FLEET_KEY: self.fleet.digest})
                tally.write_seconds += time.perf_counter() - begin
                for group in grouped(self._scored(scorer, schema, read, tally), ROW_GROUP_ROWS, _GROUP_BYTES):
                    begin = time.perf_counter()
                    table = pa.Table.from_batches(group, schema)
                    to.write_table(table, table.num_rows)
                    tally.write_seconds += time.perf_counter() - begin
                begin = time.perf_counter()
            # The rest of the file, which stores get when it is closed.
            tally.write_seconds += time.perf_counter() - begin
            return [WrittenFile(attempt, path, tally.rows, tally.rows, file.size())]

    def _scored(
        self, scorer: FleetScorer, schema: pa.Schema, read: Read, tally: FleetTally
    ) -> Iterator[pa.RecordBatch]:
        begin = time.perf_counter()
        for rows in read(scorer.batch_rows):
            now = time.perf_counter()
            tally.read_seconds += now - begin
            for scored, nulls in self.outputs_of(scorer, rows, tally):
                tally.nulls += nulls
                # Keys from Spark carry the time zone of its session.
                typed = scored.cast(schema) if scored.schema != schema else scored
                tally.score_seconds += time.perf_counter() - now
                yield typed
                now = time.perf_counter()
            tally.rows += rows.num_rows
            begin = time.perf_counter()
        tally.read_seconds += time.perf_counter() - begin


@dataclass(frozen=True)
class FleetFilesTask:
    """Body of a task that reads its share of the row groups itself."""

    shares: Shares
    writer: FleetWriter

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the outcome of each share whose number is in ``batches``."""
        for number in numbers_of(batches):
            yield self.writer.write(number, partial(self.shares.source.batches, self.shares.groups[number]))


@dataclass(frozen=True)
class FleetRowsTask:
    """Body of a task that scores the rows of its partition."""

    writer: FleetWriter

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the outcome."""
        yield self.writer.write(partition_id(), lambda rows: regrouped(batches, rows, ROW_GROUP_BYTES))


def load_scorer(
    folder: Path,
    digest: str,
    layout: str,
    outputs: tuple[str, ...],
    part: Callable[[Fleet], Fleet] | None = None,
) -> FleetScorer:
    """Return the scorer of the fleet in a folder, or of a part of it.

    Raises:
        FleetError: The folder has another fleet by now.
    """
    fleet = Fleet.load(folder)
    if fleet.digest != digest:
        raise FleetError(
            f"the fleet in {folder} on {socket.gethostname()} has the digest {fleet.digest[:12]}, pinned was "
            f"{digest[:12]}: its files were changed since; score again, in a new session"
        )
    if (cores := task_cores()) is not None:
        limit_numeric_libraries(cores)
    if part is not None:
        fleet = part(fleet)
    return FleetScorer(fleet, Layout.of(fleet, layout, outputs, is_part=part is not None))


# Spark reuses Python workers with their imported modules, so a fleet is loaded once by each.
cached_scorer = lru_cache(maxsize=2)(load_scorer)
