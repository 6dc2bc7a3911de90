"""The names of metrics that are not over epochs, and what a process uses of its machine under MLflow's own names."""

import threading
import time
from collections.abc import Callable

import psutil

# What MLflow puts before its own system metrics; the page shows those names in a tab of their own.
_SYSTEM_PREFIX = "system"
# Metrics over optimizer steps stand apart from those over epochs, which keep their x axis.
STEP_PREFIX = "step/"

_MEGABYTE = 1e6


def named(worker: int, cpu_percent: float | None, memory_bytes: float | None) -> dict[str, float]:
    """Return the metrics of a worker's process by MLflow's names, below the worker's own prefix.

    Args:
        worker: Its rank.
        cpu_percent: Of one core: two busy threads make 200.
        memory_bytes: Resident memory.
    """
    values = {
        "cpu_utilization_percentage": cpu_percent,
        "system_memory_usage_megabytes": None if memory_bytes is None else memory_bytes / _MEGABYTE,
    }
    prefix = f"{_SYSTEM_PREFIX}/worker_{worker}"
    return {f"{prefix}/{name}": round(value, 1) for name, value in values.items() if value is not None}


class SystemSampler:
    """Measures this process at a fixed pace in a thread of its own, until it is closed."""

    def __init__(self, worker: int, log: Callable[[dict[str, float], int], None], every_seconds: float) -> None:
        """Start to measure.

        Args:
            worker: Rank of this process.
            log: Gets the metrics and their step: seconds since the epoch, so that a later process goes on behind it.
            every_seconds: Time between two measurements.
        """
        self._worker = worker
        self._log = log
        self._every_seconds = every_seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._work, name="system-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._done.set()
        self._thread.join(timeout=5)

    def _work(self) -> None:
        process = psutil.Process()
        process.cpu_percent()  # the first answer is always 0: it counts from the question before
        while not self._done.wait(self._every_seconds):
            usage = named(self._worker, process.cpu_percent(), process.memory_info().rss)
            self._log(usage, int(time.time()))
