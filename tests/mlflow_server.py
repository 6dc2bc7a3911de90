"""An MLflow server of the tests, and the PostgreSQL database behind one."""

import contextlib
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.conftest import PATIENCE

START_SECONDS = 90
# Uvicorn's line or, with MLflow 3.0, that of gunicorn.
_ADDRESS = re.compile(r"(?:running on|Listening at:) http://127\.0\.0\.1:(\d+)")


@contextlib.contextmanager
def mlflow_server(
    folder: Path, backend_store: str, artifacts: str, variables: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Run an MLflow server on a free port of loopback; yield the port.

    Args:
        folder: Folder for its log.
        backend_store: URI of its store.
        artifacts: Folder or URI of the artifacts, which it hands on.
        variables: Additional environment variables.
    """
    log = folder / "server.log"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", "0", "--workers", "1"]
    command += ["--backend-store-uri", backend_store, "--artifacts-destination", artifacts]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # Settings that other tests of this process made in MLflow are not for this server.
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"} | quiet
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment | dict(variables or {}),
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while (found := _ADDRESS.search(log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield int(found[1])
    finally:
        end(process)


def free_port() -> int:
    """Return a port of loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process that began a session, and all processes that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=PATIENCE * 60)


@dataclass(frozen=True)
class PostgreSQL:
    """A server with a new database, which can be stopped, or killed, and started again.

    Attributes:
        kill: Kills all of its processes, or with ``False`` only one that serves a client.
    """

    address: str
    stop: Callable[[], None]
    start: Callable[[], None]
    kill: Callable[[bool], None]


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """Run a new PostgreSQL database on a free port of loopback; yield its URI. Skip where it is not installed."""
    with postgresql_server() as server:
        yield server.address


@contextlib.contextmanager
def postgresql_server() -> Iterator[PostgreSQL]:
    """Run a new PostgreSQL database on a free port of loopback, which is to run at the end, too."""
    binaries = _binaries()
    # The server refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else None
    if user is not None:
        try:
            pwd.getpwnam(user)
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    # A folder of pytest's could not be entered by the user.
    folder = Path(tempfile.mkdtemp(prefix="mirrorspark-postgresql-"))
    try:
        if user is not None:
            shutil.chown(folder, user)

        def call(program: str, *arguments: str) -> None:
            command = [str(binaries / program), "--pgdata", str(folder / "data"), *arguments]
            with (folder / "output.log").open("ab") as output:
                done = subprocess.run(
                    command, stdout=output, stderr=output, user=user, cwd=folder, timeout=PATIENCE * 120, check=False
                )
            assert done.returncode == 0, (folder / "output.log").read_text()

        call("initdb", "--auth", "trust", "--username", "mlflow", "--no-sync")
        port = free_port()
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        start = partial(call, "pg_ctl", "start", "--wait", "--options", options, "--log", str(folder / "server.log"))
        stop = partial(call, "pg_ctl", "stop", "--wait", "--mode", "immediate")
        start()
        try:
            kill = partial(_kill, folder / "data" / "postmaster.pid")
            yield PostgreSQL(f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres", stop, start, kill)
        finally:
            stop()
    finally:
        shutil.rmtree(folder)


def _kill(file: Path, everything: bool) -> None:
    """Send SIGKILL to the processes of a server, or to one of those that serve clients."""
    server = psutil.Process(int(file.read_text().split()[0]))
    if everything:
        ended = [server, *server.children()]
        # The first one starts another for each that dies.
        for process in ended:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    else:
        ended = [next(process for process in server.children() if "127.0.0.1" in " ".join(process.cmdline()))]
        ended[0].kill()
    _, left = psutil.wait_procs(ended, timeout=PATIENCE * 10)
    assert left == []
    if everything:
        # Where nobody reaps the dead, the server's process is still there, and another one would not start.
        file.unlink()


def _binaries() -> Path:
    pytest.importorskip("psycopg2", reason="no psycopg2, with which MLflow reaches PostgreSQL")
    # Debian keeps them out of PATH.
    found = shutil.which("initdb") or next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None)
    if found is None:
        pytest.skip("no PostgreSQL; on Debian: apt-get install postgresql")
    return Path(found).parent
