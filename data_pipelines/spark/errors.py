"""Messages of failed Spark jobs: the one line of the task's own error, without the JVM's stack traces and secrets."""

import re

from mirrorspark.storage.credentials import without_credentials

_JAVA_ERROR = re.compile(r"^(?:Caused by)?: (?:[\w$]+\.)*[\w$]+: (.+)$", re.MULTILINE)
_SQL_STATE = re.compile(r"\s*SQLSTATE: \w+$")
_PYTHON_ERROR = re.compile(r"^(?:[\w]+\.)*(\w*(?:Error|Exception|Warning|Interrupt)): (.+)$", re.MULTILINE)


def task_message(error: Exception) -> str:
    """Return the message of the Python exception that a failed task raised.

    If the JVM itself failed, it is its message and that of the cause, or else the first line of ``error``.
    """
    text = without_credentials(str(error))
    raised = [match for match in _PYTHON_ERROR.finditer(text) if not match.group(1).startswith("Py4J")]
    if raised:
        return raised[-1].group(2).strip()
    causes = [_SQL_STATE.sub("", message).strip() for message in _JAVA_ERROR.findall(text)]
    if causes:
        return causes[0] if causes[0] == causes[-1] else f"{causes[0].rstrip('.')} ({causes[-1]})"
    return first_line(error)


def first_line(error: Exception) -> str:
    """Return the first line of Spark's message, without its plan and stack trace."""
    lines = without_credentials(str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__
