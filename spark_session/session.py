"""The interface to a Spark session: capabilities that we need in addition to its tables and queries."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol, TypeVar

from mirrorspark.clear_error import ClearError
from mirrorspark.storage import StoragePath, lakes

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import StructType

T = TypeVar("T")

CASE_SENSITIVE = "spark.sql.caseSensitive"
"""Spark's setting that keeps names apart which differ in case alone."""


class MissingCapabilityError(ClearError, ValueError):
    """A session of this kind lacks an ability that a call needs."""

    def __init__(self, kind: str, capability: str, remedy: str) -> None:
        """Name the kind of session, the missing capability and the remedy."""
        super().__init__(f"the session is one of {kind}, which has no {capability}; {remedy}")
        self._said = (kind, capability, remedy)

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        """Pickle the three parts, not the message."""
        return type(self), self._said


class NotPlainParquetError(ClearError, ValueError):
    """A DataFrame does not only select columns of plain Parquet files; the message gives the reason."""


@dataclass(frozen=True)
class ParquetPlan:
    """Files that a DataFrame reads, as Spark writes their paths.

    Attributes:
        files: URIs, percent-encoded.
        roots: Folders, files and globs that Spark was given.
    """

    files: tuple[str, ...]
    roots: tuple[str, ...]


@dataclass(frozen=True)
class StageTasks:
    """Tasks of a stage that runs."""

    done: int
    total: int


@contextmanager
def at_most(seconds: float | None, cancel: Callable[[], object]) -> Iterator[None]:
    """Call ``cancel``, from another thread, if the block takes longer; never where ``seconds`` is None."""
    timer = None if seconds is None else threading.Timer(seconds, cancel)
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()


class TaskTotal(Protocol[T]):
    """A total that tasks add to and that the driver reads; Spark's accumulators are such totals."""

    @property
    def value(self) -> T:
        """The total so far; on the driver."""

    def add(self, term: T, /) -> None:
        """Add a term; in a task."""


class StoreLook(lakes.Look, Protocol):
    """Spark's own view of stores, with its connectors and credentials."""

    def matching(self, path: str) -> list[StoragePath]:
        """Return the files and folders that a path or a glob names; the path itself if there are none."""


class Session:
    """A Spark session's capabilities. Each kind of session overrides those that it has; the others are refused.

    Attributes:
        kind: Name of the kind, for messages.
        remedy: Advice for a user whose session of this kind lacks something.
        has_context: The Spark context is in this process, so that libraries can use it.

    Raises:
        MissingCapabilityError: Sessions of this kind lack what a call or a property needs.
    """

    kind: ClassVar[str]
    remedy: ClassVar[str]
    has_context: ClassVar[bool] = False

    def _refuse(self, capability: str) -> NoReturn:
        raise MissingCapabilityError(self.kind, capability, self.remedy)

    # The cluster and the driver

    @property
    def master(self) -> str:
        """URL of the cluster, or ``local[N]``."""
        self._refuse("master")

    @property
    def is_local(self) -> bool:
        """True if the driver is the only executor, so that tasks have its files.

        ``local-cluster[...]`` does not count, because it has separate executors.
        """
        self._refuse("master")

    @property
    def tasks_share_packages(self) -> bool:
        """True if tasks run with the interpreter and the packages of this process."""
        self._refuse("master")

    @property
    def default_parallelism(self) -> int:
        """Number of tasks that Spark takes for a full cluster: its cores."""
        self._refuse("default parallelism")

    def task_slots(self) -> int:
        """Return the number of barrier tasks that can run at once now."""
        self._refuse("number of task slots")

    def setting(self, name: str, default: str = "") -> str:
        """Return a setting that the session was started with."""
        self._refuse("settings of its driver")

    def settings(self) -> Mapping[str, str]:
        """Return all settings that the session was started with."""
        self._refuse("settings of its driver")

    @property
    def driver_address(self) -> str:
        """Address at which executors reach the driver: loopback for a local session.

        On a cluster it is ``spark.driver.host``. Behind a service, a bridge or a load balancer this is not always an
        interface of this machine; listen on :meth:`bind_address`.
        """
        self._refuse("address of its driver")

    def bind_address(self) -> str:
        """Return the interface on which the driver listens: ``spark.driver.bindAddress`` if that names one.

        On Kubernetes it is usually 0.0.0.0, all interfaces. Then the interface with the address ``spark.driver.host``
        is taken, or else the one on the route to it.

        Raises:
            DriverAddressError: There is no such interface.
        """
        self._refuse("address of its driver")

    def driver_gpus(self, resource: str) -> tuple[str, ...]:
        """Return the addresses of the driver's GPUs, by the name of their resource."""
        self._refuse("resources of its driver")

    # Jobs

    def require_barrier_jobs(self) -> None:
        """Check that the session can run barrier jobs."""
        self._refuse("barrier jobs")

    def run_barrier_job(
        self, body: Callable[[Iterable[Any]], Iterable[T]], tasks: int, *, timeout_seconds: float | None = None
    ) -> list[T]:
        """Run ``body`` in barrier tasks, which all start at once, and return the values that they yield.

        Args:
            body: The body of a task.
            tasks: Number of tasks.
            timeout_seconds: The job is cancelled when it takes longer; None for no limit.
        """
        self._refuse("barrier jobs")

    def job_group(self, group: str, description: str, pool: str | None = None) -> AbstractContextManager[None]:
        """Return a context in which jobs of this thread belong to a group; at its end the former group is restored.

        Args:
            group: Name for :meth:`cancel_jobs`.
            description: Shown in Spark's UI.
            pool: Pool of the scheduler; where this is fair, pools share the cores.
        """
        self._refuse("job groups")

    def cancel_jobs(self, group: str) -> None:
        """Cancel all jobs of a group, from Spark 4.0 on also those to be submitted; call it from another thread."""
        self._refuse("job groups")

    def active_stages(self) -> Mapping[int, StageTasks]:
        """Return the stages that run now, by their numbers."""
        self._refuse("progress of its jobs")

    # Inputs and results of tasks

    @property
    def files_folder(self) -> Path:
        """The driver's folder for files that tasks get; it lasts as long as the application."""
        self._refuse("folder for files that tasks get")

    def send_archive(self, name: str, pack: Callable[[Path], None]) -> str:
        """Have every executor unpack an archive, once, unless one of this name was sent before.

        Args:
            name: Name of its content.
            pack: Writes the ZIP archive to a path.

        Returns:
            The name by which a task finds it with :func:`spark_session.archive_folder`.
        """
        self._refuse("archives for tasks")

    @property
    def task_environment(self) -> MutableMapping[str, str]:
        """Environment of the Python workers that Spark starts from now on."""
        self._refuse("environment of its tasks")

    def task_total(self, zero: T, merge: Callable[[T, T], T]) -> TaskTotal[T]:
        """Return a total that tasks add to, over all jobs.

        Args:
            zero: The empty total; calling its type returns another one.
            merge: A top-level function that adds its second argument to its first one.
        """
        self._refuse("totals that tasks add to")

    @property
    def ways(self) -> str:
        """The ways by which its tasks get models and return their counters, in a line."""
        self._refuse("ways to its tasks")

    # Tables and stores

    def empty_table(self, schema: "StructType") -> "DataFrame":
        """Return a table without rows in one partition: Spark starts a task for it."""
        self._refuse("tables of one empty partition")

    def table_of(self, rows: "pa.Table") -> "DataFrame":
        """Return the table of rows in this process's memory."""
        self._refuse("tables of this process's rows")

    def names_by_case(self) -> AbstractContextManager["SparkSession"]:
        """Return a case-sensitive session for the block, for a look at the columns of tables.

        It is the session as it is where a server refuses the setting.
        """
        self._refuse("names by case")

    def parquet_plan(self, table: "DataFrame") -> ParquetPlan:
        """Return the Parquet files that ``table`` reads, by Spark's plan.

        Raises:
            NotPlainParquetError: It does not only select columns of plain Parquet files.
        """
        self._refuse("query plans to look into")

    def store_look(self, paths: Sequence[str]) -> StoreLook:
        """Return Spark's view of the stores of ``paths``, which are written as ``spark.read`` takes them."""
        self._refuse("file systems of its own in this process")

    def give_checkpoints(self, folder: Path) -> None:
        """Set the folder of Spark's checkpoints, which cut its plans, if the session has none.

        Args:
            folder: A folder to which all executors can write; Spark creates it.
        """
        self._refuse("checkpoints")
