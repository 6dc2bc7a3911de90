"""Counters of scoring tasks: loads of the model, rows, calls, memory."""

import os
import resource
import socket
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyspark import Accumulator, AccumulatorParam
from pyspark.sql import SparkSession

from mirrorspark.scoring.backends.tensorflow_runtime import traced_functions


@dataclass
class Tally:
    """Counters of one task.

    Attributes:
        loads: Loads of a model: one in the first task of a Python worker.
        threads: Largest number of threads of a model.
        rows: Rows scored, including bad ones.
        bad_rows: Rows that could not be scored and have null scores.
        bytes: Size of the columns that were read.
    """

    loads: int = 0
    threads: int = 0
    rows: int = 0
    bad_rows: int = 0
    calls: int = 0
    bytes: int = 0
    nans: int = 0

    def __post_init__(self) -> None:
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
        """Return the counters as JSON values.

        Added are the number of functions that TensorFlow traced after loading, the id of the process, and its peak
        resident memory in bytes.
        """
        return asdict(self) | {
            "traces": self._traced(),
            "process": f"{socket.gethostname()}/{os.getpid()}",
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }


def _nans(column: pa.Array) -> int:
    values = column.flatten() if pa.types.is_list(column.type) else column
    return pc.sum(pc.is_nan(values)).as_py() or 0 if pa.types.is_floating(values.type) else 0


# Counters that are merged by maximum; all others are added up.
_LARGEST = ("threads", "peak_memory_bytes")


@dataclass(frozen=True)
class JobCounters:
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

    tasks: int
    processes: int
    loads: int
    traces: int
    threads: int
    rows: int
    bad_rows: int
    calls: int
    bytes: int
    nans: int
    peak_memory_bytes: int

    @classmethod
    def of(cls, reports: Iterable[Mapping[str, Any]]) -> "JobCounters":
        """Merge reports of :meth:`Tally.report`."""
        totals: dict[str, Any] = {}
        for report in reports:
            _add(totals, _of_a_task(report))
        return cls._of_sum(totals)

    @classmethod
    def _of_sum(cls, totals: Mapping[str, Any]) -> "JobCounters":
        numbers = {field.name: totals.get(field.name, 0) for field in fields(cls)}
        return cls(**numbers | {"processes": len(totals.get("process", ()))})


def _of_a_task(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's report in the form that :func:`_add` merges."""
    return {**report, "tasks": 1, "process": {report["process"]}}


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
        self._reports: Accumulator[dict[str, Any]] = spark.sparkContext.accumulator({}, _ReportsParam())

    def add(self, tally: Tally) -> None:
        """Add the counters of a task; called in the task."""
        self._reports.add(_of_a_task(tally.report()))

    @property
    def value(self) -> JobCounters:
        """The merged counters so far; read on the driver."""
        return JobCounters._of_sum(self._reports.value)


class _ReportsParam(AccumulatorParam[dict[str, Any]]):
    def zero(self, value: dict[str, Any]) -> dict[str, Any]:
        return type(value)()

    def addInPlace(self, value1: dict[str, Any], value2: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return _add(value1, value2)
