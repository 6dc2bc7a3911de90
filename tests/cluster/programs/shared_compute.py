"""A stand-in for Databricks' shared compute: a server of Spark Connect that forbids what that compute forbids.

Server, tasks and client run as another user without capabilities and with no other environment variables than those
named here, in a mount namespace where the installation is read-only. Tasks are in a network namespace of their own,
and talk with the server through Unix sockets. Below the folder ``volume`` a preloaded library refuses what a volume
refuses. docs/databricks.md lists what is not forbidden.
"""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.connect_server import SPARK_HOME, free_port, running_server, server_command
from mirrorspark.spark_session import versions
from tests.conftest import PATIENCE

REPOSITORY = Path(__file__).resolve().parents[3]
TABLE_BYTES = 128 * 2**20
"""The largest table in memory that a client may send."""

_USER = 65534
_DERBY = "jdbc:derby:memory:main;create=true"
# Folders of the installation are bound read-only. A folder that hides them from other users (/root) is
# replaced by an empty one, as is the folder for temporary files: the client has another than the server.
_IN_NAMESPACE = """
set -e
user=$1 scratch=$2 own=$3 installed=$4 emptied=$5
shift 5
number=0
mount -t tmpfs -o mode=755 tmpfs "$scratch"
for folder in $own $installed; do
    number=$((number + 1)); mkdir "$scratch/$number"; mount --rbind "$folder" "$scratch/$number"
done
for folder in $emptied; do mount -t tmpfs -o mode=1777 tmpfs "$folder"; done
number=0
for folder in $own $installed; do
    number=$((number + 1)); mkdir -p "$folder"; mount --rbind "$scratch/$number" "$folder"
done
for folder in $installed; do mount -o remount,bind,ro "$folder"; done
exec setpriv --reuid="$user" --regid="$user" --clear-groups --no-new-privs "$@"
"""
# A network of the task's own has no way out, and the loopback by which workers of one machine reach each other. A
# function of a stream's batches runs in a client of the server, which needs the network.
_TASK = """#!/bin/sh
case "$*" in *pyspark.sql.connect.streaming*) exec {python} "$@" ;; esac
exec unshare --user --map-current-user --keep-caps --net sh -c '
ip link set lo up
exec setpriv --inh-caps=-all --ambient-caps=-all "$@"' sh {python} "$@"
"""


@dataclass(frozen=True)
class SharedCompute:
    """A running server.

    Attributes:
        url: Its address.
        folder: Below it are ``volume``, for all output, and ``home``.
    """

    url: str
    folder: Path

    @property
    def volume(self) -> Path:
        """The folder that refuses what a volume refuses."""
        return self.folder / "volume"

    def run(self, arguments: Sequence[str], *, timeout: float) -> "subprocess.CompletedProcess[str]":
        """Run a program of Python as the client's user, and return its end and all that it wrote."""
        environment = _environment(self.folder) | {"JAVA_HOME": "/nowhere", "PATH": "/usr/bin:/bin"}
        command = _as_user(self.folder, environment, [sys.executable, *arguments])
        output = subprocess.PIPE
        return subprocess.run(
            command, cwd=self.folder / "home", stdout=output, stderr=subprocess.STDOUT, text=True, timeout=timeout
        )


def why_not() -> str | None:
    """Return why the stand-in cannot run here; None if it can."""
    if os.geteuid() != 0:
        return "the stand-in for shared compute needs root, to run as another user"
    if not versions.HAS_ARROW_UDFS:
        return "tasks of Spark 4.0 need a network to talk with the server"
    if missing := [name for name in ("unshare", "setpriv", "ip", "gcc", "mount") if shutil.which(name) is None]:
        return f"the stand-in for shared compute needs {' and '.join(missing)}"
    tried = ["unshare", "--mount", "setpriv", f"--reuid={_USER}", "unshare", "--user", "--net", "true"]
    if subprocess.run(tried, check=False, stderr=subprocess.DEVNULL).returncode != 0:
        return "no namespaces of mounts, users and networks may be made here"
    return None


@contextmanager
def shared_compute(slots: int = 2) -> Iterator[SharedCompute]:
    """Start the stand-in with a number of task slots, and yield it."""
    folder = Path(tempfile.mkdtemp(prefix="mirrorspark-shared-"))
    folder.chmod(0o755)
    try:
        for name in ("volume", "home", "sockets"):
            (folder / name).mkdir()
            os.chown(folder / name, _USER, _USER)
        source = Path(__file__).with_name("volume.c")
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "volume.so", source, "-ldl"], check=True)
        (folder / "python").write_text(_TASK.format(python=sys.executable))
        (folder / "python").chmod(0o755)
        with _server(folder, slots) as url:
            yield SharedCompute(url, folder)
    finally:
        shutil.rmtree(folder)


@contextmanager
def _server(folder: Path, slots: int) -> Iterator[str]:
    port = free_port()
    settings = {
        "spark.driver.memory": "2g",
        "spark.python.unix.domain.socket.dir": folder / "sockets",
        "spark.python.unix.domain.socket.enabled": "true",
        "spark.sql.catalog.main": "org.apache.spark.sql.execution.datasources.v2.jdbc.JDBCTableCatalog",
        "spark.sql.catalog.main.driver": "org.apache.derby.iapi.jdbc.AutoloadedDriver",
        "spark.sql.catalog.main.url": _DERBY,
        "spark.sql.session.localRelationSizeLimit": TABLE_BYTES,
        "spark.sql.shuffle.partitions": 8,
    }
    environment = _environment(folder) | {
        "JAVA_HOME": os.environ["JAVA_HOME"],
        "PATH": os.environ["PATH"],
        "PYSPARK_PYTHON": str(folder / "python"),
        "SPARK_HOME": str(SPARK_HOME),
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    command = _as_user(folder, environment, server_command(f"local[{slots}]", port, settings))
    with running_server(command, port, folder / "home", os.environ, seconds=PATIENCE * 120) as url:
        yield url


def _environment(folder: Path) -> dict[str, str]:
    return {
        "HOME": str(folder / "home"),
        "LANG": "C.UTF-8",
        "LD_PRELOAD": str(folder / "volume.so"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'home'}/mlflow.db",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY)]),
        "VOLUME": str(folder / "volume"),
    }


def _as_user(folder: Path, environment: Mapping[str, str], command: Sequence[str]) -> list[str]:
    """Return the command that runs another as a user without rights, where the installation is read-only."""
    installed = {Path(sys.base_prefix), Path(sys.prefix).resolve(), REPOSITORY, Path(os.environ["JAVA_HOME"])}
    emptied = {place for one in installed if (place := _hiding(one)) is not None} | {Path(tempfile.gettempdir())}
    within = ["unshare", "--mount", "--propagation=private", "sh", "-c", _IN_NAMESPACE, "sh", str(_USER)]
    within += ["/mnt", str(folder), " ".join(map(str, installed)), " ".join(map(str, emptied))]
    return [*within, "env", "-i", *(f"{name}={value}" for name, value in environment.items()), *command]


def _hiding(folder: Path) -> Path | None:
    """Return the uppermost folder on the way to a folder through which other users may not go."""
    return next((one for one in reversed([folder, *folder.parents]) if not one.stat().st_mode & stat.S_IXOTH), None)
