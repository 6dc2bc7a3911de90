"""T6: what Spark's message of a failed barrier job is read as."""

import pytest

from training.failure_policy import RankError
from training.launcher import read_failure

SPARK = "An error occurred while calling z:org.apache.spark.api.python.PythonRDD.collectAndServe.\n"
TRACE = "Traceback (most recent call last):\n  File worker.py, line 53\n"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            f"{SPARK}{TRACE}training.worker.RankFailedError: rank 1 failed (user): ValueError: no such column\n",
            RankError("user", 1, "ValueError", "no such column", 7.0),
        ),
        (
            f"{SPARK}{TRACE}training.worker.RankFailedError: rank 0 failed (peer): UnavailableError: Socket closed\n",
            RankError("peer", 0, "UnavailableError", "Socket closed", 7.0),
        ),
        (
            f"{SPARK}: org.apache.spark.SparkException: Job 3 cancelled part of cancelled job group 4\n\tat scala",
            RankError("cancelled", None, "Cancelled", "Job 3 cancelled part of cancelled job group 4", 7.0),
        ),
        (
            f"{SPARK}{TRACE}training.worker.RankFailedError: rank 1 was killed by signal 9\n",
            RankError(
                "spark", None, "BarrierJobError", "training.worker.RankFailedError: rank 1 was killed by signal 9", 7.0
            ),
        ),
        (
            "Job aborted\nsecond line\nthird line",
            RankError("spark", None, "BarrierJobError", "Job aborted second line", 7.0),
        ),
    ],
    ids=["user", "peer", "cancelled", "killed", "other"],
)
def test_sparks_message_is_read_for_the_ranks_own_words(message: str, expected: RankError) -> None:
    assert read_failure(message, now=7.0) == expected
