"""A Spark standalone cluster on this machine: a master, and workers of one core each."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyspark

from benchmarks.daemon import Daemon

_SPARK_CLASS = Path(pyspark.__file__).parent / "bin" / "spark-class"
_MASTER = "org.apache.spark.deploy.master.Master"
_WORKER = "org.apache.spark.deploy.worker.Worker"
_START_SECONDS = 60.0
# Executors inherit it from their worker.
_ENVIRONMENT = {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_NO_DAEMONIZE": "1"}


@contextmanager
def standalone_cluster(folder: Path, workers: int) -> Iterator[str]:
    """Yield the URL of a master that ``workers`` workers have joined; all of them listen on loopback only.

    Args:
        folder: Takes the logs, and a folder ``work-N`` per worker with what its executors say.
        workers: Each has one core, and an executor of 1 GiB.

    Raises:
        DaemonError: A daemon did not start; the message tells its last words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    here = ("--host", "127.0.0.1", "--webui-port", "0")
    with ExitStack() as daemons:

        def start(name: str, *command: str) -> Daemon:
            daemon = Daemon.start([str(_SPARK_CLASS), *command], folder / f"{name}.log", _ENVIRONMENT)
            daemons.callback(daemon.end)
            return daemon

        master = start("master", _MASTER, *here, "--port", "0")
        url = master.wait_for(r"Starting Spark master at (spark://[\w.]+:\d+)", _START_SECONDS)[1]
        for number in range(1, workers + 1):
            size = ("--cores", "1", "--memory", "1g")
            start(f"worker-{number}", _WORKER, *here, *size, "--work-dir", str(folder / f"work-{number}"), url)
        master.wait_for("Registering worker", _START_SECONDS, times=workers)
        yield url
