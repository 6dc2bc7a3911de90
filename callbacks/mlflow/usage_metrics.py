"""Names of the metrics of a run's work, and a sampler for a process's CPU and memory under MLflow's names."""

import threading
import time
from collections.abc import Callable

import psutil

# MLflow's prefix for system metrics, which its pages show last, in a section and a tab of their own. Groups of any
# other prefix, such as one with a second slash, come before the metrics without one, and those are the quality's.
WORK_PREFIX = "system/"
# Prefix of metrics over optimizer steps.
STEP_PREFIX = f"{WORK_PREFIX}step_"

_MEGABYTE = 1e6


def named(worker: int, cpu_percent: float | None, memory_bytes: float | None) -> dict[str, float]:
    """Return the metrics of a worker's process by MLflow's names, with the worker's own prefix.

    Args:
        worker: Rank of the worker.
        cpu_percent: Percentage of one core: two busy threads make 200.
        memory_bytes: Resident memory.
    """
    values = {
        "cpu_utilization_percentage": cpu_percent,
        "system_memory_usage_megabytes": None if memory_bytes is None else memory_bytes / _MEGABYTE,
    }
    prefix = f"{WORK_PREFIX}worker_{worker}"
    return {f"{prefix}_{name}": round(value, 1) for name, value in values.items() if value is not None}


class SystemSampler:
    """Measures this process at fixed intervals in a thread, until it is closed."""

    def __init__(self, worker: int, log: Callable[[dict[str, float], int], None], every_seconds: float) -> None:
        """Start measuring.

        Args:
            worker: Rank of this process.
            log: Called with the metrics and their step: seconds since the epoch, so that steps of a later process
                follow.
            every_seconds: Time between two measurements.
        """
        self._worker = worker
        self._log = log
        self._every_seconds = every_seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, name="system-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop measuring."""
        self._done.set()
        self._thread.join(timeout=5)

    def _work(self) -> None:
        process = psutil.Process()
        process.cpu_percent()  # the first result is always 0, because it covers the time since the previous call
        while not self._done.wait(self._every_seconds):
            usage = named(self._worker, process.cpu_percent(), process.memory_info().rss)
            self._log(usage, int(time.time()))
