"""The refusal of a stopped session. Imports no PySpark: some functions with this check are also of programs without."""

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from mirrorspark.clear_error import ClearError
from mirrorspark.storage import terminal_text

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

P = ParamSpec("P")
T = TypeVar("T")


class StoppedSessionError(ClearError, RuntimeError):
    """A session that was stopped, or a table of one."""


def require_running(spark: "SparkSession | None") -> None:
    """Check that a session was not stopped, and the Python that its tasks run.

    Raises:
        StoppedSessionError: It was stopped.
        SparkStartError: The tasks run a Python without our packages.
    """
    context = getattr(spark, "sparkContext", None)
    is_stopped_client = getattr(spark, "is_stopped", False) is True  # of Spark Connect
    if spark is None or is_stopped_client or (context is not None and getattr(context, "_jsc", context) is None):
        raise StoppedSessionError(
            "the Spark session was stopped; start another one (SparkSession.builder.getOrCreate()), and read "
            "the tables again with it: those of a stopped session are lost"
        )
    if context is not None:
        from mirrorspark.spark_session.interpreter import require_own_python

        require_own_python(context)


def on_running_session(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that refuses a stopped session, or a table of one, and that Ctrl-C ends without py4j's stack.

    PySpark's own errors for a stopped one are an AssertionError without a message, or pages of Java.
    """

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        for value in (*args, *kwargs.values()):
            _check(value)
        handled = sys.exc_info()[1]
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            if not terminal_text.is_interrupt(error, handled):
                raise
        _interrupt_queries()
        raise KeyboardInterrupt

    return checked


def _interrupt_queries() -> None:
    """End the queries of an active session of Spark Connect, as PySpark's own handler does on a classic one."""
    pyspark = sys.modules.get("pyspark.sql")
    session = pyspark.SparkSession.getActiveSession() if pyspark is not None else None
    if session is not None and hasattr(session, "is_stopped"):
        from mirrorspark.spark_session.connect_jobs import in_time

        in_time(session.interruptAll)


def _check(value: Any) -> None:
    kind = value.__class__
    if hasattr(kind, "sparkSession"):
        require_running(value.sparkSession)
    elif kind.__name__ == "SparkSession":  # Spark Connect has a class of its own
        require_running(value)
