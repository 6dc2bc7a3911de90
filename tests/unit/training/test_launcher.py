"""T6: what Spark's message of a failed barrier job is read as, and which sessions can launch one."""

import pickle
from typing import Any

import pytest

from training.failure_policy import RankError
from training.launcher import BarrierJobError, SparkConnectError, SparkLauncher, read_failure, require_classic

SPARK = "An error occurred while calling z:org.apache.spark.api.python.PythonRDD.collectAndServe.\n"
TRACE = "Traceback (most recent call last):\n  File worker.py, line 53\n"


@pytest.mark.parametrize(
    ("message", "cause", "type_", "expected"),
    [
        (
            f"{SPARK}: org.apache.spark.SparkException: Job 3 cancelled part of cancelled job group 4\n\tat scala",
            "cancelled",
            "Cancelled",
            "Job 3 cancelled part of cancelled job group 4",
        ),
        (
            f"{SPARK}: Job aborted. Most recent failure:\nExecutorLostFailure (executor 1 exited): SIGKILL\n\tat scala",
            "spark",
            "BarrierJobError",
            "ExecutorLostFailure (executor 1 exited): SIGKILL",
        ),
        (
            f"{SPARK}: Job aborted.\norg.apache.spark.SparkException: Python worker exited unexpectedly (crashed)\n",
            "spark",
            "BarrierJobError",
            "org.apache.spark.SparkException: Python worker exited unexpectedly (crashed)",
        ),
        (
            f"{SPARK}{TRACE}ModuleNotFoundError: No module named 'training'\n\tat scala",
            "spark",
            "BarrierJobError",
            "ModuleNotFoundError: No module named 'training'",
        ),
        ("Job aborted\nsecond line\nthird line", "spark", "BarrierJobError", "Job aborted second line"),
    ],
    ids=["cancelled", "executor lost", "worker crashed", "package missing", "other"],
)
def test_sparks_message_is_read_for_what_tells_most(message: str, cause: Any, type_: str, expected: str) -> None:
    assert read_failure(message, now=7.0) == RankError(cause, None, type_, expected, 7.0)


def test_the_error_of_a_job_survives_pickle() -> None:
    error = BarrierJobError(RankError("spark", None, "BarrierJobError", "lost", 7.0))
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (again.error, str(again)) == (error.error, "lost")


class ConnectSession:
    """A Spark Connect session refuses the attribute as this one does: it is not there."""


def test_a_spark_connect_session_is_refused_with_the_way_out() -> None:
    with pytest.raises(SparkConnectError, match=r"Spark Connect session.*\.master\(\.\.\.\)") as raised:
        SparkLauncher(ConnectSession())  # type: ignore[arg-type]
    assert isinstance(raised.value, ValueError)


class ClassicSession:
    """A session with a context, of which nothing is asked."""

    sparkContext = None  # noqa: N815 - PySpark's name


def test_a_session_of_a_cluster_is_taken_and_cancelling_nothing_does_nothing() -> None:
    require_classic(ClassicSession())  # type: ignore[arg-type]
    SparkLauncher(ClassicSession()).cancel()  # type: ignore[arg-type]
