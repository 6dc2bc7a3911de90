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
from functools import cached_property, partial
from typing import Any, TypeVar

import pyarrow as pa
from pyspark import cloudpickle
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name every Spark user knows

from mirrorspark.spark_session.errors import first_line
from mirrorspark.spark_session.interfaces import interface_towards
from mirrorspark.spark_session.session import MissingCapabilityError, Session

T = TypeVar("T")

_LOOPBACK = "127.0.0.1"
# A job that is about to be submitted has no tag yet on the server, so it is looked for again.
_INTERRUPT_SECONDS = 0.5
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
        self._lock = threading.Lock()

    @property
    def default_parallelism(self) -> int:
        """The partitions of a range: all cores of the executors, unless the user sets another number."""
        plan: Any = self._spark.range(1 << 20)
        # The plan shows them without a job.
        shown = re.search(r"splits=Some\((\d+)\)", plan._explain_string(mode="extended"))
        return int(shown[1]) if shown else plan.select(F.spark_partition_id()).distinct().count()

    def task_slots(self) -> int:
        """Return the cores of the executors by the cores of a task: clients do not learn how many tasks run at once."""
        return self.default_parallelism // int(self.setting("spark.task.cpus", "1"))

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
        """Run an empty one, once for the session: only the server knows whether it takes them."""
        if self._barrier_problem is not None:
            raise MissingCapabilityError(self.kind, f"barrier jobs ({self._barrier_problem})", _WITHOUT_BARRIERS)

    @cached_property
    def _barrier_problem(self) -> str | None:
        try:
            self.run_barrier_job(iter, 1, timeout_seconds=_PROBE_SECONDS)
        except PySparkException as error:
            return first_line(error)
        return None

    def run_barrier_job(
        self, body: Callable[[Iterable[Any]], Iterable[T]], tasks: int, *, timeout_seconds: float | None = None
    ) -> list[T]:
        """Run the body in the tasks of a query, under a tag by which it is interrupted."""
        spark, tag = self._spark, f"mirrorspark-{secrets.token_hex(8)}"
        query = spark.range(0, tasks, 1, tasks).mapInArrow(
            partial(_as_rows, body), "task long, value binary", barrier=True
        )
        timer = threading.Timer(timeout_seconds or 0, spark.interruptTag, (tag,))
        timer.daemon = True
        spark.addTag(tag)
        if timeout_seconds is not None:
            timer.start()
        try:
            rows = query.collect()
        except BaseException:
            # Ctrl-C ends only the waiting: the server would go on.
            with suppress(PySparkException):
                spark.interruptTag(tag)
            raise
        finally:
            timer.cancel()
            spark.removeTag(tag)
        return [pickle.loads(row.value) for row in sorted(rows, key=lambda row: row.task)]  # noqa: S301 - of our tasks

    @contextmanager
    def job_group(self, group: str, description: str, pool: str | None = None) -> Iterator[None]:
        """Tag the queries of this thread; Spark Connect takes no description and no pool."""
        with self._lock:
            self._members[group] += 1
        self._spark.addTag(group)
        try:
            yield
        finally:
            self._spark.removeTag(group)
            with self._lock:
                self._members[group] -= 1

    def cancel_jobs(self, group: str) -> None:
        """Interrupt the queries of a group until its blocks have ended."""
        threading.Thread(target=self._interrupt, args=(group,), name="interrupt", daemon=True).start()

    def _interrupt(self, group: str) -> None:
        while self._members[group]:
            with suppress(PySparkException):  # a server that was lost runs nothing
                self._spark.interruptTag(group)
            time.sleep(_INTERRUPT_SECONDS)


def _as_rows(
    body: Callable[[Iterable[Any]], Iterable[T]], batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Yield the values of a task as rows."""
    numbers = [number for batch in batches for number in batch.column(0).to_pylist()]
    values = [cloudpickle.dumps(value) for value in body(numbers)]
    columns = [pa.array(numbers * len(values), pa.int64()), pa.array(values, pa.binary())]
    yield pa.record_batch(columns, names=["task", "value"])
