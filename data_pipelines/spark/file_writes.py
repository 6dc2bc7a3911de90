"""Writing of files by Spark tasks: tasks write below a staging folder and report to the driver, which publishes."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa
from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, Observation
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.data_pipelines.spark.errors import task_message
from mirrorspark.storage.publish import WriteJob, WrittenFile

_OF_A_FILE = {field.name: pa.int64() if field.type is int else pa.string() for field in fields(WrittenFile)}
_WRITTEN_SCHEMA = pa.schema(_OF_A_FILE | {"refused": pa.string(), "report": pa.string()})
_WRITTEN_DDL = ", ".join(
    f"{field.name} {'long' if pa.types.is_integer(field.type) else 'string'}" for field in _WRITTEN_SCHEMA
)


class WriteError(OSError):
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
) -> WriteResult:
    """Run the tasks and publish their files, unless the number of rows differs from the table's.

    Args:
        df: The table with the partitions.
        job: The write that the files belong to.
        writer: The body of a task; yields an :func:`outcome`.
        expected_rows: Returns the number of rows of the table; called after the tasks.
        refusal: The error to raise with a task's reason for refusing rows.

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
            raise refusal(f"{job.target} cannot be written: {refused[0]}")
        found = [WrittenFile(**{name: row[name] for name in _OF_A_FILE}) for row in reported if row["path"] is not None]
        files = sorted(found, key=lambda file: file.path)
        rows, expected = sum(file.rows for file in files), expected_rows()
        if rows != expected:
            raise WriteError(
                f"{job.target} cannot be written: the table had {expected} rows and {rows} were written; write it "
                f"again, from a table that gives the same rows each time"
            )
        job.publish(files)
    reports = tuple(json.loads(row["report"]) for row in reported if row["report"] is not None)
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
    except (Py4JJavaError, PySparkException) as error:
        raise WriteError(f"{job.target} cannot be written: {task_message(error)}") from error
