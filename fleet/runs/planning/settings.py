"""Spark's settings for runs of fleets, and the check of those of a session."""

import re
from collections.abc import Mapping
from math import ceil

from pyspark.sql import SparkSession

from mirrorspark.spark_session import session_of

FAIR = {"spark.scheduler.mode": "FAIR"}
"""Lets microbatches that run at the same time share the cores; else the second one waits for the first one's tasks."""

# A lost machine costs a try of each of its tasks. Errors of models are reported, not tried again.
_MAX_FAILURES = 4
DEFAULT_HEAP = "1g"
"""Spark's ``spark.executor.memory`` by default."""
_OVERHEAD_LEAST, _OVERHEAD_SHARE = 384 * 2**20, 0.1  # Spark's defaults
# Pandas, Arrow and the allocator vary.
_MARGIN = 1.25
_UNITS = {"": 2**20, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def recommended_settings(worker_bytes: int, executor_cores: int, heap: str = DEFAULT_HEAP) -> dict[str, str]:
    """Return the settings for a cluster.

    Args:
        worker_bytes: Largest memory of a process that runs tasks, of which each core has one.
        executor_cores: Cores of an executor.
        heap: ``spark.executor.memory``, by default Spark's own default.
    """
    # The JVM takes memory in addition to its heap.
    overhead = _python_mib(worker_bytes, executor_cores) + ceil(_overhead_of_jvm(heap) / 2**20)
    return FAIR | {
        "spark.task.maxFailures": str(_MAX_FAILURES),
        "spark.excludeOnFailure.enabled": "true",
        "spark.executor.memoryOverhead": f"{overhead}m",
    }


def check_settings(settings: Mapping[str, str], at_once: int, worker_bytes: int = 0) -> list[str]:
    """Return messages about the settings of a session on a cluster that should be changed.

    Args:
        settings: All that are set.
        at_once: Microbatches at a time.
        worker_bytes: See :func:`recommended_settings`; 0 if unknown.
    """
    found = []
    if at_once > 1 and settings.get("spark.scheduler.mode", "FIFO").upper() != "FAIR":
        found.append("spark.scheduler.mode is not FAIR: a microbatch waits for the tasks of the one before")
    if (tries := int(settings.get("spark.task.maxFailures", _MAX_FAILURES))) < _MAX_FAILURES:
        found.append(f"spark.task.maxFailures {tries} is below {_MAX_FAILURES}: few lost machines fail a microbatch")
    if settings.get("spark.excludeOnFailure.enabled", "false").lower() != "true":
        found.append("spark.excludeOnFailure.enabled is not true: a broken machine gets the same task again")
    heap, cores = settings.get("spark.executor.memory", DEFAULT_HEAP), int(settings.get("spark.executor.cores", 1))
    name, wanted = "spark.executor.memoryOverhead", recommended_settings(worker_bytes, cores, heap)
    if settings.get("spark.executor.pyspark.memory"):  # limits the processes, however large the overhead is
        name = "spark.executor.pyspark.memory"
        wanted = {name: f"{_python_mib(worker_bytes, cores)}m"}
    has = _size(settings[name]) if name in settings else _overhead_of_jvm(heap)
    if worker_bytes * cores > has:
        found.append(
            f"an executor has {has / 2**20:,.0f} MiB for the Python processes of {cores} cores, which take "
            f"{worker_bytes / 2**20:,.0f} MiB each: set {name} to {wanted[name]}"
        )
    return found


def problems_of(spark: SparkSession, at_once: int, worker_bytes: int = 0) -> list[str]:
    """Return the messages of :func:`check_settings` about a session, none about a local one."""
    session = session_of(spark)
    return [] if session.is_local else check_settings(session.settings(), at_once, worker_bytes)


def _python_mib(worker_bytes: int, cores: int) -> int:
    """Return the MiB that the processes of an executor should have."""
    return int(worker_bytes * cores * _MARGIN) // 2**20 + 1


def _overhead_of_jvm(heap: str) -> float:
    """Return the bytes that Spark gives an executor in addition to a heap of this size."""
    return max(_OVERHEAD_LEAST, _OVERHEAD_SHARE * _size(heap))


def _size(text: str) -> float:
    """Return the bytes of a size as Spark writes it: ``512m``, ``2g``, or a number of MiB."""
    found = re.fullmatch(r"([\d.]+)\s*([bkmgt]?)b?", text.strip().lower())
    return float(found[1]) * _UNITS[found[2]] if found else 0.0
