"""Servers of Spark Connect: in the JVM of a classic session, so that no second one has to start, or of their own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyspark

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SPARK_HOME = Path(pyspark.__file__).parent

_SERVER = "org.apache.spark.sql.connect.service.SparkConnectServer"


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


@contextmanager
def own_connect_server(master: str, folder: Path) -> Iterator[str]:
    """Start a Spark Connect server on a cluster of its own, in a folder, and yield its URL."""
    port = free_port()
    # Executors in the server's process have its own environment.
    modules = os.pathsep.join(sys.path)
    settings = {"spark.executorEnv.PYTHONPATH": modules, "spark.sql.shuffle.partitions": 2}
    environment = os.environ | {
        "SPARK_HOME": str(SPARK_HOME),
        "PYSPARK_PYTHON": sys.executable,
        "PYTHONPATH": modules,
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    with running_server(server_command(master, port, settings), port, folder, environment) as url:
        yield url


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def server_command(master: str, port: int, settings: Mapping[str, object]) -> list[str]:
    """Return the command of a server that listens on a port of this machine."""
    usual = {
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.connect.grpc.binding.port": port,
        "spark.driver.memory": "1g",
        "spark.log.level": "ERROR",
        "spark.sql.session.timeZone": "UTC",
        "spark.ui.enabled": "false",
    }
    confs = [word for name, value in {**usual, **settings}.items() for word in ("--conf", f"{name}={value}")]
    return [str(SPARK_HOME / "bin" / "spark-submit"), "--master", master, "--class", _SERVER, *confs, "spark-internal"]


@contextmanager
def running_server(
    command: Sequence[str], port: int, folder: Path, environment: Mapping[str, str], *, seconds: float = 120
) -> Iterator[str]:
    """Run a server in a folder, with a log there, and yield its URL once it listens; ``seconds`` limits the wait."""
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + seconds
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert server.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.2)
        yield f"sc://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(60)
