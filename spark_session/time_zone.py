"""The time zone of the JVM that runs a session's tasks, which is not the session's."""

from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.spark_session.errors import lost_server


def task_zone(spark: SparkSession) -> str:
    """Return the name of the time zone of the JVM that runs the tasks, by one small job."""
    zone = F.reflect(F.lit("java.time.ZoneId"), F.lit("systemDefault"))
    try:
        # A range is computed by a task; a table of values would be computed in the driver.
        rows = spark.range(0, 1, 1, 1).select(zone.alias("zone")).collect()
    except PySparkException as error:
        if lost_server(str(error)) is not None:
            raise
        return "UTC"  # shared compute forbids calls of Java, and leaves its JVMs in UTC
    return str(rows[0].zone)
