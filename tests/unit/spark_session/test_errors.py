"""The pages of a failed Spark job are cut down to the line with the cause."""

import pytest
from pyspark.errors import PySparkException

from mirrorspark.spark_session.errors import SparkStartError, first_line, task_message
from mirrorspark.spark_session.stopped import StoppedSessionError, on_running_session

PYTHON_FAILED = """An exception was thrown from the Python worker. Please see the stack trace below.
Traceback (most recent call last):
  File "worker.py", line 1, in main
    process()
  File "transform.py", line 2, in encode
    raise ColumnError("column 'x' is missing")
mirrorspark.data_pipelines.features.raw_columns.ColumnError: column 'x' is missing
"""

JVM_FAILED = """An error occurred while calling o52.collectToPython.
: org.apache.spark.SparkException: [FAILED_READ_FILE.NO_HINT] Encountered error while reading file file:///bad.csv.  \
SQLSTATE: KD001
\tat org.apache.spark.sql.errors.QueryExecutionErrors$.cannotReadFilesError(QueryExecutionErrors.scala:920)
Caused by: org.apache.spark.SparkException: [MALFORMED_RECORD_IN_PARSING] Malformed records: [AA,null].
Parse Mode: FAILFAST. To process malformed records as null result, try setting the option 'mode' as 'PERMISSIVE'.
\t... 1 more
Caused by: java.lang.NumberFormatException: For input string: "far"
\t... 24 more
"""

PYTHON_MEMORY = """An exception was thrown from the Python worker:
Traceback (most recent call last):
  File "task.py", line 13, in work
    raise MemoryError
MemoryError
"""

WORKER_KILLED = """An error occurred while calling o48.count.
: org.apache.spark.SparkException: Job aborted due to stage failure: Task 0 in stage 0.0 failed 1 times, most recent \
failure: Lost task 0.0 in stage 0.0 (TID 0) (localhost executor driver): org.apache.spark.SparkException: Python \
worker exited unexpectedly (crashed). Consider setting 'spark.python.worker.faulthandler.enabled'.
\tat org.apache.spark.api.python.BasePythonRunner$ReaderIterator.handleEndOfDataSection(PythonRunner.scala:571)
Caused by: java.io.EOFException
\tat java.base/java.io.DataInputStream.readInt(DataInputStream.java:398)
"""

EXECUTOR_KILLED = """An error occurred while calling o61.count.
: org.apache.spark.SparkException: Job aborted due to stage failure: Task 3 in stage 1.0 failed 4 times, most recent \
failure: Lost task 3.3 in stage 1.0 (TID 9) (10.0.0.7 executor 2): ExecutorLostFailure (executor 2 exited caused by \
one of the running tasks) Reason: Container killed by YARN for exceeding physical memory limits. 5.5 GB of 5.5 GB used.
Driver stacktrace:
\tat org.apache.spark.scheduler.DAGScheduler.$anonfun$abortStage$2(DAGScheduler.scala:2894)
"""

JVM_MEMORY = """An error occurred while calling o144.collectToPython.
: java.lang.OutOfMemoryError: Java heap space
\tat org.apache.spark.unsafe.types.UTF8String.repeat(UTF8String.java:1195)
"""

WITHOUT_CAUSE = """An error occurred while calling o1.save.
: java.io.IOException: No space left on device
\tat java.base/java.io.FileOutputStream.writeBytes(Native Method)
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PYTHON_FAILED, "column 'x' is missing"),
        (
            JVM_FAILED,
            '[FAILED_READ_FILE.NO_HINT] Encountered error while reading file file:///bad.csv (For input string: "far")',
        ),
        (WITHOUT_CAUSE, "No space left on device"),
        ("[TABLE_NOT_FOUND] no table\nplan", "[TABLE_NOT_FOUND] no table"),
        (
            "[USER_RAISED_EXCEPTION] column 'age' has 'abc'; correct it SQLSTATE: P0001\nplan",
            "column 'age' has 'abc'; correct it",
        ),
        ("", "RuntimeError"),
    ],
    ids=["Python", "JVM", "JVM without a cause", "something else", "raise_error", "nothing"],
)
def test_a_failed_task_says_what_is_wrong_in_one_line(text: str, message: str) -> None:
    assert task_message(RuntimeError(text)) == message


@pytest.mark.parametrize(
    ("text", "begin", "remedy"),
    [
        (PYTHON_MEMORY, "MemoryError: the memory of a Python worker has run out; ", "spark.executor.memoryOverhead"),
        (WORKER_KILLED, "Python worker exited unexpectedly: it was killed, most often because memory has run out", "o"),
        (
            EXECUTOR_KILLED,
            "Container killed by YARN for exceeding physical memory limits. 5.5 GB of 5.5 GB used: ",
            "o",
        ),
        (
            JVM_MEMORY,
            "Java heap space: the memory of a JVM has run out; set spark.executor.memory higher",
            "(local[N])",
        ),
    ],
    ids=["Python", "worker", "executor", "JVM"],
)
def test_memory_that_has_run_out_is_named_with_its_remedy(text: str, begin: str, remedy: str) -> None:
    message = task_message(RuntimeError(text))
    assert message.startswith(begin)
    assert remedy in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            "[INVALID_HANDLE.SESSION_CLOSED] The handle 1-2 is invalid. Session was closed. SQLSTATE: HY000",
            "[INVALID_HANDLE.SESSION_CLOSED] The handle 1-2 is invalid. Session was closed",
        ),
        ("[NO_ACTIVE_SESSION] No active Spark session found.", "[NO_ACTIVE_SESSION] No active Spark session found"),
        ("Cannot invoke RPC on closed channel!", "Cannot invoke RPC on closed channel"),
        ("<_InactiveRpcError\n\tstatus = StatusCode.UNAVAILABLE\n\tdetails = x>", "status = StatusCode.UNAVAILABLE"),
    ],
)
def test_a_session_that_is_lost_is_named_with_the_remedy(text: str, cause: str) -> None:
    """H15: by the message of a task, and in place of the error that leaves a public function."""
    line = f"the session of Spark Connect is lost ({cause}); create another one ("
    assert task_message(PySparkException(text)).startswith(line)

    @on_running_session
    def failing(error: Exception) -> None:
        raise error

    for error in (PySparkException(text), ValueError(text)):
        with pytest.raises(StoppedSessionError, match="read the tables again with it") as raised:
            failing(error)
        assert str(raised.value).startswith(line)
    for other in (PySparkException(f"{PYTHON_FAILED}{text}"), ValueError("no such column"), SparkStartError(text)):
        with pytest.raises(type(other)):
            failing(other)


def test_an_error_that_ctrl_c_has_led_to_is_an_interrupt() -> None:
    error = RuntimeError("An error occurred while calling o52.save")
    error.__context__ = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        task_message(error)


def test_the_first_line_is_without_the_plan() -> None:
    assert first_line(ValueError("\n[X] wrong\n+- Project")) == "[X] wrong"
