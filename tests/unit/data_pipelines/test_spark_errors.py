"""What is left of a failed Spark job's pages: the line that says what is wrong."""

import pytest

from mirrorspark.data_pipelines.spark.errors import first_line, task_message

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
        ("", "RuntimeError"),
    ],
    ids=["Python", "JVM", "JVM without a cause", "something else", "nothing"],
)
def test_a_failed_task_says_what_is_wrong_in_one_line(text: str, message: str) -> None:
    assert task_message(RuntimeError(text)) == message


def test_the_first_line_is_without_the_plan() -> None:
    assert first_line(ValueError("\n[X] wrong\n+- Project")) == "[X] wrong"
