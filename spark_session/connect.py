"""Sessions of Spark Connect, whose driver is a server: capabilities by the DataFrame API alone."""

import functools
import logging
import secrets
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from mirrorspark.spark_session.connect_jobs import JobsOverConnect
from mirrorspark.spark_session.connect_look import ConnectLook, is_refusal
from mirrorspark.spark_session.connect_plan import parquet_plan
from mirrorspark.spark_session.connect_totals import SharedTotal
from mirrorspark.spark_session.errors import first_line
from mirrorspark.spark_session.interpreter import is_local
from mirrorspark.spark_session.session import (
    CASE_SENSITIVE,
    MissingCapabilityError,
    ParquetPlan,
    StageTasks,
    StoreLook,
    TaskTotal,
)
from mirrorspark.storage import StoragePath, hadoop_uri

_LOGGER = logging.getLogger(__name__)

T = TypeVar("T")

_USE_CLASSIC = (
    "use a classic one: local[N], spark://, yarn or k8s:// as .master(...) in place of .remote(...), with the driver "
    "where this program runs"
)

SHARED_FOLDER = "spark.mirrorspark.sharedFolder"
"""Setting of a session: a folder to which this program and all tasks can write."""

MOST_BYTES = 64 << 20
"""Size of the rows that are sent to a server at a time."""

# Larger rows are sent apart from the plan, which a message of gRPC limits to 128 MB. A server of Spark 4.0 puts those
# below 64 MiB into the plan.
_CACHED_FROM = "spark.sql.session.localRelationCacheThreshold"
_CACHED_FROM_BYTES = 1 << 20  # of Spark 4.1


class ConnectSession(JobsOverConnect):
    """A session of Spark Connect."""

    kind = "Spark Connect"
    remedy = _USE_CLASSIC

    def __init__(self, spark: SparkSession) -> None:
        """Take the session; its server is asked on first use."""
        super().__init__(spark)
        self._explaining = threading.Lock()
        self._sending = threading.Lock()
        self._naming = threading.Lock()
        self._sent: set[str] = set()  # archives; not a setting, which a server may refuse
        self._suffix = secrets.token_hex(8)
        self._running: dict[str | None, Mapping[int, StageTasks]] = {}

    @property
    def master(self) -> str:
        """URL of the server, which has a cluster or local slots of its own."""
        session: Any = self._spark  # the stub is that of a classic session
        return f"sc://{session.client._builder.endpoint}"

    @property
    def tasks_share_packages(self) -> bool:
        """False: tasks use the server's packages, even on this machine."""
        return False

    @functools.cached_property
    def is_local(self) -> bool:
        """True if the server runs the tasks itself, and reads the files of this process."""
        if not is_local(self.setting("spark.master")):
            return False
        # A server of another machine or user does not read it.
        word, file = secrets.token_hex(16), StoragePath.of(self.files_folder / "is-read-by-the-server.txt")
        file.write_bytes(word.encode())
        try:
            found = self._spark.read.text(hadoop_uri(file)).first()
        except PySparkException as error:
            if is_refusal(error):
                return False
            raise
        return found is not None and found[0] == word

    def setting(self, name: str, default: str = "") -> str:
        """Return a setting of the session or of its server; the default where it is not shown to clients."""
        try:
            # The server refuses a default that is not of the setting's type, and logs that as an error.
            found = self._spark.conf.get(name, None)
        except PySparkException as error:
            if is_refusal(error):
                return default
            raise
        return default if found is None else str(found)

    def settings(self) -> Mapping[str, str]:
        """Return all settings of the session and its server."""
        return dict(self._spark.conf.getAll)

    def active_stages(self) -> Mapping[int, StageTasks]:
        """Return the stages of the queries that this process waits for, as the server reports them."""
        _ = self._has_handler
        return {number: stage for stages in list(self._running.values()) for number, stage in stages.items()}

    @functools.cached_property
    def _has_handler(self) -> bool:
        note: Any = self._note  # the stub's handlers may leave arguments out
        self._spark.registerProgressHandler(note)
        return True

    def _note(self, stages: Any, inflight_tasks: int, operation_id: str | None, done: bool) -> None:
        self._running.pop(operation_id, None)
        if not done:
            active = [stage for stage in stages if not stage.done]
            self._running[operation_id] = {
                stage.stage_id: StageTasks(stage.num_completed_tasks, stage.num_tasks) for stage in active
            }

    @functools.cached_property
    def files_folder(self) -> Path:
        """A folder of this process, removed at its end."""
        folder = tempfile.mkdtemp(prefix="mirrorspark-connect-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)

    def send_archive(self, name: str, pack: Callable[[Path], None]) -> str:
        """Upload an archive to the server, which sends it to the executors for this session alone."""
        # A task of a stream looks in the folders of all sessions.
        name = f"{name}-{self._suffix}"
        with self._sending:  # two threads may score with one model
            if name not in self._sent:
                archive = self.files_folder / f"{name}.packed.zip"
                pack(archive)
                self._spark.addArtifacts(f"{archive}#{name}", archive=True)
                archive.unlink(missing_ok=True)
                self._sent.add(name)
        return name

    def task_total(self, zero: T, merge: Callable[[T, T], T]) -> TaskTotal[T]:
        """Return a total in files, of the setting :data:`SHARED_FOLDER` unless tasks have this process's disk."""
        if not (shared := self._shared_folder):
            raise MissingCapabilityError(
                self.kind,
                "folder that tasks and this program share, for the totals that tasks add to",
                f"name one to which both can write: spark.conf.set('{SHARED_FOLDER}', 'a location')",
            )
        return SharedTotal.begin(StoragePath.of(shared) / f"total-{secrets.token_hex(8)}", zero, merge)

    @property
    def _shared_folder(self) -> str:
        return self.setting(SHARED_FOLDER) or (str(self.files_folder) if self.is_local else "")

    @property
    def ways(self) -> str:
        """This process's disk or archives of the session, and files in a shared folder."""
        by = "from this machine's disk" if self.is_local else "as archives of the session"
        back = "come back by files" if self._shared_folder else f"do not come back without {SHARED_FOLDER}"
        return f"{self.kind}, a server of Spark {self._spark.version}: models reach the tasks {by}, and counters {back}"

    def empty_table(self, schema: StructType) -> DataFrame:
        """Return the table of a task without rows: a literal one would be optimized to no partition."""

        def nothing(batches: Any) -> Any:
            return iter(batches)

        return self._spark.range(0, 0, 1, 1).mapInArrow(nothing, schema)

    def table_of(self, rows: pa.Table) -> DataFrame:
        """Return the rows sent in pieces: Databricks takes 128 MB at a time."""
        step = max(1, rows.num_rows * MOST_BYTES // max(rows.nbytes, 1))
        pieces = [rows.slice(start, step) for start in range(0, max(rows.num_rows, 1), step)]
        with self._rows_apart():
            return functools.reduce(DataFrame.union, map(self._spark.createDataFrame, pieces))

    @contextmanager
    def names_by_case(self) -> Iterator[SparkSession]:
        """Yield a clone, of a server that makes none the session with that setting for the block."""
        spark: Any = self._spark
        try:
            clone = spark.cloneSession()
        except (AttributeError, PySparkException):  # an older client or server
            with self._with_setting(CASE_SENSITIVE, "true", self._naming, lambda now: now != "true"):
                yield spark
            return
        try:
            try:
                clone.conf.set(CASE_SENSITIVE, "true")
            except PySparkException as error:
                _LOGGER.warning("names that differ in case alone are taken for one (%s)", first_line(error))
            yield clone
        finally:
            # Not its `stop`, which ends a server that PySpark has started for the session.
            with suppress(PySparkException):
                clone.client.release_session()
            clone.client.close()

    def _rows_apart(self) -> AbstractContextManager[None]:
        """Have PySpark send rows apart from the plan, where clients may set that."""
        return self._with_setting(
            _CACHED_FROM, str(_CACHED_FROM_BYTES), self._sending, lambda now: int(now or 0) > _CACHED_FROM_BYTES
        )

    @contextmanager
    def _with_setting(
        self, name: str, value: str, turn: threading.Lock, is_due: Callable[[str], bool]
    ) -> Iterator[None]:
        """Change a setting of the session for the block, where clients may do so and its value is not good enough."""
        conf, before = self._spark.conf, ""
        with turn:
            try:
                now = str(conf.get(name) or "")
                if is_due(now):
                    conf.set(name, value)
                    before = now
            except PySparkException as error:
                if not is_refusal(error):
                    raise
            try:
                yield
            finally:
                if before:
                    with suppress(PySparkException):  # of a server that was lost, the first error counts
                        conf.set(name, before)

    def parquet_plan(self, table: DataFrame) -> ParquetPlan:
        """Return the files of the only relation in the explained plan."""
        with self._explaining:
            return parquet_plan(self._spark, table, shares_disk=self.is_local)

    def store_look(self, paths: Sequence[str]) -> StoreLook:
        """Return the view of the server."""
        return ConnectLook(self._spark, paths, shares_disk=self.is_local)

    def give_checkpoints(self, folder: Path) -> None:
        """Pass: the server's own folder counts, and without one Spark keeps its plans whole."""
