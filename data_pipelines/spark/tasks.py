"""Spark tasks of our own: their number, their shares of the rows, their way to executors, and the files they write.

Tasks write below a staging folder and report to the driver, which publishes their files.
"""

import builtins
import json
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeAlias

import pyarrow as pa
from pyspark.sql import DataFrame, Observation, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows
from pyspark.sql.types import StructType

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.reading import parquet_rows
from mirrorspark.data_pipelines.spark.schema import with_plain_names
from mirrorspark.data_pipelines.spark.task_bar import task_bar
from mirrorspark.spark_session import SPARK_ERRORS, task_message
from mirrorspark.storage.publish import WriteJob, WrittenFile

BatchFunction: TypeAlias = Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]
"""The body of a task: a top-level function, or a frozen dataclass that is called, so that it pickles by reference."""

_OF_A_FILE = {field.name: pa.int64() if field.type is int else pa.string() for field in fields(WrittenFile)}
_WRITTEN_SCHEMA = pa.schema(_OF_A_FILE | {"refused": pa.string(), "report": pa.string()})
_WRITTEN_DDL = ", ".join(
    f"{field.name} {'long' if pa.types.is_integer(field.type) else 'string'}" for field in _WRITTEN_SCHEMA
)

# A call that is part of another one shows no bar of its own.
_HAS_BAR = ContextVar("_HAS_BAR", default=False)


@contextmanager
def progress_bar(spark: SparkSession, name: str) -> Iterator[None]:
    """Show a bar of the session's tasks while inside, unless nobody would see it or a bar is already shown.

    Args:
        spark: The session.
        name: A verb for the work, such as ``score``.
    """
    is_watched = sys.stderr.isatty() or hasattr(builtins, "get_ipython")
    if not is_watched or _HAS_BAR.get():
        yield
        return
    token = _HAS_BAR.set(True)
    try:
        with task_bar(spark, name):
            yield
    finally:
        _HAS_BAR.reset(token)


def numbered_partitions(spark: SparkSession, count: int) -> DataFrame:
    """Return the numbers from 0 to ``count`` (not included), each in a partition of its own: a task for each."""
    # At least one partition, which is empty where there are no numbers.
    return spark.range(0, count, 1, max(1, count))


def numbers_of(batches: Iterable[pa.RecordBatch]) -> Iterator[int]:
    """Yield, in the task, the numbers of :func:`numbered_partitions` that it is handed."""
    for batch in batches:
        yield from batch.column(0).to_pylist()


@dataclass(frozen=True)
class Shares:
    """Rows of Parquet files as they are dealt to tasks, which read them without Spark: a plain value that pickles.

    Attributes:
        groups: The row groups of each task; there is a task even where there is none.
    """

    source: parquet_rows.ParquetRows
    groups: tuple[tuple[parquet_rows.RowGroups, ...], ...]

    @classmethod
    def of(cls, source: parquet_rows.ParquetRows, groups_per_task: Sequence[int]) -> "Shares":
        """Deal the row groups, in their order; ``groups_per_task`` has the number for each task."""
        # Files without a row have no row groups; one task without any still gives the columns of its result.
        return cls(source, source.shares(groups_per_task) or ((),))

    def partitions(self, spark: SparkSession) -> DataFrame:
        """Return the numbers of the shares, a partition for each."""
        return numbered_partitions(spark, len(self.groups))

    def read(self, batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, Iterator[pa.RecordBatch]]]:
        """Yield, in the task, number and rows of each share that ``batches`` number."""
        for number in numbers_of(batches):
            yield number, self.source.batches(self.groups[number], 1)


def portable(task: Callable[[Iterable[Any]], Iterator[Any]]) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """Return ``task`` in a form that an executor can unpickle even where our packages are missing, to say so.

    A task pickles as a reference to its module. Where Spark fails to import that, all that the user sees is a pickle
    error; the function below travels as code and imports for itself.
    """
    payload = pickle.dumps(task)

    def run(batches: Iterable[Any]) -> Iterator[Any]:
        import pickle
        import sys

        try:
            unpacked = pickle.loads(payload)  # noqa: S301 - the driver of this very job wrote it
        except ImportError as error:
            raise ModuleNotFoundError(
                f"{sys.executable} on this executor cannot import '{error.name}'; install mirrorspark in the Python of "
                f"every executor (spark.pyspark.python, or an environment sent with --archives)",
                name=error.name,
            ) from error
        return unpacked(batches)

    return run


def map_batches(table: DataFrame, task: BatchFunction, schema: StructType | str) -> DataFrame:
    """Return the result of ``task`` for the rows of ``table``, whose columns may have any name.

    Args:
        table: The rows.
        task: The body of a task.
        schema: Schema of the batches that the task yields.
    """
    names = tuple(table.columns)
    return with_plain_names(table).mapInArrow(portable(NamedTask(names, task)), schema)


@dataclass(frozen=True)
class NamedTask:
    """The body of a task whose batches have lost the names of their columns.

    Attributes:
        names: Names of the columns.
        task: The body, which gets the batches with these names.
    """

    names: tuple[str, ...]
    task: BatchFunction

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the task's batches."""
        return self.task(batch.rename_columns(self.names) for batch in batches)


class WriteError(ClearError, OSError):
    """A failed write of which nothing is visible; the message is that of the failed task."""


@dataclass(frozen=True)
class WriteResult:
    """The result of a write.

    Attributes:
        files: Paths of the new files, relative to the target, in order.
        rows: The number of rows in them.
        bytes: Their total size on the store.
        reports: The tasks' own reports, in no order.
    """

    files: tuple[str, ...] = ()
    rows: int = 0
    bytes: int = 0
    reports: tuple[Mapping[str, Any], ...] = ()


def outcome(
    job: WriteJob,
    write: Callable[[], list[WrittenFile]],
    *,
    refusals: tuple[type[Exception], ...],
    report: Callable[[], Mapping[str, Any]] | None = None,
) -> pa.RecordBatch:
    """Write in a task and return its report to the driver; if another task has refused rows, report only that.

    Args:
        job: The write that the files belong to.
        write: Writes the task's files.
        refusals: Errors caused by the rows. They are reported, not raised: Spark would try the same rows again, and
            hide the message under two stack traces.
        report: Returns the task's own report, as JSON values; called after the write.
    """
    if (why := job.given_up) is not None:
        # Reported again: the task that refused them may be retried or lost.
        return pa.RecordBatch.from_pylist([{"refused": why}], _WRITTEN_SCHEMA)
    try:
        rows: list[dict[str, Any]] = [asdict(file) for file in write()]
    except refusals as error:
        # This saves the work of the remaining tasks, which may be thousands; if it fails, they just run.
        with suppress(OSError):
            job.give_up(str(error))
        rows = [{"refused": str(error)}]
    if report is not None:
        rows.append({"report": json.dumps(report())})
    return pa.RecordBatch.from_pylist(rows, _WRITTEN_SCHEMA)


def write_files(
    df: DataFrame,
    job: WriteJob,
    writer: Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]],
    expected_rows: Callable[[], int],
    *,
    refusal: type[Exception],
    seal: Callable[[Sequence[WrittenFile], Sequence[Mapping[str, Any]]], Sequence[WrittenFile]] | None = None,
) -> WriteResult:
    """Run the tasks and publish their files, unless the number of rows differs from the table's.

    Args:
        df: The table with the partitions.
        job: The write that the files belong to.
        writer: The body of a task; yields an :func:`outcome`.
        expected_rows: Returns the number of rows of the table; called after the tasks.
        refusal: The error to raise with a task's reason for refusing rows.
        seal: Called with the files and the tasks' own reports before anything is published; returns further files,
            which appear last, or raises an error, and nothing appears.

    Raises:
        refusal: A task refuses rows. Nothing is visible, as in the next case.
        WriteError: A task failed, or the number of rows differs.
        OSError: The files are complete but cannot be published.
    """
    with ExitStack() as undo:
        undo.callback(job.abort)
        reported = _task_rows(df, job, writer)
        refused = [row["refused"] for row in reported if row["refused"] is not None]
        if refused:
            raise refusal(f"{job.target} cannot be written: {min(refused)}")
        found = [WrittenFile(**{name: row[name] for name in _OF_A_FILE}) for row in reported if row["path"] is not None]
        files = sorted(found, key=lambda file: file.path)
        reports = tuple(json.loads(row["report"]) for row in reported if row["report"] is not None)
        last = [] if seal is None else seal(files, reports)
        rows, expected = sum(file.rows for file in files), expected_rows()
        if rows != expected:
            raise WriteError(
                f"{job.target} cannot be written: the table had {expected} rows and {rows} were written; write it "
                f"again, from a table that gives the same rows each time"
            )
        job.publish([*files, *last], last=[file.path for file in last])
        undo.pop_all()
    return WriteResult(tuple(file.path for file in files), rows, sum(file.bytes for file in files), reports)


def counted(df: DataFrame) -> tuple[DataFrame, Callable[[], int]]:
    """Return a table that counts its rows as tasks read them, and a function that returns the number afterwards.

    Reading the table again would take as long, and might give other rows.
    """
    seen = Observation()
    return df.observe(seen, F.count(F.lit(1)).alias("rows")), lambda: int(seen.get["rows"])


def _task_rows(
    df: DataFrame, job: WriteJob, writer: Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]
) -> list[dict[str, Any]]:
    try:
        return [row.asDict() for row in df.mapInArrow(writer, _WRITTEN_DDL).collect()]
    except SPARK_ERRORS as error:
        raise WriteError(f"{job.target} cannot be written: {task_message(error)}") from error
