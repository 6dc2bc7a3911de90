"""T6: reading of Spark's message of a failed job, sessions that can launch one, and the start of its ranks."""

import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from py4j.protocol import Py4JError, Py4JJavaError, Py4JNetworkError
from pyspark import BarrierTaskContext, BarrierTaskInfo, TaskContext, cloudpickle
from pyspark.resource import ResourceInformation

from mirrorspark.training.driver import launcher
from mirrorspark.training.driver.launcher import (
    BarrierJobError,
    EarlyRunner,
    SparkLauncher,
    read_failure,
)
from mirrorspark.training.executor import worker_process
from mirrorspark.training.executor.task import WorkerTask
from mirrorspark.training.executor.worker_failure import MORE_MEMORY
from mirrorspark.training.protocol.outcomes.cause import RankError
from tests.processes.training.test_worker import Driver, task

SPARK = "An error occurred while calling z:org.apache.spark.api.python.PythonRDD.collectAndServe.\n"
TRACE = "Traceback (most recent call last):\n  File worker.py, line 53\n"


@pytest.mark.parametrize(
    ("message", "cause", "type_", "expected"),
    [
        (
            f"{SPARK}: org.apache.spark.SparkException: Job 3 cancelled part of cancelled job group 4\n\tat scala",
            "cancelled",
            "Cancelled",
            "Job 3 cancelled part of cancelled job group 4",
        ),
        (
            f"{SPARK}: Job aborted. Most recent failure:\nExecutorLostFailure (executor 1 exited): SIGKILL\n\tat scala",
            "spark",
            "BarrierJobError",
            "ExecutorLostFailure (executor 1 exited): SIGKILL",
        ),
        (
            f"{SPARK}: Job aborted.\nExecutorLostFailure (executor 1 exited) Reason: Command exited with code 137\n",
            "spark",
            "BarrierJobError",
            "ExecutorLostFailure (executor 1 exited) Reason: Command exited with code 137; most often memory has run "
            f"out: {MORE_MEMORY}",
        ),
        (
            f"{SPARK}: Job aborted.\nExecutorLostFailure (executor 1 exited unrelated to the running tasks) Reason: "
            "Container was preempted.\n\tat scala",
            "preempted",
            "BarrierJobError",
            "ExecutorLostFailure (executor 1 exited unrelated to the running tasks) Reason: Container was preempted.",
        ),
        (
            f"{SPARK}: Job aborted.\norg.apache.spark.SparkException: Python worker exited unexpectedly (crashed)\n",
            "spark",
            "BarrierJobError",
            "org.apache.spark.SparkException: Python worker exited unexpectedly (crashed)",
        ),
        (
            f"{SPARK}{TRACE}ModuleNotFoundError: No module named 'training'\n\tat scala",
            "spark",
            "BarrierJobError",
            "ModuleNotFoundError: No module named 'training'",
        ),
        ("Job aborted\nsecond line\nthird line", "spark", "BarrierJobError", "Job aborted second line"),
    ],
    ids=[
        "cancelled",
        "executor lost",
        "executor without memory",
        "executor preempted",
        "worker crashed",
        "package missing",
        "other",
    ],
)
def test_sparks_message_is_read_for_what_tells_most(message: str, cause: Any, type_: str, expected: str) -> None:
    assert read_failure(message, now=7.0) == RankError(cause, None, type_, expected, 7.0)


def test_the_error_of_a_job_survives_pickle() -> None:
    error = BarrierJobError(RankError("spark", None, "BarrierJobError", "lost", 7.0))
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (again.error, str(again)) == (error.error, "lost")


class ClassicSession:
    """A session with a context, of which nothing is asked."""

    sparkContext = None  # noqa: N815 - PySpark's name


def test_a_session_of_a_cluster_is_taken_and_cancelling_nothing_does_nothing() -> None:
    SparkLauncher(ClassicSession()).cancel()  # type: ignore[arg-type]


@pytest.fixture
def driver() -> Iterator[Driver]:
    driver = Driver()
    with driver.server:
        yield driver
    worker_process.shut_down()


class Exchange(BarrierTaskContext):
    """The context of the only task of a stage, which notes what it exchanges, once what comes before has returned."""

    before: list[Callable[[], None]]
    said: list[str]

    @classmethod
    def of(cls, *before: Callable[[], None]) -> "Exchange":
        """Return one that calls each of ``before`` at its exchange: the runner's, then that of the outcomes."""
        context: Exchange = object.__new__(cls)
        context.before, context.said = list(before), []
        return context

    def partitionId(self) -> int:  # noqa: N802 - PySpark's name
        return 0

    def cpus(self) -> int:
        return 1

    def resources(self) -> dict[str, ResourceInformation]:
        return {"gpu": ResourceInformation("gpu", ["2"])}

    def getTaskInfos(self) -> list[BarrierTaskInfo]:  # noqa: N802 - likewise
        return [BarrierTaskInfo("127.0.0.1:38765")]

    def allGather(self, message: str = "") -> list[str]:  # noqa: N802 - likewise
        if self.before:
            self.before.pop(0)()
        self.said.append(message)
        return [message]


def program(task: WorkerTask, *, use_gpu: bool = False) -> Callable[[Any], list[Any]]:
    """Return the program of a task of the runner's job, as it arrives there."""
    runner: EarlyRunner = object.__new__(EarlyRunner)  # its constructor needs a JVM
    for name, value in {"num_slots": 1, "num_tasks": 1, "use_gpu": use_gpu}.items():
        setattr(runner, f"_{name}", value)
    runner._gpu_resource_name, runner._use_custom_strategy = "gpu", True
    arrived: Callable[[Any], list[Any]] = pickle.loads(cloudpickle.dumps(runner._get_spark_task_program(task)))  # noqa: S301
    return arrived


@pytest.mark.process
@pytest.mark.parametrize("begins_early", [True, False])
def test_a_rank_that_can_begins_before_the_runners_exchange(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, begins_early: bool
) -> None:
    """T2: an exchange takes a second, and nothing of it is needed by a rank that meets the others otherwise."""
    seen: list[str] = []

    def before_the_exchange() -> None:
        if begins_early:
            seen.append(driver.next("phase", phase="ending")["event"])
        seen.extend(driver.kinds(None))

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setenv("TF_CONFIG", "of an earlier attempt")
    context = Exchange.of(before_the_exchange)
    monkeypatch.setattr(TaskContext, "_taskContext", context)
    ours = task(driver.server.address, "tell_all", str(tmp_path / "seen"), meets_through_driver=begins_early)
    assert program(ours)(iter(())) == [[{"outcome": "finished", "epochs": 1}]]
    assert bool(seen) == begins_early
    assert [text.startswith("127.0.0.1:") for text in context.said] == [True, False]
    environment = json.loads((tmp_path / "seen").read_text())["environment"]
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert ("TF_CONFIG" in environment) == (not begins_early)


@pytest.mark.process
def test_an_attempt_leaves_a_python_worker_as_it_was_so_the_next_one_finds_its_gpu(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T9: the runner would look for GPU 2 in the list that it left there, and what comes after would see the GPU."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    before = dict(os.environ)
    for _ in range(2):
        monkeypatch.setattr(TaskContext, "_taskContext", Exchange.of())
        program(task(driver.server.address, "tell_all", str(tmp_path / "seen")), use_gpu=True)(iter(()))
        assert json.loads((tmp_path / "seen").read_text())["environment"]["CUDA_VISIBLE_DEVICES"] == "2"
        assert dict(os.environ) == before


@pytest.mark.process
def test_a_rank_that_has_begun_ends_when_the_runners_exchange_fails(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: list[psutil.Process] = []

    def fail() -> None:
        processes.append(psutil.Process(driver.next("phase", phase="training")["process"]))
        raise ConnectionError("the barrier is broken")

    monkeypatch.setattr(TaskContext, "_taskContext", Exchange.of(fail))
    with pytest.raises(ConnectionError, match="barrier"):
        program(task(driver.server.address, "hang", meets_through_driver=True))(iter(()))
    assert not processes[0].is_running()


@pytest.mark.process
@pytest.mark.parametrize("entry", ["finish_at_once", "train_until_stopped"])
def test_a_rank_that_has_come_to_its_end_stays_until_all_have(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    """T6: the others would take the end of its connections for a death."""
    seen: list[psutil.Process] = []

    def begin() -> None:
        if entry == "train_until_stopped":
            driver.next("phase", phase="training")
            driver.server.command({"command": "stop"})

    def look() -> None:
        process = psutil.Process(driver.next("phase", phase="ending")["process"])
        with pytest.raises(psutil.TimeoutExpired):  # one that leaves is away, or a zombie, by then
            process.wait(0.3)
        assert process.status() != psutil.STATUS_ZOMBIE
        seen.append(process)

    monkeypatch.setattr(TaskContext, "_taskContext", Exchange.of(begin, look))
    ((outcome,),) = program(task(driver.server.address, entry, meets_through_driver=True))(iter(()))
    assert outcome["outcome"] in ("finished", "stopped")
    assert [process.is_running() for process in seen] == [False]


class JVM:
    """A context whose JVM answers until it has ended."""

    def __init__(self) -> None:
        self.gone: Exception | None = None
        self.properties: dict[str, str | None] = {"spark.job.description": "the notebook's own"}
        self.sparkContext = self

    def getLocalProperty(self, name: str) -> str | None:  # noqa: N802 - PySpark's name
        self._answer()
        return self.properties.get(name)

    def setLocalProperty(self, name: str, value: str | None) -> None:  # noqa: N802 - PySpark's name
        self._answer()
        self.properties[name] = value

    def setJobGroup(self, group: str, description: str, interruptOnCancel: bool) -> None:  # noqa: N802, N803 - likewise
        self.properties["spark.job.description"] = description

    def _answer(self) -> None:
        if self.gone is not None:
            raise self.gone


class Runner:
    """Replaces MirroredStrategyRunner; runs ``job`` as its job."""

    job: Callable[[], Any] = staticmethod(list)

    def __init__(self, **_: Any) -> None:
        pass

    def run(self, task: Any) -> Any:
        return type(self).job()


class Plan:
    """The part of a plan that a launch looks at."""

    attempt = 1
    ranks = 2


@pytest.mark.parametrize(
    "gone",
    [
        Py4JNetworkError("Answer from Java side is empty"),
        Py4JError("An error occurred while calling None.None"),
        ConnectionRefusedError(111, "Connection refused"),
    ],
)
@pytest.mark.parametrize("before_the_launch", [True, False])
def test_a_jvm_that_dies_is_a_failed_job(
    gone: Exception, before_the_launch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    jvm = JVM()

    def die() -> None:
        jvm.gone = gone
        raise gone

    monkeypatch.setattr(launcher, "EarlyRunner", type("R", (Runner,), {"job": staticmethod(die)}))
    if before_the_launch:
        jvm.gone = gone
    with pytest.raises(BarrierJobError) as raised:
        SparkLauncher(jvm)(Plan())  # type: ignore[arg-type]
    assert (raised.value.error.cause, raised.value.error.type) == ("spark", "SessionLost")
    assert raised.value.error.message == f"the JVM of the Spark session does not answer any more ({gone})"


def test_a_java_error_that_can_no_longer_be_asked_what_it_says_is_a_jvm_that_died(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class UnknownJavaError(Py4JJavaError):  # type: ignore[misc]
        def __init__(self) -> None:
            Exception.__init__(self)

        def __str__(self) -> str:
            raise Py4JNetworkError("Answer from Java side is empty")

    def fail() -> None:
        raise UnknownJavaError

    monkeypatch.setattr(launcher, "EarlyRunner", type("R", (Runner,), {"job": staticmethod(fail)}))
    with pytest.raises(BarrierJobError, match="ended before it could say why the job failed"):
        SparkLauncher(JVM())(Plan())  # type: ignore[arg-type]


def test_a_launch_leaves_the_threads_job_description_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    jvm = JVM()
    seen: list[str | None] = []

    def job() -> list[dict[str, Any]]:
        seen.append(jvm.properties["spark.job.description"])
        return [{"outcome": "finished", "epochs": 1}]

    monkeypatch.setattr(launcher, "EarlyRunner", type("R", (Runner,), {"job": staticmethod(job)}))
    assert SparkLauncher(jvm)(Plan()) == ({"outcome": "finished", "epochs": 1},)  # type: ignore[arg-type]
    assert (seen, jvm.properties["spark.job.description"]) == (["training, attempt 1"], "the notebook's own")


def test_a_lost_jvm_does_not_delay_the_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    jvm = JVM()

    def leave() -> None:
        jvm.gone = Py4JNetworkError("Answer from Java side is empty")
        raise KeyboardInterrupt

    monkeypatch.setattr(launcher, "EarlyRunner", type("R", (Runner,), {"job": staticmethod(leave)}))
    with pytest.raises(KeyboardInterrupt):
        SparkLauncher(jvm)(Plan())  # type: ignore[arg-type]
