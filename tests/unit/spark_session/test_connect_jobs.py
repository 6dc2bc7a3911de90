"""Jobs over Spark Connect: slots by settings, refused and passing barrier jobs, and cancelled groups."""

import threading
from typing import Any

import pytest
from pyspark.errors import PySparkException

from mirrorspark.spark_session.connect import ConnectSession
from mirrorspark.spark_session.errors import SparkStartError
from mirrorspark.spark_session.session import MissingCapabilityError
from tests.conftest import PATIENCE

_FAILED_TASK = (
    "Job aborted due to stage failure: Could not recover from a failed barrier ResultStage. "
    "Most recent failure reason: Stage failed because barrier task ResultTask(5, 0) finished unsuccessfully."
)


class Server(ConnectSession):
    """A session whose server has these settings, runs no job, and notes the groups that are interrupted."""

    def __init__(self, **settings: str) -> None:
        self.given = {name.replace("_", "."): value for name, value in settings.items()}
        self.answer: PySparkException | None = None
        self.jobs = 0
        self.interrupted: list[str] = []
        self.is_interrupted = threading.Event()
        super().__init__(self)  # type: ignore[arg-type] # it is its own client

    def setting(self, name: str, default: str = "") -> str:
        return self.given.get(name, default)

    @property
    def default_parallelism(self) -> int:
        return int(self.given.get("spark.default.parallelism", "8"))

    def run_barrier_job(self, *_: Any, **__: Any) -> list[Any]:
        self.jobs += 1
        if self.answer is not None:
            raise self.answer
        return []

    def addTag(self, tag: str) -> None:  # noqa: N802 - PySpark's name
        """Tag nothing."""

    removeTag = addTag  # noqa: N815 - likewise

    def interruptTag(self, tag: str) -> None:  # noqa: N802 - likewise
        self.interrupted.append(tag)
        self.is_interrupted.set()


@pytest.mark.parametrize(
    ("settings", "slots"),
    [
        ({}, 8),
        ({"spark_task_cpus": "2"}, 4),
        ({"spark_default_parallelism": "200", "spark_executor_cores": "3", "spark_executor_instances": "2"}, 6),
        ({"spark_default_parallelism": "200", "spark_executor_cores": "3", "spark_executor_instances": "2"}
         | {"spark_task_cpus": "2"}, 2),
        ({"spark_default_parallelism": "200", "spark_master": "local[4]"}, 4),
    ],
)  # fmt: skip
def test_slots_are_those_of_the_executors_also_where_the_parallelism_is_set(
    settings: dict[str, str], slots: int
) -> None:
    assert Server(**settings).task_slots() == slots


def test_a_refusal_of_barrier_jobs_names_the_way_without_and_what_passes_is_asked_again() -> None:
    server = Server()
    passing = ("[OPERATION_CANCELED] Operation has been canceled.", "status = StatusCode.UNAVAILABLE", _FAILED_TASK)
    for server.answer in map(PySparkException, passing):
        with pytest.raises(SparkStartError, match=r"did not run .*(CANCELED|UNAVAILABLE|barrier task).*try again"):
            server.require_barrier_jobs()
    server.answer = PySparkException("[SPARK-24942] Barrier execution mode is off")
    with pytest.raises(MissingCapabilityError, match=r"no barrier jobs .*mode is off.*local_mode=True"):
        server.require_barrier_jobs()
    server.answer = None
    server.require_barrier_jobs()
    server.require_barrier_jobs()
    assert server.jobs == 5


def test_a_cancel_reaches_the_blocks_of_its_group_that_begin_later_by_one_thread() -> None:
    server = Server()
    for _ in range(20):
        server.cancel_jobs("late")
    assert not server.interrupted
    with server.job_group("other", "another group"), server.job_group("late", "a block"):
        assert server.is_interrupted.wait(10 * PATIENCE)
        server.cancel_jobs("late")
        assert len([one for one in threading.enumerate() if one.name == "interrupt"]) == 1
    assert set(server.interrupted) == {"late"}
