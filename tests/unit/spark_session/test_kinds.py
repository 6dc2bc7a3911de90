"""Abilities of a session in addition to its tables, by its kind; a missing one is refused in one way."""

import logging
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from py4j.protocol import Py4JError, Py4JJavaError
from pyspark import BarrierTaskContext, BarrierTaskInfo, SparkFiles, TaskContext, accumulators, cloudpickle
from pyspark.accumulators import Accumulator
from pyspark.errors import PySparkException
from pyspark.resource import ResourceInformation
from pyspark.sql import DataFrame

from mirrorspark.spark_session import connect, kinds, task
from mirrorspark.spark_session.classic import ClassicSession
from mirrorspark.spark_session.connect import ConnectSession
from mirrorspark.spark_session.connect_jobs import JobsOverConnect
from mirrorspark.spark_session.connect_look import ConnectLook
from mirrorspark.spark_session.hadoop_look import HadoopLook
from mirrorspark.spark_session.kinds import session_of
from mirrorspark.spark_session.session import MissingCapabilityError, NotPlainParquetError, Session, StageTasks
from mirrorspark.spark_session.silence import hide_interrupts
from mirrorspark.spark_session.stopped import StoppedSessionError, on_running_session
from mirrorspark.storage import StoragePath


def test_a_session_that_was_stopped_is_refused_with_the_remedy() -> None:
    for stopped in (SimpleNamespace(sparkContext=SimpleNamespace(_jsc=None)), None):
        with pytest.raises(
            StoppedSessionError, match=r"session was stopped; start another one .* read the tables again"
        ):
            session_of(stopped)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Py4JError("Gateway must be connected to send cancel cmd.")])
def test_an_interrupt_leaves_a_function_without_the_stack_of_py4j(error: BaseException) -> None:
    error.__context__ = KeyboardInterrupt()

    def interrupted() -> None:
        raise error

    with pytest.raises(KeyboardInterrupt) as raised:
        on_running_session(interrupted)()
    assert raised.value.__context__ is None


def test_an_error_while_an_earlier_interrupt_is_handled_is_shown() -> None:
    @on_running_session
    def failing() -> None:
        raise ValueError("no such column")

    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        with pytest.raises(ValueError, match="no such column"):
            failing()


def test_a_stopped_session_of_spark_connect_and_its_tables_are_refused() -> None:
    stopped = type("SparkSession", (), {"is_stopped": True})()
    table = type("DataFrame", (), {"sparkSession": stopped})()
    for value in (stopped, table):
        with pytest.raises(StoppedSessionError):
            on_running_session(lambda given: given)(value)


@pytest.mark.process
def test_the_check_of_a_session_imports_no_pyspark() -> None:
    program = (
        "import sys\n"
        "import mirrorspark.lifecycle.experiments.units.assignment\n"
        "import mirrorspark.lifecycle.experiments.policies.off_policy\n"
        "assert 'pyspark' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_py4j_logs_no_stack_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    hide_interrupts()
    for words in ("KeyboardInterrupt while sending command.", "Exception while sending command.", "another"):
        logging.error(words)
    assert caplog.messages == ["another"]


CAPABILITIES = [name for name in vars(Session) if not name.startswith("_")]
# A server sets the environment of its tasks itself.
NOT_OVER_CONNECT = {"task_environment": ()}


class Context:
    """A context that notes the local properties of its thread, and the jobs that are cancelled."""

    master = "spark://host:7077"

    def __init__(self) -> None:
        self.properties: dict[str, str | None] = {"spark.scheduler.pool": "the notebook's own"}
        self.cancelled: list[str] = []
        self._jsc = SimpleNamespace(sc=lambda: SimpleNamespace(cancelJobGroupAndFutureJobs=self.cancelled.append))

    def getLocalProperty(self, name: str) -> str | None:  # noqa: N802 - PySpark's name
        return self.properties.get(name)

    def setLocalProperty(self, name: str, value: str | None) -> None:  # noqa: N802 - PySpark's name
        self.properties[name] = value

    def setJobGroup(self, group: str, description: str, interruptOnCancel: bool) -> None:  # noqa: N802, N803 - likewise
        self.properties |= {"spark.jobGroup.id": group, "spark.job.description": description}


def classic(**context: Any) -> Session:
    spark: Any = SimpleNamespace(sparkContext=SimpleNamespace(**context))
    return session_of(spark)


def test_a_session_with_a_context_is_a_classic_one_and_has_every_capability() -> None:
    assert isinstance(classic(), ClassicSession)
    assert [name for name in CAPABILITIES if name not in vars(ClassicSession)] == []


class Client:
    """A session of Spark Connect that is asked for nothing."""

    session_id, is_stopped = "e1f0", False


def test_a_session_of_spark_connect_has_all_but_few_capabilities_and_is_remembered_until_it_is_stopped() -> None:
    client: Any = Client()
    session = session_of(client)
    assert isinstance(session, ConnectSession)
    assert session_of(client) is session
    assert not session.tasks_share_packages
    own = vars(ConnectSession) | vars(JobsOverConnect)
    assert [name for name in CAPABILITIES if name not in own and name not in NOT_OVER_CONNECT] == ["has_context"]
    client.is_stopped = True
    another: Any = Client()
    another.session_id = "e1f1"
    session_of(another)
    assert [*kinds._OVER_CONNECT] == ["e1f1"]


@pytest.mark.parametrize(("name", "arguments"), NOT_OVER_CONNECT.items())
def test_what_a_session_of_spark_connect_lacks_is_refused_with_the_way_out(name: str, arguments: tuple[Any]) -> None:
    session: Any = ConnectSession(Client())  # type: ignore[arg-type]
    with pytest.raises(
        MissingCapabilityError, match=r"one of Spark Connect, which has no .+; use a classic one"
    ) as found:
        getattr(session, name)(*arguments)
    again = pickle.loads(pickle.dumps(found.value))  # noqa: S301 - our own
    assert (type(again), str(again)) == (MissingCapabilityError, str(found.value))


def test_totals_over_spark_connect_need_a_folder_that_tasks_share_with_the_client() -> None:
    session: Any = ConnectSession(Client())  # type: ignore[arg-type]
    session.is_local, session.setting = False, lambda name, default="": default
    with pytest.raises(MissingCapabilityError) as found:
        session.task_total({}, dict)
    assert str(found.value) == (
        "the session is one of Spark Connect, which has no folder that tasks and this program share, for the totals "
        "that tasks add to; name one to which both can write: "
        "spark.conf.set('spark.mirrorspark.sharedFolder', 'a location')"
    )


# SQLSTATE, message, and whether the server has answered, as servers of Spark 4.3 and Databricks say it.
ANSWERS = [
    ("42K0I", "[CONFIG_NOT_AVAILABLE] Configuration x is not available.", True),
    ("42K03", "[PATH_NOT_FOUND] Path does not exist: file:/x.", True),
    ("42501", "[INSUFFICIENT_PERMISSIONS] Insufficient privileges:", True),
    (None, '(org.apache.hadoop.fs.UnsupportedFileSystemException) No FileSystem for scheme "gs"', True),
    (None, "(java.lang.RuntimeException) java.lang.ClassNotFoundException: Class org.x.S3AFileSystem not found", True),
    (None, "(java.nio.file.AccessDeniedException) s3a://x: 403 Forbidden", True),
    (None, "(java.net.ConnectException) Call to store:1 failed: Connection refused", False),
    ("08003", "(org.apache.spark.SparkSQLException) [INVALID_HANDLE.SESSION_CLOSED] The handle is invalid.", False),
    ("HY000", "(org.apache.spark.SparkSQLException) [INVALID_HANDLE.SESSION_NOT_FOUND] The handle is invalid.", False),
    (None, "<_InactiveRpcError: StatusCode.UNAVAILABLE, failed to connect to all addresses>", False),
    (None, "[RETRIES_EXCEEDED] The maximum number of retries has been exceeded.", False),
]


@pytest.mark.parametrize(("state", "message", "is_answered"), ANSWERS)
def test_only_an_answer_of_the_server_means_that_there_is_no_setting_and_no_table(
    state: str | None, message: str, is_answered: bool, tmp_path: Path
) -> None:
    class Refused(PySparkException):
        def getSqlState(self) -> str | None:  # type: ignore[override] # noqa: N802 - PySpark's name
            return state

    class Failing(Client):
        @property
        def conf(self) -> Any:
            return SimpleNamespace(get=self._fail)

        @property
        def read(self) -> Any:
            return SimpleNamespace(text=self._fail, format=lambda _: SimpleNamespace(load=self._fail))

        def _fail(self, *_: str) -> Any:
            raise Refused(message)

    spark: Any = Failing()
    session: Any = ConnectSession(spark)
    local: Any = ConnectSession(spark)
    local.setting = lambda _: "local[2]"
    look = ConnectLook(spark, [], shares_disk=False)
    for call, otherwise in (
        (lambda: session.setting("x", "none"), "none"),
        (lambda: local.is_local, False),
        (lambda: look.folders([StoragePath.of(tmp_path)]), set()),
    ):
        if is_answered:
            assert call() == otherwise
        else:
            with pytest.raises(Refused):
                call()
    table: Any = SimpleNamespace(isStreaming=False)
    with pytest.raises(NotPlainParquetError if is_answered else Refused):
        session.parquet_plan(table)


@pytest.mark.parametrize(
    ("kind", "message", "is_answered"),
    [
        ("org.apache.hadoop.fs.UnsupportedFileSystemException", 'No FileSystem for scheme "gs"', True),
        ("java.lang.RuntimeException", "java.lang.ClassNotFoundException: Class org.x.S3A not found", True),
        ("java.nio.file.AccessDeniedException", "s3a://x: 403 Forbidden", True),
        ("java.io.IOException", "Invalid directory or I/O error occurred for dir: /x", True),
        ("java.net.ConnectException", "Call to store:1 failed: Connection refused", False),
        ("java.io.IOException", "Filesystem closed", False),
    ],
)
def test_hadoop_has_no_table_where_it_cannot_open_a_path_and_an_error_where_the_store_fails(
    kind: str, message: str, is_answered: bool, tmp_path: Path
) -> None:
    java = SimpleNamespace(
        _target_id="o1", getClass=lambda: SimpleNamespace(getName=lambda: kind), getMessage=lambda: message
    )

    def fail(_: Any) -> Any:
        raise Py4JJavaError("An error occurred", java)

    paths = SimpleNamespace(Path=lambda _: SimpleNamespace(getFileSystem=fail))
    jvm = SimpleNamespace(org=SimpleNamespace(apache=SimpleNamespace(hadoop=SimpleNamespace(fs=paths))))
    state = SimpleNamespace(newHadoopConf=lambda: None)
    spark: Any = SimpleNamespace(_jvm=jvm, _jsparkSession=SimpleNamespace(sessionState=lambda: state))
    look = HadoopLook(spark, [])
    for call, otherwise in (
        (lambda: look.matching("gs://x/*"), []),
        (lambda: look.folders([StoragePath.of(tmp_path)]), set()),
    ):
        if is_answered:
            assert call() == otherwise
        else:
            with pytest.raises(Py4JJavaError):
                call()


class Server(Client):
    """A server of Spark 4.0: it has settings, and takes archives and tables, each after a pause."""

    def __init__(self) -> None:
        self.settings = {"spark.sql.session.localRelationCacheThreshold": str(64 << 20)}
        self.conf = SimpleNamespace(get=lambda name, default=None: self.settings.get(name, default), set=self._set)
        self.sent: list[Any] = []

    def _set(self, name: str, value: Any) -> None:
        self.settings[name] = str(value)

    def addArtifacts(self, path: str, *, archive: bool) -> None:  # noqa: N802 - PySpark's name
        time.sleep(0.05)
        self.sent.append(Path(path.partition("#")[0]).read_text())

    def createDataFrame(self, rows: pa.Table) -> DataFrame:  # noqa: N802 - likewise
        threshold = int(self.settings["spark.sql.session.localRelationCacheThreshold"])
        self.sent.append(("apart" if threshold <= rows.nbytes else "in the plan", rows.num_rows))
        table: Any = object.__new__(DataFrame)
        return table


def test_two_threads_send_an_archive_once() -> None:
    server = Server()
    session = ConnectSession(server)  # type: ignore[arg-type]

    def pack(path: Path) -> None:
        path.write_text("x")

    with ThreadPoolExecutor(2) as pool:
        names = {*pool.map(lambda _: session.send_archive("model", pack), range(2))}
    names.add(ConnectSession(server).send_archive("model", pack))  # type: ignore[arg-type]
    assert server.sent == ["x", "x"]
    assert len(names) == 2, "one per session"
    assert list(server.settings) == ["spark.sql.session.localRelationCacheThreshold"], "a server may refuse others"


def test_rows_are_sent_apart_from_the_plan_to_a_server_of_spark_4_0(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    monkeypatch.setattr(connect, "MOST_BYTES", 4 << 20)
    monkeypatch.setattr(DataFrame, "union", lambda one, _: one)
    ConnectSession(server).table_of(pa.table({"x": np.zeros(9 << 17)}))  # type: ignore[arg-type]
    assert server.sent == [("apart", 1 << 19), ("apart", 1 << 19), ("apart", 1 << 17)]
    assert server.settings == {"spark.sql.session.localRelationCacheThreshold": str(64 << 20)}


def test_threads_have_one_session_over_spark_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(spark: Any) -> ConnectSession:
        time.sleep(0.05)
        return ConnectSession(spark)

    monkeypatch.setattr(kinds, "ConnectSession", slowly)
    client: Any = Client()
    monkeypatch.setattr(client, "session_id", "e1f2", raising=False)
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: session_of(client), range(4)))) == 1


def test_a_group_has_the_jobs_of_a_block_and_the_thread_is_as_before() -> None:
    context = Context()
    spark: Any = SimpleNamespace(sparkContext=context)
    before = dict(context.properties)
    with session_of(spark).job_group("fleet-1", "run 1", pool="thread-1"):
        inside = dict(context.properties)
    session_of(spark).cancel_jobs("fleet-1")
    assert (inside["spark.jobGroup.id"], inside["spark.scheduler.pool"]) == ("fleet-1", "thread-1")
    assert {name: value for name, value in context.properties.items() if value is not None} == before
    assert context.cancelled == ["fleet-1"]


def test_stages_that_have_just_ended_are_left_out() -> None:
    infos = {1: SimpleNamespace(numTasks=10, numCompletedTasks=7), 2: None}
    tracker = SimpleNamespace(getActiveStageIds=lambda: [1, 2], getStageInfo=infos.get)
    assert classic(statusTracker=lambda: tracker).active_stages() == {1: StageTasks(7, 10)}


def union(totals: dict[str, int], more: dict[str, int]) -> dict[str, int]:
    return totals | more


def test_what_a_task_adds_to_a_total_is_merged_by_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    total = classic(accumulator=lambda zero, param: Accumulator(0, zero, param)).task_total({"before": 1}, union)
    travelling = cloudpickle.dumps(total)
    monkeypatch.setattr(accumulators, "_accumulatorRegistry", {})  # as in another process
    in_task = pickle.loads(travelling)  # noqa: S301 - our own
    in_task.add({"x": 1})
    in_task.add({"y": 2})
    assert in_task._value == {"x": 1, "y": 2}
    total.add(in_task._value)
    assert total.value == {"before": 1, "x": 1, "y": 2}


def test_checkpoints_go_where_the_user_has_said_or_to_our_folder() -> None:
    given: list[str] = []
    classic(getCheckpointDir=lambda: "theirs", setCheckpointDir=given.append).give_checkpoints(Path("ours"))
    assert given == []
    classic(getCheckpointDir=lambda: None, setCheckpointDir=given.append).give_checkpoints(Path("ours"))
    assert given == ["ours"]


def test_outside_spark_there_is_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TaskContext, "_taskContext", None)
    assert (task.is_in_task(), task.partition_id(), task.task_cores()) == (False, 0, None)
    assert (task.task_property("sql.streaming.queryId"), task.barrier_task()) == (None, None)


def test_a_plain_task_has_cores_and_properties_and_no_peers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    context = SimpleNamespace(partitionId=lambda: 7, cpus=lambda: 2, getLocalProperty=lambda name: f"own {name}")
    monkeypatch.setattr(TaskContext, "_taskContext", context)
    assert (task.is_in_task(), task.partition_id(), task.task_cores()) == (True, 7, 2)
    assert (task.task_property("x"), task.barrier_task()) == ("own x", None)
    monkeypatch.setattr(SparkFiles, "_is_running_on_worker", True)
    monkeypatch.setattr(SparkFiles, "_root_directory", str(tmp_path))
    assert (task.files_folder(), task.archive_folder("models")) == (tmp_path, tmp_path / "models")
    (tmp_path / "of-a-session" / "models").mkdir(parents=True)
    assert task.archive_folder("models") == tmp_path / "of-a-session" / "models"


class Barrier(BarrierTaskContext):
    """The context of the second of two barrier tasks."""

    def partitionId(self) -> int:  # noqa: N802 - PySpark's name
        return 1

    def resources(self) -> dict[str, ResourceInformation]:
        return {"gpu": ResourceInformation("gpu", ["2", "3"])}

    def getTaskInfos(self) -> list[BarrierTaskInfo]:  # noqa: N802 - likewise
        return [BarrierTaskInfo("10.0.0.4:38765"), BarrierTaskInfo("[fd00::5]:38766")]

    def allGather(self, message: str = "") -> list[str]:  # noqa: N802 - likewise
        return ["theirs", message]


def test_a_barrier_task_has_a_rank_an_address_gpus_and_an_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TaskContext, "_taskContext", object.__new__(Barrier))
    found = task.barrier_task()
    assert found is not None
    assert (found.rank, found.host, found.gpus) == (1, "[fd00::5]", ("2", "3"))
    assert found.gather("ours") == ["theirs", "ours"]


def test_a_process_of_a_barrier_task_has_its_context_while_a_function_runs() -> None:
    """T3: functions written for MirroredStrategyRunner ask it for their number, and exchange texts."""
    with task.as_barrier_task(1, ["a:1", "b:2"], lambda message: ["theirs", message]):
        context = BarrierTaskContext.get()
        assert (context.partitionId(), [info.address for info in context.getTaskInfos()]) == (1, ["a:1", "b:2"])
        assert context.allGather("ours") == ["theirs", "ours"]
        context.barrier()
        with pytest.raises(TypeError, match="must be of type `str`"):
            context.allGather(3)  # type: ignore[arg-type]
    assert not task.is_in_task()
