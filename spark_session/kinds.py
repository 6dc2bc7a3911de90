"""The choice of the capabilities that belong to a session: classic Spark or Spark Connect."""

from pyspark.sql import SparkSession

from mirrorspark.clear_error import ClearError
from mirrorspark.spark_session.classic import ClassicSession
from mirrorspark.spark_session.connect import ConnectSession
from mirrorspark.spark_session.session import Session


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


def session_of(spark: SparkSession) -> Session:
    """Return the capabilities of a session, without a call to Spark.

    Raises:
        StoppedSessionError: The session was stopped.
    """
    require_running(spark)
    return ClassicSession(spark) if hasattr(spark, "sparkContext") else ConnectSession()
