"""What a task of scoring says of itself: how often it loaded the model, how much it scored, what it took."""

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

from scoring.backends.tensorflow_runtime import traced_functions


@dataclass
class Tally:
    """What one task does, counted as it goes.

    Attributes:
        loads: How often it loaded a model: once in the first task of a Python worker.
        threads: Most threads that a model computes with.
        rows: Rows scored.
        bad_rows: Rows among them that could not be scored, and have nulls for scores.
        calls: Calls of the model.
        bytes: Bytes of the columns that were read.
        nans: Scores that are NaN.
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
        """Count no graphs until the next model is there: those that loading it makes are not of scoring."""
        self._traces = self._traced()
        self._functions = None

    def begin(self, *, loads: int, threads: int) -> None:
        """Count a model, which is there now; graphs are counted from here on."""
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
        """Return all of it as JSON values.

        With the functions that TensorFlow has traced since a model was there, the process, and its largest resident
        memory so far in bytes.
        """
        return asdict(self) | {
            "traces": self._traced(),
            "process": f"{socket.gethostname()}/{os.getpid()}",
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }


def _nans(column: pa.Array) -> int:
    values = column.flatten() if pa.types.is_list(column.type) else column
    return pc.sum(pc.is_nan(values)).as_py() or 0 if pa.types.is_floating(values.type) else 0


# Of these the largest counts; all others are added up.
_LARGEST = ("threads", "peak_memory_bytes")


@dataclass(frozen=True)
class JobCounters:
    """What the tasks of a job did together.

    Attributes:
        tasks: How many there were.
        processes: Python workers that took part.
        loads: Loads of models: one for each process and model, unless others crowd it out of the process's memory.
        traces: Functions that TensorFlow traced in the tasks' processes after a model was loaded: of Keras, hooks and
            what an MLflow model runs. None can come to the graph of a model that was trained here. What XLA compiles is
            not counted.
        threads: Most threads that a model computed with.
        rows: Rows scored.
        bad_rows: Rows among them that could not be scored, and have nulls for scores.
        calls: Calls of the model.
        bytes: Bytes of the columns that were read.
        nans: Scores that are NaN.
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
        """Add up what the tasks told with :meth:`Tally.report`."""
        told: dict[str, Any] = {}
        for report in reports:
            _add(told, _of_a_task(report))
        return cls._of_sum(told)

    @classmethod
    def _of_sum(cls, told: Mapping[str, Any]) -> "JobCounters":
        numbers = {field.name: told.get(field.name, 0) for field in fields(cls)}
        return cls(**numbers | {"processes": len(told.get("process", ()))})


def _of_a_task(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's report as something to add to."""
    return {**report, "tasks": 1, "process": {report["process"]}}


def _add(told: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Add what tasks told to what others did, and return that."""
    for name, value in more.items():
        if name not in told:
            told[name] = value
        elif name in _LARGEST:
            told[name] = max(told[name], value)
        else:
            told[name] = told[name] | value if isinstance(value, set) else told[name] + value
    return told


class Counters:
    """Collects what the tasks of a scored DataFrame, or of a UDF, say of themselves, over all actions.

    Tasks that score no row say nothing. A task that Spark runs twice, speculatively or after a failure elsewhere, may
    be counted twice. However many tasks there are, it holds one number for each.
    """

    def __init__(self, spark: SparkSession) -> None:
        self._reports: Accumulator[dict[str, Any]] = spark.sparkContext.accumulator({}, _ReportsParam())

    def add(self, tally: Tally) -> None:
        """Tell, in a task, what it did."""
        self._reports.add(_of_a_task(tally.report()))

    @property
    def value(self) -> JobCounters:
        """What has been told so far; asked on the driver."""
        return JobCounters._of_sum(self._reports.value)


class _ReportsParam(AccumulatorParam[dict[str, Any]]):
    def zero(self, value: dict[str, Any]) -> dict[str, Any]:
        return type(value)()

    def addInPlace(self, value1: dict[str, Any], value2: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return _add(value1, value2)
