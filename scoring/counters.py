"""What a task of scoring says of itself: how often it loaded the model, how much it scored, what it took."""

import os
import resource
import socket
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa


@dataclass
class Tally:
    """What one task does, counted as it goes.

    Attributes:
        loads: How often it loaded the model: once in the first task of a Python worker.
        threads: Threads that the model computes with.
        rows: Rows scored.
        calls: Calls of the model.
        bytes: Bytes of the columns that were read.
    """

    loads: int = 0
    threads: int = 0
    rows: int = 0
    calls: int = 0
    bytes: int = 0

    def add(self, batch: pa.RecordBatch, *, calls: int) -> None:
        """Count a batch that was scored."""
        self.rows += batch.num_rows
        self.calls += calls
        self.bytes += batch.nbytes

    def report(self) -> dict[str, Any]:
        """Return all of it, with the process and its largest resident memory so far in bytes, as JSON values."""
        return asdict(self) | {
            "process": f"{socket.gethostname()}/{os.getpid()}",
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }


@dataclass(frozen=True)
class JobCounters:
    """What the tasks of a job did together.

    Attributes:
        tasks: How many there were.
        processes: Python workers that took part.
        loads: Loads of the model: one for each process, unless other models crowd it out of the process's memory.
        threads: Most threads that a model computed with.
        rows: Rows scored.
        calls: Calls of the model.
        bytes: Bytes of the columns that were read.
        peak_memory_bytes: Largest resident memory of a process.
    """

    tasks: int
    processes: int
    loads: int
    threads: int
    rows: int
    calls: int
    bytes: int
    peak_memory_bytes: int

    @classmethod
    def of(cls, reports: Iterable[Mapping[str, Any]]) -> "JobCounters":
        """Add up what the tasks told with :meth:`Tally.report`."""
        tasks = list(reports)
        added = {name: sum(task[name] for task in tasks) for name in ("loads", "rows", "calls", "bytes")}
        largest = {name: max((task[name] for task in tasks), default=0) for name in ("threads", "peak_memory_bytes")}
        return cls(tasks=len(tasks), processes=len({task["process"] for task in tasks}), **added, **largest)
