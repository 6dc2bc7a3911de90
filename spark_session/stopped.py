"""The refusal of a stopped or lost session. Imports no PySpark: some functions with this check need none."""

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
    """A session that was stopped or lost, or a table of one."""


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
    """Return a function that refuses a stopped session, or a table of one, and names one that is lost meanwhile.

    PySpark's own errors for a stopped one are an AssertionError without a message, or pages of Java.
    """
    named = naming_lost_session(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        for value in (*args, *kwargs.values()):
            _check(value)
        return named(*args, **kwargs)

    return checked


def naming_lost_session(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function whose error for a session of Spark Connect that is lost has the remedy, in one line.

    PySpark's own are those of gRPC. Ctrl-C ends the function without py4j's stack.
    """

    @functools.wraps(function)
    def named(*args: P.args, **kwargs: P.kwargs) -> T:
        handled = sys.exc_info()[1]
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            if not terminal_text.is_interrupt(error, handled):
                if (lost := _lost_session(error)) is not None:
                    raise StoppedSessionError(lost) from error
                raise
        _interrupt_queries()
        raise KeyboardInterrupt

    return named


def _lost_session(error: BaseException) -> str | None:
    """Return the line on a session of Spark Connect that is lost, if an error of Spark or gRPC reports that."""
    errors = sys.modules.get("pyspark.errors")
    # gRPC's own error of a closed channel is a ValueError. Our errors have the line already.
    if errors is None or isinstance(error, ClearError) or not isinstance(error, errors.PySparkException | ValueError):
        return None
    from mirrorspark.spark_session.errors import lost_session

    return lost_session(str(error))


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
