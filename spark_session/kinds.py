"""The kinds of Spark sessions that we know, and how to tell them apart."""

from pyspark.sql import SparkSession

from mirrorspark.spark_session.classic import ClassicSession
from mirrorspark.spark_session.connect import ConnectSession
from mirrorspark.spark_session.session import Session


def session_of(spark: SparkSession) -> Session:
    """Return the capabilities of a session; asks nothing of Spark."""
    return ClassicSession(spark) if hasattr(spark, "sparkContext") else ConnectSession()
