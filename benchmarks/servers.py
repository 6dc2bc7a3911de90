"""Programs that run in the background while something is measured: any daemon, an MLflow server, a Spark cluster."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyspark

_POLL_SECONDS = 0.02
_END_SECONDS = 20.0
_MLFLOW_START_SECONDS = 90.0
_MLFLOW_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
_SPARK_CLASS = Path(pyspark.__file__).parent / "bin" / "spark-class"
_MASTER = "org.apache.spark.deploy.master.Master"
_WORKER = "org.apache.spark.deploy.worker.Worker"
_SPARK_START_SECONDS = 240.0
# Executors inherit it from their worker.
_SPARK_ENVIRONMENT = {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_NO_DAEMONIZE": "1"}


class DaemonError(RuntimeError):
    """The program ended, or did not write the expected text in time; the message has its last words."""


@dataclass(frozen=True)
class Daemon:
    """A program in a process group of its own.

    Attributes:
        process: Leads the group.
        log: Its output.
    """

    process: "subprocess.Popen[bytes]"
    log: Path

    @classmethod
    def start(cls, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> "Daemon":
        """Start ``command`` in the folder of ``log``, with ``environment`` added to this process's own."""
        # MLflow starts uvicorn by its name; it is in the folder of this Python.
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, "PATH": path, **environment},
                cwd=log.parent,
                start_new_session=True,
            )
        return cls(process, log)

    def wait_for(self, pattern: str, within_seconds: float, *, times: int = 1) -> "re.Match[str]":
        """Return the last of ``times`` places of the log that match ``pattern``.

        Raises:
            DaemonError: It ended before, or has not said so in time.
        """
        deadline = time.monotonic() + within_seconds
        while True:
            # In this order: its last output is read after its end.
            has_ended = self.process.poll() is not None
            text = self.log.read_text(encoding="utf-8", errors="replace")
            if len(found := list(re.finditer(pattern, text))) >= times:
                return found[times - 1]
            if has_ended or time.monotonic() > deadline:
                why = "ended" if has_ended else f"has not said '{pattern}' within {within_seconds:g} s"
                last = " / ".join(text.strip().splitlines()[-3:]) or "nothing"
                raise DaemonError(f"{self.log.stem} {why}; its last words: {last}")
            time.sleep(_POLL_SECONDS)

    def kill(self) -> None:
        """SIGKILL to all of the group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        """Ask it to end, and kill what is left of its group."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=_END_SECONDS)
        self.kill()


class TrackingServer:
    """An MLflow server with an SQLite store, on a port of loopback that the system chooses; its context ends it."""

    def __init__(self, folder: Path, start: Callable[..., Daemon] = Daemon.start) -> None:
        """Prepare a folder for its store, its artifacts and its logs.

        Args:
            folder: Created if it does not exist.
            start: Starts a program.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._start = start
        self._daemon: Daemon | None = None
        self._starts = 0
        self._port = 0

    @property
    def uri(self) -> str:
        """Address at which it answers, or will answer again."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> "TrackingServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, and return when it listens.

        Raises:
            DaemonError: It did not start; the message has its last words.
        """
        self._starts += 1
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        self._daemon = self._start(command, self._folder / f"server-{self._starts}.log", _MLFLOW_ENVIRONMENT)
        try:
            found = self._daemon.wait_for(r"running on http://127\.0\.0\.1:(\d+)", _MLFLOW_START_SECONDS)
        except BaseException:
            self.kill()
            raise
        self._port = int(found[1])

    def kill(self) -> None:
        """SIGKILL to the server and all that it started; its store stays."""
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon = None


@contextlib.contextmanager
def standalone_cluster(folder: Path, workers: int) -> Iterator[str]:
    """Yield the URL of a master that ``workers`` workers have joined; all of them listen on loopback only.

    Args:
        folder: Takes the logs, and a folder ``work-N`` per worker with its executors' output.
        workers: Each has one core, and an executor of 1 GiB.

    Raises:
        DaemonError: A daemon did not start; the message has its last words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    here = ("--host", "127.0.0.1", "--webui-port", "0")
    with contextlib.ExitStack() as daemons:

        def start(name: str, *command: str) -> Daemon:
            daemon = Daemon.start([str(_SPARK_CLASS), *command], folder / f"{name}.log", _SPARK_ENVIRONMENT)
            daemons.callback(daemon.end)
            return daemon

        master = start("master", _MASTER, *here, "--port", "0")
        url = master.wait_for(r"Starting Spark master at (spark://[\w.]+:\d+)", _SPARK_START_SECONDS)[1]
        for number in range(1, workers + 1):
            size = ("--cores", "1", "--memory", "1g")
            start(f"worker-{number}", _WORKER, *here, *size, "--work-dir", str(folder / f"work-{number}"), url)
        master.wait_for("Registering worker", _SPARK_START_SECONDS, times=workers)
        yield url
