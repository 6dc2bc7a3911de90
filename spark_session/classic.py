"""Classic sessions, whose driver is this process: capabilities by the Spark context and its JVM."""

import copy
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa
from py4j.protocol import Py4JError  # type: ignore[import-untyped]
from pyspark import AccumulatorParam, SparkContext, SparkFiles
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from mirrorspark.spark_session import versions
from mirrorspark.spark_session.hadoop_look import HadoopLook
from mirrorspark.spark_session.interfaces import interface_towards, is_every_interface
from mirrorspark.spark_session.interpreter import is_local
from mirrorspark.spark_session.parquet_plan import parquet_plan
from mirrorspark.spark_session.session import (
    CASE_SENSITIVE,
    ParquetPlan,
    Session,
    StageTasks,
    StoreLook,
    TaskTotal,
    at_most,
)
from mirrorspark.spark_session.silence import hide_interrupts

T = TypeVar("T")

_GROUP_PROPERTIES = ("spark.jobGroup.id", "spark.job.description", "spark.job.interruptOnCancel")
_POOL_PROPERTY = "spark.scheduler.pool"


class ClassicSession(Session):
    """A session with a Spark context in this process."""

    kind = "classic Spark"
    remedy = "use Spark 4.1 or later"
    has_context = True

    def __init__(self, spark: SparkSession) -> None:
        """Take the session; its context is looked up on first use."""
        self._spark = spark
        hide_interrupts()

    @property
    def _context(self) -> SparkContext:
        return self._spark.sparkContext

    @property
    def master(self) -> str:
        """URL of the cluster, or ``local[N]``."""
        return str(self._context.master)

    @property
    def is_local(self) -> bool:
        """True if the driver is the only executor: the master is ``local`` or ``local[...]``."""
        return is_local(self.master)

    @property
    def tasks_share_packages(self) -> bool:
        """True in a local session, whose tasks are children of this process."""
        return self.is_local

    @property
    def default_parallelism(self) -> int:
        """Spark's own number: all cores of the executors, unless the user sets another."""
        return self._context.defaultParallelism

    def task_slots(self) -> int:
        """Return the number of slots with which Spark's own check of barrier jobs compares."""
        # The private call has been there since Spark 2.4.
        context = self._context._jsc.sc()
        return int(context.maxNumConcurrentTasks(context.resourceProfileManager().defaultResourceProfile()))

    def setting(self, name: str, default: str = "") -> str:
        """Return an entry of the context's configuration."""
        return str(self._context.getConf().get(name, default))

    def settings(self) -> Mapping[str, str]:
        """Return the context's configuration."""
        return dict(self._context.getConf().getAll())

    @property
    def driver_address(self) -> str:
        """Loopback, or ``spark.driver.host``."""
        return "127.0.0.1" if self.is_local else self.setting("spark.driver.host")

    def bind_address(self) -> str:
        """Return loopback, ``spark.driver.bindAddress``, or the interface towards ``spark.driver.host``."""
        address = self.driver_address
        if self.is_local:
            return address
        bound = self.setting("spark.driver.bindAddress", address)
        return interface_towards(address) if is_every_interface(bound) else bound

    def driver_gpus(self, resource: str) -> tuple[str, ...]:
        """Return the addresses that the driver's discovery script has found."""
        found = self._context.resources.get(resource)
        return tuple(found.addresses) if found else ()

    def require_barrier_jobs(self) -> None:
        """Pass: every classic session can run them."""

    def run_barrier_job(
        self, body: Callable[[Iterable[Any]], Iterable[T]], tasks: int, *, timeout_seconds: float | None = None
    ) -> list[T]:
        """Run the body over an RDD of ``tasks`` partitions, under a tag by which the job is cancelled."""
        context = self._context
        tag = f"mirrorspark-{secrets.token_hex(8)}"
        context.addJobTag(tag)
        try:
            with at_most(timeout_seconds, partial(context.cancelJobsWithTag, tag)):
                return context.parallelize(range(tasks), tasks).barrier().mapPartitions(body).collect()
        finally:
            context.removeJobTag(tag)

    @contextmanager
    def job_group(self, group: str, description: str, pool: str | None = None) -> Iterator[None]:
        """Set the thread's local properties, and restore them."""
        context = self._context
        names = _GROUP_PROPERTIES if pool is None else (*_GROUP_PROPERTIES, _POOL_PROPERTY)
        before = {name: context.getLocalProperty(name) for name in names}
        context.setJobGroup(group, description, interruptOnCancel=True)
        if pool is not None:
            context.setLocalProperty(_POOL_PROPERTY, pool)
        try:
            yield
        finally:
            # A JVM that has died has nothing to restore, and its end is the error that the caller must see.
            with suppress(Py4JError, ConnectionError):
                for name, value in before.items():
                    context.setLocalProperty(name, value)  # type: ignore[arg-type] # None takes it away

    def cancel_jobs(self, group: str) -> None:
        """Cancel the jobs of a group."""
        versions.cancel_group(self._context, group)

    def active_stages(self) -> Mapping[int, StageTasks]:
        """Return the stages of Spark's status tracker."""
        tracker: Any = self._context.statusTracker()
        found = {stage: tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()}
        return {stage: StageTasks(info.numCompletedTasks, info.numTasks) for stage, info in found.items() if info}

    @property
    def files_folder(self) -> Path:
        """Folder from which Spark's file server sends files."""
        return Path(SparkFiles.getRootDirectory())

    def send_archive(self, name: str, pack: Callable[[Path], None]) -> str:
        """Have Spark's file server send an archive once to every executor; no shared disk is needed."""
        context = self._context
        if not any(archive.endswith(f"#{name}") for archive in context.listArchives):
            archive = self.files_folder / f"{name}.packed.zip"
            pack(archive)
            context.addArchive(f"{archive}#{name}")
        return name

    @property
    def task_environment(self) -> MutableMapping[str, str]:
        """The context's environment; a worker that was started with another one is never used again."""
        return self._context.environment

    def task_total(self, zero: T, merge: Callable[[T, T], T]) -> TaskTotal[T]:
        """Return an accumulator."""
        return self._context.accumulator(zero, _Merged(merge))

    @property
    def ways(self) -> str:
        """This process's disk or Spark's file server, and accumulators."""
        by = "from this machine's disk" if self.is_local else "by Spark's file server"
        return f"{self.kind}: models reach the tasks {by}, and counters come back by accumulators"

    @contextmanager
    def names_by_case(self) -> Iterator[SparkSession]:
        """Yield a clone: another setting of the session itself would change the queries of other threads."""
        # Not a new one of PySpark, to which tables of RDDs would belong from then on.
        session: Any = copy.copy(self._spark)
        session._jsparkSession = session._jsparkSession.cloneSession()
        session._jsparkSession.conf().set(CASE_SENSITIVE, "true")
        yield session

    def empty_table(self, schema: StructType) -> DataFrame:
        """Return a table of an RDD with one empty partition."""
        return self._spark.createDataFrame(self._context.parallelize([], 1), schema)

    def table_of(self, rows: pa.Table) -> DataFrame:
        """Return the DataFrame of the rows."""
        return versions.table_of(self._spark, rows)

    def parquet_plan(self, table: DataFrame) -> ParquetPlan:
        """Return the files of the relation in Spark's optimized plan."""
        return parquet_plan(table)

    def store_look(self, paths: Sequence[str]) -> StoreLook:
        """Return the view of Hadoop's file systems in the driver's JVM."""
        return HadoopLook(self._spark, paths)

    def give_checkpoints(self, folder: Path) -> None:
        """Set the context's folder of checkpoints."""
        if self._context.getCheckpointDir() is None:
            self._context.setCheckpointDir(str(folder))


class _Merged(AccumulatorParam[T], Generic[T]):
    """Merge of an accumulator's terms by a function, by whose name it pickles."""

    def __init__(self, merge: Callable[[T, T], T]) -> None:
        self._merge = merge

    def zero(self, value: T) -> T:
        return type(value)()

    def addInPlace(self, value1: T, value2: T) -> T:  # noqa: N802
        return self._merge(value1, value2)
