"""An MLflow server on this machine that can be killed and started again, on the same port and store."""

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.daemon import Daemon

_START_SECONDS = 90.0
_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


class TrackingServer:
    """An MLflow server with an SQLite store, on a port of loopback that the system chooses; its context ends it."""

    def __init__(self, folder: Path, start: Callable[..., Daemon] = Daemon.start) -> None:
        """Say where its store, its artifacts and its logs are.

        Args:
            folder: Made where it is not there.
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
        """Where it answers, or will answer again."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> "TrackingServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, and return when it listens.

        Raises:
            DaemonError: It did not start; the message tells its last words.
        """
        self._starts += 1
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        self._daemon = self._start(command, self._folder / f"server-{self._starts}.log", _ENVIRONMENT)
        try:
            found = self._daemon.wait_for(r"running on http://127\.0\.0\.1:(\d+)", _START_SECONDS)
        except BaseException:
            self.kill()
            raise
        self._port = int(found[1])

    def kill(self) -> None:
        """SIGKILL to the server and all that it started; its store stays."""
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon = None
