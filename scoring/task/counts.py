"""Counters of tasks: those of one task while it runs, and those of all tasks of a job, merged on the driver."""

import os
import resource
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import SparkSession

from mirrorspark.scoring.backends import traced_functions
from mirrorspark.spark_session import TaskTotal, session_of


@dataclass
class TaskCounts:
    """Counters of one task. Seconds are counted by tasks that write files.

    Attributes:
        rows: Rows scored, including bad ones.
        read_seconds: Seconds in which rows were read.
        score_seconds: Seconds in which they were scored.
        write_seconds: Seconds in which the scores were encoded and written.
    """

    rows: int = 0
    read_seconds: float = 0.0
    score_seconds: float = 0.0
    write_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._began = self._counted_until = time.perf_counter()

    def end_of(self, work: Literal["read", "score", "write"]) -> None:
        """Count the time since the last call, or since the beginning, as seconds of this work."""
        now, name = time.perf_counter(), f"{work}_seconds"
        setattr(self, name, getattr(self, name) + now - self._counted_until)
        self._counted_until = now

    def report(self) -> dict[str, Any]:
        """Return the counters as JSON values.

        Added are the seconds of the task, the id of the process, and its peak resident memory in bytes.
        """
        numbers = {field.name: getattr(self, field.name) for field in fields(self)}
        return numbers | {
            "seconds": time.perf_counter() - self._began,
            "process": f"{socket.gethostname()}/{os.getpid()}",
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }


@dataclass
class ScoringCounts(TaskCounts):
    """Counters of one task that scores with models; their sums are described by :class:`JobCounters`."""

    loads: int = 0
    threads: int = 0
    bad_rows: int = 0
    calls: int = 0
    bytes: int = 0
    nans: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._functions: frozenset[str] | None = None
        self._traces = 0

    def pause(self) -> None:
        """Stop counting traced functions while a model is loaded."""
        self._traces = self._traced()
        self._functions = None

    def begin(self, *, loads: int, threads: int) -> None:
        """Count a loaded model, and count traced functions from here on."""
        self.loads += loads
        self.threads = max(self.threads, threads)
        self._functions = traced_functions()

    def _traced(self) -> int:
        return self._traces + (0 if self._functions is None else len(traced_functions() - self._functions))

    def count_call(self) -> None:
        """Count a call of the model."""
        self.calls += 1

    def add(self, batch: pa.RecordBatch, outputs: Mapping[str, pa.Array], *, bad_rows: int) -> None:
        """Count a batch that was scored."""
        self.rows += batch.num_rows
        self.bad_rows += bad_rows
        self.bytes += batch.nbytes
        self.nans += sum(_nans(column) for column in outputs.values())

    def report(self) -> dict[str, Any]:
        """Return the counters, with the number of functions that TensorFlow traced after loading."""
        return super().report() | {"traces": self._traced()}


def _nans(column: pa.Array) -> int:
    values = column.flatten() if pa.types.is_list(column.type) else column
    return pc.sum(pc.is_nan(values)).as_py() or 0 if pa.types.is_floating(values.type) else 0


# Counters that are merged by maximum; all others are added up.
_LARGEST = ("threads", "peak_memory_bytes")


@dataclass(frozen=True)
class MergedCounters:
    """Merged counters of the tasks of a job: each field is a sum over the tasks, or the largest value of a task.

    Attributes:
        processes: Number of Python workers.
    """

    tasks: int
    processes: int

    @classmethod
    def of(cls, reports: Iterable[Mapping[str, Any]]) -> Self:
        """Merge reports of :meth:`TaskCounts.report`."""
        totals: dict[str, Any] = {}
        for report in reports:
            _add(totals, _of_a_task(report))
        return cls.of_totals(totals)

    @classmethod
    def of_totals(cls, totals: Mapping[str, Any]) -> Self:
        """Return the counters whose totals are known; those without a total are 0."""
        numbers = {field.name: totals.get(field.name, 0) for field in fields(cls)}
        return cls(**numbers | {"processes": len(totals.get("process", ()))})


@dataclass(frozen=True)
class JobCounters(MergedCounters):
    """Merged counters of the tasks of a job.

    Attributes:
        processes: Number of Python workers.
        loads: Loads of models: one per process and model, unless the cache evicts it.
        traces: Functions that TensorFlow traced after a model was loaded: by Keras, hooks and the code of MLflow
            models. The graph of a model that was trained here cannot get more. Compilations by XLA are not counted.
        threads: Largest number of threads of a model.
        rows: Rows scored, including bad ones.
        bad_rows: Rows that could not be scored and have null scores.
        bytes: Size of the columns that were read.
        peak_memory_bytes: Largest resident memory of a process.
    """

    loads: int
    traces: int
    threads: int
    rows: int
    bad_rows: int
    calls: int
    bytes: int
    nans: int
    peak_memory_bytes: int


def _of_a_task(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a task's report in the form that :func:`_add` merges."""
    numbers = {name: value for name, value in report.items() if isinstance(value, int | float)}
    return numbers | {"tasks": 1, "process": {report["process"]}}


def _add(totals: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Merge ``more`` into ``totals`` and return them."""
    for name, value in more.items():
        if name not in totals:
            totals[name] = value
        elif name in _LARGEST:
            totals[name] = max(totals[name], value)
        else:
            totals[name] = totals[name] | value if isinstance(value, set) else totals[name] + value
    return totals


class Counters:
    """Collects the counters of the tasks of a scored DataFrame or a UDF, over all actions.

    Tasks that score no row are not counted. A task that Spark runs twice, speculatively or after a failure elsewhere,
    may be counted twice. The memory does not grow with the number of tasks.
    """

    def __init__(self, spark: SparkSession) -> None:
        self._reports: TaskTotal[dict[str, Any]] = session_of(spark).task_total({}, _add)

    def add(self, counts: ScoringCounts) -> None:
        """Add the counters of a task; called in the task."""
        self._reports.add(_of_a_task(counts.report()))

    @property
    def value(self) -> JobCounters:
        """The merged counters so far; read on the driver."""
        return JobCounters.of_totals(self._reports.value)
