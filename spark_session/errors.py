"""Errors of Spark, and their messages: one line of the task's own error, without the JVM's stack traces and secrets."""

import re

from pyspark.errors import PySparkException

from mirrorspark.clear_error import ClearError
from mirrorspark.storage import terminal_text, without_credentials

try:
    from py4j.protocol import Py4JError, Py4JJavaError  # type: ignore[import-untyped]
except ImportError:  # a client of Spark Connect has no JVM
    Py4JError = Py4JJavaError = PySparkException


class SparkStartError(ClearError, RuntimeError):
    """Spark that does not start, or not as tasks need it; the message has the reason and the remedy."""


SPARK_ERRORS = (PySparkException, Py4JJavaError)
"""Errors of a query or a job. An error of Java for which PySpark has no class comes as it is."""
SESSION_ERRORS = (PySparkException, Py4JError)
"""The same, and those of a session that does not start or does not answer any more."""

_JAVA_ERROR = re.compile(r"^(?:Caused by)?: (?:[\w$]+\.)*[\w$]+: (.+)$", re.MULTILINE)
# Before the message of raise_error, which ours are whole without.
_RAISED = "[USER_RAISED_EXCEPTION] "
_SQL_STATE = re.compile(r"\s*SQLSTATE: \w+$")
_PYTHON_ERROR = re.compile(r"^(?:[\w]+\.)*(\w*(?:Error|Exception|Warning|Interrupt))(?:: (.+))?$", re.MULTILINE)

# A server of Spark Connect that does not answer, or that has ended the session, and a channel that was closed.
_LOST_SERVER = re.compile(
    r"\[INVALID_HANDLE\.SESSION_\w+\].*|.*StatusCode\.UNAVAILABLE.*|.*RETRIES_EXCEEDED.*|\[NO_ACTIVE_SESSION\].*|"
    r"Received incorrect server side session.*|Cannot invoke RPC.* closed.*"
)
# A task may have clients of its own.
_OF_A_TASK = "Traceback (most recent call last)"

_MORE_FOR_WORKERS = "give executors more spark.executor.memoryOverhead, or let fewer tasks run at a time on each"
# Signs in Spark's own messages that memory has run out, and our message for each.
_LACK_OF_MEMORY = (
    (
        re.compile(r"java\.lang\.OutOfMemoryError: (?!unable to create)(.+)"),
        "{}: the memory of a JVM has run out; set spark.executor.memory higher, or spark.driver.memory if the driver "
        "runs the tasks (local[N]) or collects the rows",
    ),
    (
        re.compile(r"ExecutorLostFailure .*?Reason: (.*?(?:exceeding .*?memory|\b137\b|OOM).*)"),
        f"{{}}: an executor was killed, most often because its memory has run out; {_MORE_FOR_WORKERS}",
    ),
    (
        re.compile(r"(Python worker exited unexpectedly)"),
        f"{{}}: it was killed, most often because memory has run out, or has crashed; {_MORE_FOR_WORKERS}; "
        "spark.python.worker.faulthandler.enabled=true shows where a crash was",
    ),
)


def task_message(error: Exception) -> str:
    """Return the message of the Python exception that a failed task raised.

    If the JVM itself failed, this is its message and that of the cause, or else the first line of ``error``. If memory
    has run out, the message includes the remedy.

    Raises:
        KeyboardInterrupt: Ctrl-C has led to the error.
    """
    if terminal_text.is_interrupt(error):
        raise KeyboardInterrupt from error
    text = without_credentials(str(error))
    raised = [match.groups() for match in _PYTHON_ERROR.finditer(text) if not match[1].startswith("Py4J")]
    if raised:
        kind, message = raised[-1]
        said = (message or kind).strip()
        if kind.endswith("MemoryError"):
            return f"{said}: the memory of a Python worker has run out; {_MORE_FOR_WORKERS}"
        return said
    if (lacking := lack_of_memory(text)) is not None:
        return lacking
    if (lost := lost_session(text)) is not None:
        return lost
    causes = [_SQL_STATE.sub("", message).strip() for message in _JAVA_ERROR.findall(text)]
    if causes:
        return causes[0] if causes[0] == causes[-1] else f"{causes[0].rstrip('.')} ({causes[-1]})"
    return _SQL_STATE.sub("", first_line(error)).removeprefix(_RAISED)


def lack_of_memory(text: str) -> str | None:
    """Return the line on memory that ran out, with the remedy, if Spark's message reports that; else None."""
    for sign, words in _LACK_OF_MEMORY:
        if found := sign.search(text):
            return words.format(found[1].strip().rstrip("."))
    return None


def lost_server(text: str) -> str | None:
    """Return the line in Spark's message by which a server of Spark Connect, or its session, is lost; else None."""
    found = _LOST_SERVER.search(text)
    return None if found is None else found.group(0).strip()


def lost_session(text: str) -> str | None:
    """Return the line on a lost session of Spark Connect, with the remedy, if Spark's message reports that; else None.

    The session object does not know it, so that ``getOrCreate`` would return it again.
    """
    gone = None if _OF_A_TASK in text else lost_server(without_credentials(text))
    if gone is None:
        return None
    return (
        f"the session of Spark Connect is lost ({_SQL_STATE.sub('', gone).rstrip('.! ')}); create another one "
        f"(SparkSession.builder.remote(...).create()), and read the tables again with it"
    )


def first_line(error: Exception) -> str:
    """Return the first line of Spark's message, without its plan and stack trace."""
    lines = without_credentials(str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__
