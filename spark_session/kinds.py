"""The choice of the capabilities that belong to a session: classic Spark or Spark Connect."""

import threading
from typing import Any

from pyspark.sql import SparkSession

from mirrorspark.spark_session import versions
from mirrorspark.spark_session.connect import ConnectSession
from mirrorspark.spark_session.session import Session
from mirrorspark.spark_session.stopped import require_running

# The knowledge of a server, and the files for it, last as long as the session.
_OVER_CONNECT: dict[str, tuple[Any, ConnectSession]] = {}
_CHOOSING = threading.Lock()


def session_of(spark: SparkSession) -> Session:
    """Return the capabilities of a session.

    Raises:
        StoppedSessionError: The session was stopped.
        SparkStartError: Its tasks run a Python without our packages.
    """
    require_running(spark)
    if hasattr(spark, "sparkContext"):
        # A client of Spark Connect cannot import it.
        from mirrorspark.spark_session.classic import ClassicSession

        return ClassicSession(spark)
    versions.require_connect()
    client: Any = spark
    with _CHOOSING:
        if client.session_id not in _OVER_CONNECT:
            for name in [name for name, (other, _) in _OVER_CONNECT.items() if other.is_stopped]:
                del _OVER_CONNECT[name]
            _OVER_CONNECT[client.session_id] = client, ConnectSession(spark)
        return _OVER_CONNECT[client.session_id][1]
