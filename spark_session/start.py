"""The start of a Spark session: for a run (the active one, a cluster's or a local one) or for a command that scores."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from pyspark.sql import SparkSession

from mirrorspark.spark_session.kinds import session_of
from mirrorspark.spark_session.silence import SILENT, quiet_launch, set_by_the_user

MINIMUM_JAVA = 17


class AnotherSessionError(ValueError):
    """A cluster was asked for while a session on another one is active."""


def open_session(
    master: str | None, workers: int, *, app_name: str = "mirrorspark", verbose: bool = False
) -> SparkSession:
    """Return the active session, or start one.

    Args:
        master: URL of a cluster, or None for the active session, else ``local[workers]``.
        workers: Slots that training needs; the size of a local session.
        app_name: Shown in the Spark UI.
        verbose: Leave Spark's own log level unchanged. By default Spark is silent: it prints pages about a lost worker,
            and our own message says more.

    Raises:
        AnotherSessionError: The active session is on another cluster than ``master``.
    """
    active = SparkSession.getActiveSession()
    if active is not None:
        if master is not None and master != (here := session_of(active).master):
            raise AnotherSessionError(
                f"master is {master}, but a Spark session on {here} is active; stop it or leave master out to use it"
            )
        return active
    _run_this_interpreter()
    target = master or f"local[{workers}]"
    if _is_on_this_machine(target):
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    builder = SparkSession.builder.appName(app_name).master(target)
    for name, value in session_settings(target, workers, verbose=verbose).items():
        builder = builder.config(name, value)
    if verbose:
        return builder.getOrCreate()
    with quiet_launch():
        return builder.getOrCreate()


def open_command_session(
    master: str | None, *, verbose: bool, settings: Mapping[str, str] | None = None
) -> SparkSession:
    """Return a session for a command that scores; Spark's log is hidden unless ``verbose``.

    Args:
        master: URL of the cluster; by default the one in Spark's own configuration.
        verbose: Whether to show the log of Spark.
        settings: Settings of Spark that apply where the user has not set them.
    """
    _run_this_interpreter()
    builder = SparkSession.builder.appName("mirrorspark scoring")
    builder = builder.master(master) if master else builder
    own = {**(settings or {}), **({} if verbose else SILENT)}
    for name in own.keys() - set_by_the_user():
        builder = builder.config(name, own[name])
    if verbose:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0")
        return builder.getOrCreate()
    with quiet_launch():
        return builder.getOrCreate()


def session_settings(target: str, workers: int, *, verbose: bool) -> Mapping[str, str]:
    """Return the settings of a session on ``target``.

    Only settings that our code relies on override the user's own ``spark-defaults.conf``.
    """
    required = {"spark.sql.session.timeZone": "UTC", "spark.sql.execution.arrow.pyspark.enabled": "true"}
    defaults = {
        "spark.ui.showConsoleProgress": SILENT["spark.ui.showConsoleProgress"],
        # Shuffles are small here; Spark's default of 200 partitions would make 200 tiny tasks.
        "spark.sql.shuffle.partitions": str(max(2 * workers, 8)),
        # A barrier stage with too few slots is retried silently for ten minutes; preflight has counted them already.
        "spark.scheduler.barrier.maxConcurrentTasksCheck.maxFailures": "3",
    }
    if not verbose:
        defaults |= SILENT
    if _is_on_this_machine(target):
        # A cluster's own pages are left to its operators.
        defaults |= {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1", "spark.driver.memory": "2g"}
    users = set_by_the_user()
    return {name: value for name, value in defaults.items() if name not in users} | required


def java_major_version() -> int | None:
    """Return the major version of the Java that Spark would start, or None if there is none."""
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else "java"
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False).stderr
    except (OSError, subprocess.TimeoutExpired):
        return None
    # Before 9, Java called itself 1.8 and so on. Other quoted text may come first: the value of JAVA_TOOL_OPTIONS.
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    return int(found[1]) if found else None


def _run_this_interpreter() -> None:
    """Have executors run this interpreter: a bare `python3` on their PATH has none of our packages."""
    for name in ("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON"):
        os.environ.setdefault(name, sys.executable)


def _is_on_this_machine(master: str) -> bool:
    # local-cluster[...], too: its executors are processes of this machine.
    return master.startswith("local")
