"""A Spark Connect server in the JVM of a classic session, so that no second one has to start."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@contextmanager
def connect_server(spark: "SparkSession") -> Iterator[str]:
    """Serve the cluster of a session over Spark Connect on a free port of this machine, and yield the URL."""
    java: Any = spark._jvm
    # Scala's one object of the service.
    service = getattr(getattr(java.org.apache.spark.sql.connect.service, "SparkConnectService$"), "MODULE$")
    context = spark.sparkContext._jsc.sc()
    for name, value in (("address", "127.0.0.1"), ("port", "0")):
        context.conf().set(f"spark.connect.grpc.binding.{name}", value)
    service.start(context)
    try:
        yield f"sc://127.0.0.1:{service.server().getPort()}"
    finally:
        service.stop(java.scala.Option.empty(), java.scala.Option.empty())
