"""The preflight checks: within seconds they report if a run can start, with advice if not."""

import http.client
import importlib.util
import os
import re
import shutil
import socket
import tempfile
import time
import urllib.error
import urllib.request
from importlib.metadata import PackageNotFoundError, entry_points, requires
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyspark
from pyspark.sql import SparkSession

from mirrorspark.callbacks.mlflow import tracking_store
from mirrorspark.distributions import distribution_of, library_version
from mirrorspark.extras import EXTRAS, install_line, keras_line
from mirrorspark.spark_session import (
    AnotherSessionError,
    MissingCapabilityError,
    Session,
    SparkStartError,
    is_local,
    java_major_version,
    reached,
    server_of,
    session_of,
    starts_java,
    user_settings,
    versions,
    why_unreachable,
)
from mirrorspark.storage import StorageError, StoragePath, lakes, without_credentials
from mirrorspark.training.configuration import EventWay
from mirrorspark.training.job.readiness.checks import Check, PreflightError, failure, require, warning
from mirrorspark.training.job.readiness.executor_checks import (
    LOW_DISK_BYTES,
    check_executors,
    check_store,
    events_by_files,
)
from mirrorspark.training.job.readiness.executor_probe import SHARED_PACKAGES, with_timeout
from mirrorspark.training.job.readiness.file_system import check_file_system, why_no_sqlite

__all__ = [
    "Check",
    "PreflightError",
    "check_cluster",
    "check_driver",
    "check_session",
    "check_tracking",
    "events_by_files",
    "require",
]

REACH_SECONDS = 3.0
EXECUTORS_SECONDS = 20.0

_LOOPBACK = ("127.0.0.1", "::1", "[::1]", "localhost")
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
# Only the service itself could check these.
_DATABRICKS = ("databricks", "databricks-uc", "uc")

# Our own models are of tf-keras, which goes with TensorFlow. ScaNN has builds for 2.20.
DEFAULT_MINOR = "2.20"
TENSORFLOW_MINORS = ("2.19", "2.20", "2.21")

# Ends of the ranges in setup.cfg, which an installation next to the packages of a platform does not check.
OLDEST = {"pyspark": "3.5", "mlflow": "3.0"}
_LIMITS = {
    ("pyspark", "3.5"): "there is no Spark Connect, no format tfrecord (write_tfrecords and read_tfrecords are there), "
    "and a model cannot be a function in SQL, for which Spark 4.1 is needed",
    ("pyspark", "4.0"): "a model cannot be a function in SQL, for which Spark 4.1 is needed",
}
# The extra that training needs with all that it brings, and the modules of it without which nothing trains.
_TRAINING = ("data", "train")
_NEEDED = ("numba", "pandas", "spark_tensorflow_distributor")
_RECOMMENDERS = "recommenders"
# Of the metadata of scann, which says for which TensorFlow its operations are built.
_TENSORFLOW_OF_SCANN = re.compile(r"tensorflow~=(\d+\.\d+)")

_STANDALONE_PORT = 7077

# Settings by which a session has fewer slots than cores.
_ASKED_BY_TASKS = ("spark.task.cpus", "spark.task.resource.gpu.amount")
_ALLOCATION = "spark.dynamicAllocation.enabled"


def check_driver(
    output: Path, tracking_uri: str, master: str | None = None, *, needs_session: bool = True
) -> list[Check]:
    """Return the checks that need no Spark session, among them those of whether one can start if it is needed."""
    writable = _output(output)
    file_system = check_file_system(_existing(output)) if writable.passed else None
    has_java = needs_session and starts_java(master)
    checks = [_session(master) if needs_session else None, _java() if has_java else None, _packages(), _parts()]
    checks += [_keras(), _recommenders(), writable, file_system, check_tracking(tracking_uri)]
    # A local session has one executor whatever the setting.
    if has_java and not is_local(master or "local") and SparkSession.getActiveSession() is None:
        checks.append(_dynamic(user_settings().get(_ALLOCATION, "")))
    return [check for check in checks if check is not None]


def check_driver_gpus(spark: SparkSession, gpus: int, resource: str) -> list[Check]:
    """Return the check that Spark has given the driver its GPUs, for a training there."""
    found = session_of(spark).driver_gpus(resource) if gpus else ()
    if len(found) >= gpus:
        return []
    amount = f"spark.driver.resource.{resource}"
    return [
        failure(
            "gpus",
            f"Spark gave the driver {len(found)} GPUs of the resource {resource}, and gpus_per_worker is {gpus}; start "
            f"the session with {amount}.amount={gpus} and {amount}.discoveryScript, or give another gpu_resource_name",
        )
    ]


def check_session(spark: SparkSession, workers: int) -> list[Check]:
    """Return the checks of a session's settings and of its slots; over Spark Connect they run a job of one task."""
    session = session_of(spark)
    allocation = _allocation(session)
    # Executors that come and go have no number of slots to count.
    if not allocation.passed:
        return [allocation]
    try:
        session.require_barrier_jobs()
    except (MissingCapabilityError, SparkStartError) as error:
        return [failure("session", str(error))]
    return [_slots(session, workers), allocation]


def check_cluster(
    spark: SparkSession,
    workers: int,
    output: Path | None = None,
    *,
    checkpoints: str | None = None,
    gpus_per_worker: int = 0,
    gpu_resource_name: str = "gpu",
    open_servers: str | None = None,
    asks_local: bool = False,
    events: EventWay = "auto",
) -> list[Check]:
    """Return the checks of a session: slots, dynamic allocation, network, and its executors.

    Args:
        spark: The session.
        workers: Barrier tasks of the training.
        output: Folder that the executors must share with the driver; None for no check.
        checkpoints: Another folder or store that they must share; in a local session only the driver writes to it.
        gpus_per_worker: Required GPUs of every task.
        gpu_resource_name: Spark's name of them.
        open_servers: Strategy that starts TensorFlow's unauthenticated servers without permission to do so on a
            network; None where there is permission, or no need for it.
        asks_local: Probe the tasks of a local session, too; a run skips this, since they share the driver's machine.
        events: Way of the workers' events.
    """
    checks = check_session(spark, workers)
    if not all(check.passed for check in checks):
        return checks
    session = session_of(spark)
    checks += _network(session, open_servers)
    if not all(check.passed for check in checks):
        return checks
    folders = {"--output": StoragePath.of(_existing(output))} if output else {}
    try:
        if checkpoints:
            folders["--checkpoints"] = _store(checkpoints)
            # The checks of a store on a network have limits of time, which a look into it does not.
            if folders["--checkpoints"].is_local and (
                refusal := _in_a_lake("--checkpoints", StoragePath.of(checkpoints))
            ):
                return [*checks, refusal]
    except StorageError as error:
        return [*checks, failure("checkpoints", f"{error}; give another place as --checkpoints")]
    if session.tasks_share_packages and not asks_local:
        # The check of the driver has written to the output.
        return checks + [check_store(option, place) for option, place in folders.items() if option != "--output"]
    java = java_major_version()
    return checks + check_executors(spark, workers, java, folders, gpus_per_worker, gpu_resource_name, events)


def _store(location: str) -> StoragePath:
    folder = StoragePath.of(location)
    return StoragePath.of(_existing(folder.local)) if folder.is_local else folder


def _session(master: str | None) -> Check:
    try:
        if (server := server_of(master)) is not None:
            return Check("session", True, reached(server))
    except (AnotherSessionError, SparkStartError) as error:
        return failure("session", str(error))
    if master and master.startswith("spark://"):
        problems = [
            why_unreachable(address, _STANDALONE_PORT) for address in master.removeprefix("spark://").split(",")
        ]
        if all(problems):
            return failure("session", f"{master} cannot be reached ({problems[0]}); start it or correct --master")
    return Check("session", True, master or "the active one, or a local one")


def _java() -> Check:
    found = java_major_version()
    if found is None:
        home = os.environ.get("JAVA_HOME")
        where = f"JAVA_HOME is {home}, where none starts" if home else "there is none on PATH"
        return failure("java", f"{where}; install Java 17 or later and set JAVA_HOME to it")
    if found < versions.OLDEST_JAVA:
        return failure(
            "java",
            f"found {found}; PySpark {pyspark.__version__} needs {versions.OLDEST_JAVA} or later: set JAVA_HOME to one",
        )
    return Check("java", True, str(found))


def _packages() -> Check:
    found = {}
    for package in (*SHARED_PACKAGES, "mlflow"):
        try:
            found[package] = library_version(package)
        except PackageNotFoundError:
            module = package.replace("-", "_")
            return failure("packages", f"{package} is not installed; run: {install_line(module)}")
    for package, oldest in OLDEST.items():
        if _numbers(found[package]) < _numbers(oldest):
            return failure("packages", f"{package} {found[package]} is older than {oldest}; install a later one")
    tensorflow, keras = found["tensorflow"], found["tf-keras"]
    minor = _minor(tensorflow)
    if minor not in TENSORFLOW_MINORS:
        known = f"{', '.join(TENSORFLOW_MINORS[:-1])} and {TENSORFLOW_MINORS[-1]}"
        build = distribution_of("tensorflow")
        remedy = f"{build}=={DEFAULT_MINOR}.*" if build == "tensorflow" else f"a build of {DEFAULT_MINOR}"
        return failure("packages", f"tensorflow {tensorflow} is none of {known}; install {remedy}")
    if _minor(keras) != minor:
        line = keras_line(tensorflow)
        return failure("packages", f"tf-keras {keras} does not go with tensorflow {tensorflow}; run: {line}")
    limits = [
        f"; with {package} {of} {text}" for (package, of), text in _LIMITS.items() if _minor(found[package]) == of
    ]
    versions = ", ".join(f"{package} {number}" for package, number in found.items())
    return Check("packages", True, "".join([versions, *limits]))


def _parts() -> Check | None:
    """Return the check of the other modules of the extra ``train``; None if all are there."""
    absent = [name for name, extra in EXTRAS.items() if extra in _TRAINING and importlib.util.find_spec(name) is None]
    missing = sorted({*absent} - {"tensorflow"})  # of which the check of packages has the version
    if not missing:
        return None
    needed = [name for name in missing if name in _NEEDED]
    line = install_line("spark_tensorflow_distributor")
    if needed:
        return failure("parts", f"Python finds no module {', '.join(needed)}; run: {line}")
    return warning("parts", f"Python finds no module {', '.join(missing)}, which parts of training need; run: {line}")


def _minor(number: str) -> str:
    return ".".join(number.split(".")[:2])


def _numbers(number: str) -> list[int]:
    return [int(part) for part in _minor(number).split(".")]


def _keras() -> Check:
    if importlib.util.find_spec("tf_keras") is None:
        return failure("keras", f"Python finds no module tf_keras; run: {install_line('tf_keras')}")
    # Workers set TF_USE_LEGACY_KERAS themselves, so its value here does not matter.
    try:
        keras = library_version("keras")
        return Check("keras", True, f"workers train models of tf-keras, and your own of Keras {keras}, too")
    except PackageNotFoundError:
        return Check("keras", True, "workers train models of tf-keras; for your own of Keras 3 run: pip install keras")


def _recommenders() -> Check | None:
    """Return the check of TensorFlow Recommenders, which retrieval models need; None if it is not installed."""
    try:
        found, tensorflow = library_version("tensorflow-recommenders"), library_version("tensorflow")
    except PackageNotFoundError:
        return None
    if os.environ.get("TF_USE_LEGACY_KERAS", "1") not in ("1", "true", "True"):
        return warning(
            _RECOMMENDERS,
            f"tensorflow-recommenders {found} cannot be imported with Keras 3, and retrieval models need it; unset "
            f"TF_USE_LEGACY_KERAS",
        )
    try:
        scann, needs = library_version("scann"), requires("scann") or []
    except PackageNotFoundError:
        return Check(_RECOMMENDERS, True, f"tensorflow-recommenders {found}, without ScaNN")
    of = next((line.group(1) for line in map(_TENSORFLOW_OF_SCANN.match, needs) if line), _minor(tensorflow))
    if of != _minor(tensorflow):
        return warning(
            _RECOMMENDERS,
            f"scann {scann} loads with tensorflow {of} alone, not with {tensorflow}: retrieval models have no index "
            f"scann, and your own import of tensorflow_recommenders fails; run: pip uninstall scann",
        )
    return Check(_RECOMMENDERS, True, f"tensorflow-recommenders {found}, scann {scann}")


def _output(output: Path) -> Check:
    if (in_a_lake := _in_a_lake("--output", StoragePath.of(output))) is not None:
        return in_a_lake
    refusal = _cannot_write(output)
    if refusal is not None:
        return failure("output", f"{output} cannot be written ({refusal}); give another folder as --output")
    free = shutil.disk_usage(_existing(output)).free
    if free < LOW_DISK_BYTES:
        return warning("output", f"{output} has {free / 1e9:.1f} GB free; make room, or give another --output")
    return Check("output", True, str(output))


def _in_a_lake(option: str, folder: StoragePath) -> Check | None:
    """Return the refusal of a folder that is, or lies in, a lake table, whose files are not ours to add to."""
    table = lakes.lake_around(folder)
    return None if table is None else failure(option.lstrip("-"), f"{table}; give another folder as {option}")


def _cannot_write(folder: Path) -> str | None:
    """Return why ``folder``, which may not exist yet, cannot be written, or None. Leaves nothing behind."""
    existing = _existing(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".write-test-"):
            return None
    except OSError as error:
        return f"{existing}: {error.strerror}" if existing != folder.absolute() else str(error.strerror)


def _existing(folder: Path) -> Path:
    """Return ``folder`` or its nearest existing parent."""
    existing = folder.absolute()
    # Path.exists raises if a parent may not be read; here the write reports that.
    while not os.path.exists(existing) and existing != existing.parent:  # noqa: PTH110
        existing = existing.parent
    return existing


def check_tracking(uri: str) -> Check:
    """Return the check that MLflow's store can be used."""
    # A URI may have a password, which must not reach a log; reachability does not depend on it.
    shown = without_credentials(uri)
    scheme = uri.partition(":")[0].lower() if ":" in uri else ""
    dialect = scheme.partition("+")[0]
    plugins = {entry.name for entry in entry_points(group="mlflow.tracking_store")}
    if (file := tracking_store.sqlite_file(uri)) is not None:
        refusal = _cannot_write(file.parent)
        if refusal is not None:
            return failure("tracking", f"{shown} cannot be written ({refusal}); give another --tracking-uri")
        if (reason := why_no_sqlite(_existing(file.parent))) is not None:
            return failure(
                "tracking",
                f"{shown} cannot be used: its file system keeps no SQLite ({reason}); give a server, or "
                f"sqlite:////FILE on a local disk of the driver, as --tracking-uri",
            )
    elif scheme in ("http", "https"):
        outage, problem = _server_problems(shown)
        if problem is not None:
            return failure("tracking", f"{shown} {problem}; give another --tracking-uri")
        if outage is not None:
            # It may come back: metrics are sent later, and only the registration needs it.
            return warning("tracking", f"{shown} {outage}; start it: the run's metrics are kept and sent later")
    elif dialect in _DATABASE_PORTS:
        problem = with_timeout(lambda: _database_problem(uri, _DATABASE_PORTS[dialect]), 2 * REACH_SECONDS)
        if problem is not None:
            return failure("tracking", f"{shown} {problem}; start it or give another --tracking-uri")
    elif uri not in _DATABRICKS and scheme not in (*_DATABRICKS, *plugins, "sqlite"):
        if scheme not in ("", "file"):
            known = ["http", "https", "sqlite", *_DATABASE_PORTS, "databricks", *sorted(plugins)]
            return failure("tracking", f"{shown} is not a store that MLflow knows; --tracking-uri takes {known}")
        refusal = _folder_problem(Path(unquote(urlsplit(uri).path) if scheme else uri))
        if refusal is not None:
            return failure("tracking", f"{shown} cannot be written ({refusal}); give another --tracking-uri")
    return Check("tracking", True, shown)


def _folder_problem(folder: Path) -> str | None:
    # Since version 3.7 MLflow opens a folder only with this variable.
    if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("1", "true"):
        return "MLflow keeps no new runs in folders; use sqlite:///FILE"
    return _cannot_write(folder)


def _database_problem(uri: str, default_port: int) -> str | None:
    # MLflow itself would retry for minutes, and create its tables.
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


def _server_problems(uri: str) -> tuple[str | None, str | None]:
    """Return a server's temporary problem, and a problem of its address."""
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=REACH_SECONDS).close()  # noqa: S310 - http(s) only
    except urllib.error.HTTPError as error:
        with error:
            # A server that requires a password is up.
            return (f"answers with status {error.code}" if error.code >= 500 else None), None
    except (ValueError, http.client.HTTPException) as error:
        return None, f"is not a tracking server ({error})"
    except OSError as error:
        reason = getattr(error, "reason", error)
        said = f"cannot be reached ({reason})"
        return (None, said) if isinstance(reason, socket.gaierror) else (said, None)
    return None, None


def _slots(session: Session, workers: int) -> Check:
    # The executors of a new session may still be starting.
    deadline = time.monotonic() + EXECUTORS_SECONDS
    while (slots := session.task_slots()) < workers and not session.is_local and time.monotonic() < deadline:
        time.sleep(0.2)
    if slots < workers:
        asked = {name: value for name in _ASKED_BY_TASKS if (value := session.setting(name)) not in ("", "1")}
        remedies = [f"use --workers {slots}"] if slots else []
        remedies += [f"set {name} lower" for name in asked] + ["use a larger cluster"]
        if not slots and not asked:
            remedies = ["look on the cluster's pages for its executors", "give another --master"]
        return failure(
            "slots",
            f"{session.master} has {slots} task slots for {workers} workers"
            f"{''.join(f' with {name}={value}' for name, value in asked.items())}, and a barrier job starts all "
            f"or none; {' or '.join(remedies)}",
        )
    return Check("slots", True, f"{slots} on {session.master}")


def _allocation(session: Session) -> Check:
    dynamic = None if session.is_local else _dynamic(session.setting(_ALLOCATION))
    return dynamic or Check("allocation", True, "fixed")


def _dynamic(setting: str) -> Check | None:
    if setting.strip().lower() != "true":
        return None
    return failure("allocation", f"{_ALLOCATION} is true, which Spark refuses for barrier jobs; set it to false")


def _network(session: Session, open_servers: str | None) -> list[Check]:
    """Return failures and warnings about an open network of a cluster; none where all of it is on this machine."""
    found = [check] if (check := _encryption(session)) else []
    if session.driver_address in _LOOPBACK:
        return found
    if open_servers is not None:
        found.append(
            failure(
                "servers",
                f"strategy {open_servers} starts TensorFlow's servers on all interfaces, where they run any graph for "
                f"any caller; use --allow-open-servers on a network of trusted machines, or the strategy ring",
            )
        )
    if session.setting("spark.authenticate", "false").lower() != "true":
        found.append(
            warning(
                "network",
                "spark.authenticate is off, so any machine that reaches the executors' ports can read what they "
                "exchange and give them tasks; where the network has other users, set it and "
                "spark.network.crypto.enabled to true",
            )
        )
    elif session.setting("spark.network.crypto.enabled", "false").lower() != "true":
        found.append(warning("network", "spark.network.crypto.enabled is off, so executors exchange rows in the clear"))
    return found


def _encryption(session: Session) -> Check | None:
    # MirroredStrategyRunner refuses unencrypted traffic on an encrypted cluster, unless this option is set.
    ignore = "tensorflow.spark.distributor.ignoreSsl"
    if session.setting("spark.ssl.enabled", "false").lower() != "true":
        return None
    if session.setting(ignore, "false").lower() != "true":
        return failure(
            "encryption",
            f"spark.ssl.enabled is true, and workers talk to each other in the clear; set {ignore} to true to allow it",
        )
    return warning("encryption", f"workers talk to each other in the clear, as {ignore} allows")
