"""The choice of the capabilities that belong to a session: classic Spark or Spark Connect."""

from pyspark.sql import SparkSession

from mirrorspark.spark_session.classic import ClassicSession
from mirrorspark.spark_session.connect import ConnectSession
from mirrorspark.spark_session.session import Session
from mirrorspark.spark_session.stopped import require_running


def session_of(spark: SparkSession) -> Session:
    """Return the capabilities of a session.

    Raises:
        StoppedSessionError: The session was stopped.
        SparkStartError: Its tasks run a Python without our packages.
    """
    require_running(spark)
    return ClassicSession(spark) if hasattr(spark, "sparkContext") else ConnectSession(spark)
