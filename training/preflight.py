"""Answers within seconds whether a run can start: each check says what it found and, if that is bad, what to do."""

import http.client
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from callbacks.credentials import without_credentials
from training.spark_session import MINIMUM_JAVA, is_local, java_major_version, task_slots

REACH_SECONDS = 3.0
EXECUTORS_SECONDS = 20.0

_SQLITE = "sqlite:///"

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


def check_cluster(spark: SparkSession, workers: int) -> list[Check]:
    """Return what the session can say: slots, dynamic allocation and the executors' packages."""
    checks = [_slots(spark, workers), _allocation(spark)]
    if all(check.passed for check in checks) and not is_local(spark):
        checks.append(_executors(spark, workers))
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
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".write-test-"):
            return None
    except OSError as error:
        return f"{existing}: {error.strerror}" if existing != folder.absolute() else str(error.strerror)


def _tracking(uri: str) -> Check:
    # A URI may carry a password. It must not reach a log, and whether the server is there shows without it.
    shown = without_credentials(uri)
    if uri.startswith(_SQLITE):
        refusal = _cannot_write(Path(uri.removeprefix(_SQLITE)).parent)
        if refusal is not None:
            return Check("tracking", False, f"{shown} cannot be written ({refusal}); give another --tracking-uri")
    elif uri.startswith(("http://", "https://")):
        problem = _server_problem(shown)
        if problem is not None:
            return Check("tracking", False, f"{shown} {problem}; start it or give another --tracking-uri")
    return Check("tracking", True, shown)


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


def _executors(spark: SparkSession, workers: int) -> Check:
    mine = fingerprint(())
    try:
        theirs = spark.sparkContext.parallelize(range(workers), workers).mapPartitions(fingerprint).collect()
    except (Py4JJavaError, PySparkException) as error:
        lines = [line for line in str(error).splitlines() if "Error" in line]
        return Check(
            "executors", False, f"cannot run our code: {(lines or [str(error)])[-1].strip()}; install mirrorspark there"
        )
    for other in theirs:
        different = {name: (mine[0][name], found) for name, found in other.items() if mine[0][name] != found}
        if different:
            name, (here, there) = next(iter(different.items()))
            return Check(
                "executors", False, f"{name} is {there} there and {here} on the driver; install the same version"
            )
    return Check("executors", True, f"same Python and packages on {len(theirs)} of them")


def fingerprint(_: object) -> list[dict[str, str]]:
    """Return the versions that this process would train with; top-level, so that it pickles into a task."""
    found = {"python": ".".join(map(str, sys.version_info[:2]))}
    for package in (*SHARED_PACKAGES, "mirrorspark"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return [found]
