"""Tasks write files below a staging folder and tell the driver what became of them; the driver publishes them."""

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

from data_pipelines.publish import WriteJob, WrittenFile
from data_pipelines.spark_errors import task_message

_OF_A_FILE = {field.name: pa.int64() if field.type is int else pa.string() for field in fields(WrittenFile)}
_WRITTEN_SCHEMA = pa.schema(_OF_A_FILE | {"refused": pa.string(), "report": pa.string()})
_WRITTEN_DDL = ", ".join(
    f"{field.name} {'long' if pa.types.is_integer(field.type) else 'string'}" for field in _WRITTEN_SCHEMA
)


class WriteError(OSError):
    """A write failed, and nothing of it is visible; the message is the failed task's."""


@dataclass(frozen=True)
class WriteResult:
    """What a write has made.

    Attributes:
        files: Paths of the new files, relative to the target, in their order.
        rows: Rows in them.
        bytes: Their sizes on the store together.
        reports: What the tasks say of themselves, in no order.
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
    """Write in a task, and return what the driver is told of it: where another task has refused rows, just that.

    Args:
        job: What the files belong to.
        write: Writes the task's files.
        refusals: Errors that are the rows' fault. They are told, not raised: Spark would try the same rows again, and
            bury the message under two stack traces.
        report: What the task says of itself, as JSON values; asked after it has written.
    """
    if (why := job.given_up) is not None:
        # Told again: the task that refused them may be tried anew, or lost.
        return pa.RecordBatch.from_pylist([{"refused": why}], _WRITTEN_SCHEMA)
    try:
        rows: list[dict[str, Any]] = [asdict(file) for file in write()]
    except refusals as error:
        # Thousands of tasks may be left, which would all be for nothing; where they cannot be told, they just run.
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
    """Run the tasks, and publish their files, unless they hold other rows than there were.

    Args:
        df: Has the partitions.
        job: Where the files go.
        writer: The body of a task; yields an :func:`outcome`.
        expected_rows: Returns how many rows there are; asked after the tasks.
        refusal: Is raised with what a task told of rows that it refuses.

    Raises:
        refusal: A task refuses rows. Nothing is visible, nor in the next case.
        WriteError: A task failed, or the files hold other rows.
        OSError: The files were written whole and cannot be published.
    """
    with ExitStack() as undo:
        undo.callback(job.abort)
        told = _told(df, job, writer)
        refused = [row["refused"] for row in told if row["refused"] is not None]
        if refused:
            raise refusal(f"{job.target} cannot be written: {refused[0]}")
        found = [WrittenFile(**{name: row[name] for name in _OF_A_FILE}) for row in told if row["path"] is not None]
        files = sorted(found, key=lambda file: file.path)
        rows, expected = sum(file.rows for file in files), expected_rows()
        if rows != expected:
            raise WriteError(
                f"{job.target} cannot be written: the table had {expected} rows and {rows} were written; write it "
                f"again, from a table that gives the same rows each time"
            )
        job.publish(files)
    reports = tuple(json.loads(row["report"]) for row in told if row["report"] is not None)
    return WriteResult(tuple(file.path for file in files), rows, sum(file.bytes for file in files), reports)


def counted(df: DataFrame) -> tuple[DataFrame, Callable[[], int]]:
    """Return a table that counts its rows as the tasks read them, and what returns their number after the tasks.

    To read them once more takes as long, and there may be others by then.
    """
    seen = Observation()
    return df.observe(seen, F.count(F.lit(1)).alias("rows")), lambda: int(seen.get["rows"])


def _told(
    df: DataFrame, job: WriteJob, writer: Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]
) -> list[dict[str, Any]]:
    try:
        return [row.asDict() for row in df.mapInArrow(writer, _WRITTEN_DDL).collect()]
    except (Py4JJavaError, PySparkException) as error:
        raise WriteError(f"{job.target} cannot be written: {task_message(error)}") from error
