"""Answers within seconds whether a run can start: each check says what it found and, if that is bad, what to do."""

import http.client
import os
import secrets
import socket
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from urllib.parse import unquote, urlsplit

from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from callbacks.credentials import without_credentials
from data_pipelines.spark_errors import task_message
from scoring.shipping import is_local, portable
from training.spark_session import MINIMUM_JAVA, java_major_version, task_slots

REACH_SECONDS = 3.0
EXECUTORS_SECONDS = 20.0

_SQLITE = "sqlite:///"
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
# Only the service itself could say more of these.
_DATABRICKS = ("databricks", "databricks-uc", "uc")

# Packages whose version must be the same on the driver and on every executor.
SHARED_PACKAGES = ("tensorflow", "tf-keras", "pyspark", "pyarrow", "numpy")

# TensorFlow 2.21 breaks `import tensorflow_recommenders` through ScaNN's op, and Keras 3 cannot train under
# MultiWorkerMirroredStrategy: these two are pinned to a minor version.
PINNED_MINOR = {"tensorflow": "2.20.", "tf-keras": "2.20."}


class PreflightError(RuntimeError):
    """A run that cannot start; the message holds every failed check."""


@dataclass(frozen=True)
class Check:
    """One answer.

    Attributes:
        name: What was looked at.
        passed: Whether a run can start with it.
        detail: What was found; what to do about it where it did not pass.
    """

    name: str
    passed: bool
    detail: str


def check_driver(output: Path, tracking_uri: str) -> list[Check]:
    """Return what can be said before Spark starts."""
    return [_java(), _packages(), _legacy_keras(), _output(output), _tracking(tracking_uri)]


def check_cluster(spark: SparkSession, workers: int, output: Path | None = None) -> list[Check]:
    """Return what the session can say: slots, dynamic allocation, and what its executors have.

    Args:
        spark: The session.
        workers: Barrier tasks that training will run side by side.
        output: Folder that the executors must share with the driver; not looked at when it is None. On a local
            session there is nothing to share.
    """
    checks = [_slots(spark, workers), _allocation(spark)]
    if all(check.passed for check in checks) and not is_local(spark):
        checks.append(_executors(spark, workers, output))
    return checks


def require(checks: Sequence[Check]) -> None:
    """Raise unless every check passed.

    Raises:
        PreflightError: With the failed ones, in one line.
    """
    failed = [f"{check.name}: {check.detail}" for check in checks if not check.passed]
    if failed:
        raise PreflightError("; ".join(failed))


def _java() -> Check:
    found = java_major_version()
    if found is None:
        home = os.environ.get("JAVA_HOME")
        where = f"JAVA_HOME is {home}, where none starts" if home else "there is none on PATH"
        return Check("java", False, f"{where}; install Java {MINIMUM_JAVA} or later and set JAVA_HOME to it")
    if found < MINIMUM_JAVA:
        return Check("java", False, f"found {found}; Spark 4 needs {MINIMUM_JAVA} or later: set JAVA_HOME to one")
    return Check("java", True, str(found))


def _packages() -> Check:
    found = {}
    for package in SHARED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            return Check("packages", False, f"{package} is not installed; run: pip install mirrorspark")
    for package, minor in PINNED_MINOR.items():
        if not found[package].startswith(minor):
            return Check(
                "packages", False, f"{package} {found[package]} does not work here; install {package}=={minor}*"
            )
    return Check("packages", True, ", ".join(f"{package} {number}" for package, number in found.items()))


def _legacy_keras() -> Check:
    chosen = os.environ.get("TF_USE_LEGACY_KERAS", "1")
    if chosen not in ("1", "true", "True"):
        return Check(
            "legacy keras",
            False,
            f"TF_USE_LEGACY_KERAS is '{chosen}', but Keras 3 cannot train on several workers; unset it or set it to 1",
        )
    return Check("legacy keras", True, "tf-keras is used on the driver and on all workers")


def _output(output: Path) -> Check:
    refusal = _cannot_write(output)
    if refusal is not None:
        return Check("output", False, f"{output} cannot be written ({refusal}); give another folder as --output")
    return Check("output", True, str(output))


def _cannot_write(folder: Path) -> str | None:
    """Return why nothing can be written to ``folder``, which need not exist yet, or None. Leaves nothing behind."""
    existing = _existing(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".write-test-"):
            return None
    except OSError as error:
        return f"{existing}: {error.strerror}" if existing != folder.absolute() else str(error.strerror)


def _existing(folder: Path) -> Path:
    """Return ``folder``, or where it is not there yet the nearest folder above it that is."""
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    return existing


def _tracking(uri: str) -> Check:
    # A URI may carry a password. It must not reach a log, and whether the server is there shows without it.
    shown = without_credentials(uri)
    scheme = uri.partition(":")[0].lower() if ":" in uri else ""
    dialect = scheme.partition("+")[0]
    plugins = {entry.name for entry in entry_points(group="mlflow.tracking_store")}
    if uri.startswith(_SQLITE):
        refusal = _cannot_write(Path(uri.removeprefix(_SQLITE)).parent)
        if refusal is not None:
            return Check("tracking", False, f"{shown} cannot be written ({refusal}); give another --tracking-uri")
    elif scheme in ("http", "https"):
        problem = _server_problem(shown)
        if problem is not None:
            return Check("tracking", False, f"{shown} {problem}; start it or give another --tracking-uri")
    elif dialect in _DATABASE_PORTS:
        problem = _bounded(lambda: _database_problem(uri, _DATABASE_PORTS[dialect]))
        if problem is not None:
            return Check("tracking", False, f"{shown} {problem}; start it or give another --tracking-uri")
    elif uri not in _DATABRICKS and scheme not in (*_DATABRICKS, *plugins, "sqlite"):
        if scheme not in ("", "file"):
            known = ["http", "https", "sqlite", *_DATABASE_PORTS, "databricks", *sorted(plugins)]
            return Check("tracking", False, f"{shown} is no store that MLflow knows; --tracking-uri takes {known}")
        refusal = _folder_problem(Path(unquote(urlsplit(uri).path) if scheme else uri))
        if refusal is not None:
            return Check("tracking", False, f"{shown} cannot be written ({refusal}); give another --tracking-uri")
    return Check("tracking", True, shown)


def _folder_problem(folder: Path) -> str | None:
    # Since version 3.7 MLflow opens a folder only for who insists on it.
    if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("1", "true"):
        return "MLflow keeps no new runs in folders; use sqlite:///FILE"
    return _cannot_write(folder)


def _database_problem(uri: str, default_port: int) -> str | None:
    # MLflow itself would try for minutes, and make its tables in a database that is there.
    import sqlalchemy

    try:
        address = sqlalchemy.make_url(uri)
        if address.host:
            socket.create_connection((address.host, address.port or default_port), REACH_SECONDS).close()
        engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool)
        engine.connect().close()
    except ImportError as error:
        return f"needs the Python package '{error.name}', which is not installed"
    except (OSError, ValueError, sqlalchemy.exc.SQLAlchemyError) as error:
        lines = without_credentials(str(error)).splitlines() or [type(error).__name__]
        return f"cannot be reached ({lines[0]})"
    return None


def _bounded(ask: Callable[[], str | None]) -> str | None:
    """Return the answer, or that there was none in time: a driver of a database may wait for ever."""
    answers: list[str | None] = []
    thread = threading.Thread(target=lambda: answers.append(ask()), name="preflight", daemon=True)
    thread.start()
    thread.join(2 * REACH_SECONDS)
    return answers[0] if answers else f"did not answer within {2 * REACH_SECONDS:g} s"


def _server_problem(uri: str) -> str | None:
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=REACH_SECONDS).close()  # noqa: S310 - http(s) only
    except urllib.error.HTTPError as error:
        with error:
            # A server that asks for a password first is there.
            return f"answers with status {error.code}" if error.code >= 500 else None
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"cannot be reached ({getattr(error, 'reason', error)})"
    return None


def _slots(spark: SparkSession, workers: int) -> Check:
    # The executors of a session that has just been started are still on their way.
    deadline = time.monotonic() + EXECUTORS_SECONDS
    while (slots := task_slots(spark)) < workers and not is_local(spark) and time.monotonic() < deadline:
        time.sleep(0.2)
    if slots < workers:
        return Check(
            "slots",
            False,
            f"{spark.sparkContext.master} has {slots} task slots for {workers} workers, and a barrier job starts all "
            f"or none; use --workers {max(slots, 1)} or a larger cluster",
        )
    return Check("slots", True, f"{slots} on {spark.sparkContext.master}")


def _allocation(spark: SparkSession) -> Check:
    key = "spark.dynamicAllocation.enabled"
    if spark.sparkContext.getConf().get(key, "false").lower() == "true":
        return Check("allocation", False, f"{key} is true, which Spark refuses for barrier jobs; set it to false")
    return Check("allocation", True, "fixed")


def _executors(spark: SparkSession, workers: int, output: Path | None) -> Check:
    """Ask one barrier task per worker, which is how training will run: a plain job may leave executors out."""
    mine = fingerprint()
    shared = None if output is None else _existing(output)
    token = secrets.token_hex(16)
    file = shared / f".preflight-{token}" if shared else None
    try:
        if file:
            file.write_text(token, encoding="utf-8")
        tasks = spark.sparkContext.parallelize(range(workers), workers).barrier()
        theirs = tasks.mapPartitions(portable(Probe(str(file) if file else None, token))).collect()
    except (Py4JJavaError, PySparkException) as error:
        return Check("executors", False, f"cannot run our code: {task_message(error)}")
    except OSError as error:
        return Check("executors", False, f"{shared} cannot be written ({error.strerror}); give another --output")
    finally:
        if file:
            file.unlink(missing_ok=True)
    for host, sees_output, packages in theirs:
        different = [name for name, found in packages.items() if mine[name] != found]
        if different:
            name = different[0]
            there, here = packages[name], mine[name]
            return Check(
                "executors", False, f"{name} is {there} on {host} and {here} on the driver; install the same version"
            )
        if not sees_output:
            return Check(
                "executors", False, f"the one on {host} does not see {output}; use storage that all nodes share"
            )
    hosts = ", ".join(sorted({host for host, _, _ in theirs}))
    return Check("executors", True, f"same Python and packages for all {len(theirs)} workers, on {hosts}")


@dataclass(frozen=True)
class Probe:
    """What a task answers of its executor: host, whether it reads ``file`` as the driver wrote it, and packages.

    Attributes:
        file: Written by the driver; None to ask for nothing.
        token: What stands in it: another machine may have a file of that name.
    """

    file: str | None
    token: str

    def __call__(self, _: Iterable[object]) -> Iterator[tuple[str, bool, dict[str, str]]]:
        """Answer."""
        try:
            sees_output = self.file is None or Path(self.file).read_text(encoding="utf-8") == self.token
        except OSError:
            sees_output = False
        yield socket.gethostname(), sees_output, fingerprint()


def fingerprint() -> dict[str, str]:
    """Return the versions that this process would train with."""
    found = {"python": ".".join(map(str, sys.version_info[:2]))}
    for package in (*SHARED_PACKAGES, "mirrorspark"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found
