"""The Spark session of a run: the one that is there already, a cluster's, or a local one."""

import os
import re
import subprocess
import sys
from pathlib import Path

from pyspark.sql import SparkSession

MINIMUM_JAVA = 17


def open_session(
    master: str | None, workers: int, *, app_name: str = "mirrorspark", verbose: bool = False
) -> SparkSession:
    """Return the active session, or start one.

    Args:
        master: URL of a cluster, or None for ``local[workers]``. An active session is used as it is.
        workers: Slots that training needs; the size of a local session.
        app_name: Shown in the Spark UI.
        verbose: Leave Spark's own log level as it is. By default Spark is silent: of a lost worker it would print
            pages, and our own message says more.
    """
    active = SparkSession.getActiveSession()
    if active is not None:
        return active
    # Executors must run this interpreter: a bare `python3` on their PATH has none of our packages.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
    target = master or f"local[{workers}]"
    builder = (
        SparkSession.builder.appName(app_name)
        .master(target)
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.execution.arrow.pyspark.enabled", "true")
        # Small shuffles are the rule here; Spark's 200 partitions would be 200 tiny tasks.
        .config("spark.sql.shuffle.partitions", str(max(2 * workers, 8)))
        # A barrier stage with too few slots is retried silently for ten minutes; preflight has counted them already.
        .config("spark.scheduler.barrier.maxConcurrentTasksCheck.maxFailures", "3")
    )
    if target.startswith("local"):
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.driver.memory", "2g")
    if not verbose:
        builder = builder.config("spark.log.level", "OFF")
        with _quiet_launch():
            return builder.getOrCreate()
    return builder.getOrCreate()


class _quiet_launch:  # noqa: N801 - reads as a statement
    """Keep the JVM's start-up lines ("Using Spark's default log4j profile ...") off the terminal.

    They are written before any log level applies, straight to the file descriptor that the JVM inherits.
    """

    def __enter__(self) -> None:
        sys.stderr.flush()
        self._saved = os.dup(2)
        self._null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(self._null, 2)

    def __exit__(self, *_: object) -> None:
        os.dup2(self._saved, 2)
        os.close(self._saved)
        os.close(self._null)


def java_major_version() -> int | None:
    """Return the major version of the Java that Spark would start, or None where none can be started."""
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else "java"
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False).stderr
    except (OSError, subprocess.TimeoutExpired):
        return None
    # Before 9, Java called itself 1.8 and so on. Other quoted text may come first: what JAVA_TOOL_OPTIONS holds.
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    return int(found[1]) if found else None


def task_slots(spark: SparkSession) -> int:
    """Return how many barrier tasks can run side by side now."""
    # Spark's own barrier check asks the same question; the private call has been there since Spark 2.4.
    context = spark.sparkContext._jsc.sc()
    return int(context.maxNumConcurrentTasks(context.resourceProfileManager().defaultResourceProfile()))


def is_local(spark: SparkSession) -> bool:
    """Tell whether driver and tasks share this process's machine and package folders."""
    return str(spark.sparkContext.master).startswith("local")


def driver_address(spark: SparkSession) -> str:
    """Return the interface of the driver that its executors can reach: loopback for a local session."""
    return "127.0.0.1" if is_local(spark) else str(spark.sparkContext.getConf().get("spark.driver.host"))
