"""The choice of the capabilities that belong to a session: classic Spark or Spark Connect."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from pyspark.sql import DataFrame, SparkSession

from mirrorspark.clear_error import ClearError
from mirrorspark.spark_session.classic import ClassicSession
from mirrorspark.spark_session.connect import ConnectSession
from mirrorspark.spark_session.session import Session
from mirrorspark.storage import terminal_text

P = ParamSpec("P")
T = TypeVar("T")


class StoppedSessionError(ClearError, RuntimeError):
    """A session that was stopped, or a table of one."""


def require_running(spark: SparkSession | None) -> None:
    """Check that a session was not stopped, without a call to Spark.

    Raises:
        StoppedSessionError: It was.
    """
    context = getattr(spark, "sparkContext", None)
    if spark is None or (context is not None and getattr(context, "_jsc", context) is None):
        raise StoppedSessionError(
            "the Spark session was stopped; start another one (SparkSession.builder.getOrCreate()), and read "
            "the tables again with it: those of a stopped session are lost"
        )


def on_running_session(function: Callable[P, T]) -> Callable[P, T]:
    """Return a function that refuses a stopped session, or a table of one, and that Ctrl-C ends without py4j's stack.

    PySpark's own errors for a stopped one are an AssertionError without a message, or pages of Java.
    """

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        for value in (*args, *kwargs.values()):
            if isinstance(value, DataFrame):
                require_running(value.sparkSession)
            elif isinstance(value, SparkSession):
                require_running(value)
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            if not terminal_text.is_interrupt(error):
                raise
        raise KeyboardInterrupt

    return checked


def session_of(spark: SparkSession) -> Session:
    """Return the capabilities of a session, without a call to Spark.

    Raises:
        StoppedSessionError: The session was stopped.
    """
    require_running(spark)
    return ClassicSession(spark) if hasattr(spark, "sparkContext") else ConnectSession()
