"""Jobs over Spark Connect: barrier jobs as queries over one row per task, and cancellation by tags."""

import ipaddress
import pickle
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
from pyspark import cloudpickle
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.spark_session.errors import SparkStartError, first_line, lost_server, lost_session
from mirrorspark.spark_session.interfaces import interface_towards
from mirrorspark.spark_session.session import MissingCapabilityError, Session, at_most

T = TypeVar("T")

_LOOPBACK = "127.0.0.1"
# A job that is about to be submitted has no tag yet on the server, so it is looked for again.
_INTERRUPT_SECONDS = 0.5
_SENDING_SECONDS = 5.0
# Of a job that was cancelled at its limit, or lost, or whose task failed: a server that refuses one starts none.
_SIGNS_OF_PASSING = ("OPERATION_CANCELED", "INVALID_HANDLE", "failed barrier ResultStage")
_PROBE_SECONDS = 120.0  # the first Python worker of a session starts in it
_WITHOUT_BARRIERS = (
    "train on a cluster of your own (on Databricks of dedicated access), or in one process of this machine: "
    "workers=1, local_mode=True (--workers 1 --local-mode)"
)


class JobsOverConnect(Session):
    """The part of a Spark Connect session that concerns jobs, and the way of their tasks to this process."""

    def __init__(self, spark: SparkSession) -> None:
        """Take the session."""
        self._spark = spark
        self._members = Counter[str]()  # threads in a group's blocks
        self._cancelled = set[str]()
        self._has_barriers = False
        self._lock = threading.Lock()

    @property
    def default_parallelism(self) -> int:
        """The partitions of a range: all cores of the executors, unless the server has another number for it."""
        plan: Any = self._spark.range(1 << 20)
        # The plan shows them without a job.
        shown = re.search(r"splits=Some\((\d+)\)", plan._explain_string(mode="extended"))
        return int(shown[1]) if shown else plan.select(F.spark_partition_id()).distinct().count()

    def task_slots(self) -> int:
        """Return the cores of the executors by the cores of a task: clients do not learn how many tasks run at once."""
        of_task = int(self.setting("spark.task.cpus", "1"))
        of_executor, executors = (self.setting(f"spark.executor.{name}") for name in ("cores", "instances"))
        is_set = any(map(self.setting, ("spark.default.parallelism", "spark.sql.leafNodeDefaultParallelism")))
        if is_set and of_executor and executors:
            return int(of_executor) // of_task * int(executors)
        if is_set and (local := re.match(r"local\[(\d+)", self.setting("spark.master"))):
            return int(local[1]) // of_task
        return self.default_parallelism // of_task

    @property
    def driver_address(self) -> str:
        """This machine's interface on the route to the server, whose network the executors are on."""
        session: Any = self._spark  # the stub is that of a classic session
        host = session.client.host
        with suppress(ValueError):
            if ipaddress.ip_address(host.strip("[]")).is_loopback:
                return _LOOPBACK
        return _LOOPBACK if host == "localhost" else interface_towards(host)

    def bind_address(self) -> str:
        """Return the same interface."""
        return self.driver_address

    def driver_gpus(self, resource: str) -> tuple[str, ...]:
        """Return none: Spark does not count the GPUs of a client."""
        return ()

    def require_barrier_jobs(self) -> None:
        """Run an empty one, until one has succeeded: only the server knows whether it takes them.

        Raises:
            MissingCapabilityError: It refuses them.
            SparkStartError: It did not run the job in time, or is lost.
        """
        if self._has_barriers:
            return
        try:
            self.run_barrier_job(iter, 1, timeout_seconds=_PROBE_SECONDS)
        except PySparkException as error:
            problem = lost_session(str(error)) or first_line(error)
            if _is_passing(error):
                raise SparkStartError(
                    f"a barrier job of one task did not run ({problem}); the logs of its executors say why; try again"
                ) from error
            raise MissingCapabilityError(self.kind, f"barrier jobs ({problem})", _WITHOUT_BARRIERS) from error
        self._has_barriers = True

    def run_barrier_job(
        self, body: Callable[[Iterable[Any]], Iterable[T]], tasks: int, *, timeout_seconds: float | None = None
    ) -> list[T]:
        """Run the body in the tasks of a query, under a tag by which it is interrupted."""
        spark, tag = self._spark, f"mirrorspark-{secrets.token_hex(8)}"
        query = spark.range(0, tasks, 1, tasks).mapInArrow(
            partial(_as_rows, body), "task long, value binary", barrier=True
        )
        spark.addTag(tag)
        try:
            with at_most(timeout_seconds, partial(spark.interruptTag, tag)):
                rows = query.collect()
        except BaseException as error:
            # Ctrl-C ends only the waiting: the server would go on.
            if not isinstance(error, PySparkException):
                in_time(partial(spark.interruptTag, tag))
            raise
        finally:
            spark.removeTag(tag)
        return [pickle.loads(row.value) for row in sorted(rows, key=lambda row: row.task)]  # noqa: S301 - of our tasks

    @contextmanager
    def job_group(self, group: str, description: str, pool: str | None = None) -> Iterator[None]:
        """Tag the queries of this thread; Spark Connect takes no description and no pool."""
        with self._lock:
            self._members[group] += 1
            is_cancelled = group in self._cancelled and self._members[group] == 1
        self._spark.addTag(group)
        if is_cancelled:
            self._start_interrupting(group)
        try:
            yield
        finally:
            self._spark.removeTag(group)
            with self._lock:
                self._members[group] -= 1

    def cancel_jobs(self, group: str) -> None:
        """Interrupt the queries of a group until its blocks have ended, and those of later blocks."""
        with self._lock:
            is_new = group not in self._cancelled
            self._cancelled.add(group)
            is_running = self._members[group] > 0
        if is_new and is_running:
            self._start_interrupting(group)

    def _start_interrupting(self, group: str) -> None:
        threading.Thread(target=self._interrupt, args=(group,), name="interrupt", daemon=True).start()

    def _interrupt(self, group: str) -> None:
        while self._members[group]:
            with suppress(PySparkException):  # a server that was lost runs nothing
                self._spark.interruptTag(group)
            time.sleep(_INTERRUPT_SECONDS)


def in_time(interrupt: Callable[[], object]) -> None:
    """Send an interrupt, and go on after some seconds: the client of a server that is lost tries for ten minutes."""

    def send() -> None:
        with suppress(PySparkException):
            interrupt()

    sending = threading.Thread(target=send, name="interrupt", daemon=True)
    sending.start()
    sending.join(_SENDING_SECONDS)


def _is_passing(error: PySparkException) -> bool:
    """Return True for a job that was cancelled at its limit, one whose task failed, and a server that is lost."""
    text = str(error)
    return lost_server(text) is not None or any(sign in text for sign in _SIGNS_OF_PASSING)


def _as_rows(
    body: Callable[[Iterable[Any]], Iterable[T]], batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Yield the values of a task as rows."""
    numbers = [number for batch in batches for number in batch.column(0).to_pylist()]
    values = [cloudpickle.dumps(value) for value in body(numbers)]
    columns = [pa.array(numbers * len(values), pa.int64()), pa.array(values, pa.binary())]
    yield pa.record_batch(columns, names=["task", "value"])
