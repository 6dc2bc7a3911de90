"""L17, pains 6, 11 and 29: the meaning of the executors' answers, and the advice for each fault."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyspark.errors import PySparkException

from mirrorspark.spark_session.classic import ClassicSession
from mirrorspark.storage.paths import StoragePath
from mirrorspark.training.job.readiness import executor_checks
from mirrorspark.training.job.readiness.checks import Check
from mirrorspark.training.job.readiness.executor_checks import EventReport, Findings, check_executors, evaluate
from mirrorspark.training.job.readiness.executor_probe import (
    AllReduceTime,
    ProbeRequest,
    ProbeResult,
    Store,
    StoreResult,
    Unreachable,
)

VERSIONS = {"python": "3.11", "numpy": "2.0.0"}
FOLDER = StoragePath("/shared/output")


def answer(rank: int, **changes: Any) -> ProbeResult:
    healthy = ProbeResult(
        rank=rank,
        host=f"10.0.0.{4 + rank}",
        node=f"node-{rank}",
        fingerprint=VERSIONS,
        java="17",
        has_tf_keras=True,
        stores=(StoreResult(True),),
        listening=f"10.0.0.{4 + rank}:4012{rank}",
        listen_error=None,
        unreachable=(),
        all_reduce_time=AllReduceTime(0.0001, 0.0012),
        ring_error=None,
        free_bytes=50_000_000_000,
        scratch="/tmp",  # noqa: S108
        gpus=(),
        event_seconds=0.0023,
        event_files_seconds=0.41,
    )
    return replace(healthy, **changes)


def judged(
    answers: Sequence[ProbeResult],
    *,
    gpus: int = 0,
    resource: str = "gpu",
    clocks: dict[int, float] | None = None,
    clocks_by_files: dict[int, float] | None = None,
    unseen: frozenset[tuple[int, str]] = frozenset(),
    address: str | None = "10.0.0.1:5000",
) -> dict[str, Check]:
    direct = {found.rank: 0.0 for found in answers} if clocks is None else clocks
    events = EventReport(address, direct, clocks_by_files or {})
    found = Findings(VERSIONS, "17", {"--output": Store(FOLDER, "t")}, unseen, answers, events)
    return {check.name: check for check in evaluate(found, gpus, resource)}


def test_healthy_executors_pass_every_check() -> None:
    checks = judged([answer(0), answer(1)])
    assert [check.detail for check in checks.values() if check.status != "ok"] == []
    assert list(checks) == [
        "executors",
        "shared output",
        "ports",
        "reach",
        "events",
        "all-reduce",
        "workers' disk",
        "clocks",
    ]
    assert checks["executors"].detail == "same Python and packages for all 2 workers, on node-0, node-1"


def test_one_worker_has_nobody_to_reach_or_to_sum_with() -> None:
    assert {"reach", "all-reduce"}.isdisjoint(judged([answer(0)]))


@pytest.mark.parametrize(
    ("changes", "status", "detail"),
    [
        (
            {"fingerprint": VERSIONS | {"numpy": "1.26.4"}},
            "FAIL",
            "numpy is 1.26.4 on node-1 and 2.0.0 on the driver; install the same version",
        ),
        ({"fingerprint": {"python": "3.11"}}, "FAIL", "numpy is missing on node-1"),
        ({"fingerprint": VERSIONS | {"numpy": "unknown"}}, "ok", "same Python"),
        ({"has_tf_keras": False}, "FAIL", "node-1 cannot import tf_keras; install tf-keras in the executors' Python"),
        ({"java": "21"}, "warn", "but Java is 21 on node-1 and 17 on the driver"),
        ({"java": None}, "ok", "same Python"),
    ],
)
def test_an_executor_that_differs_from_the_driver_is_told(changes: dict[str, Any], status: str, detail: str) -> None:
    check = judged([answer(0), answer(1, **changes)])["executors"]
    assert check.status == status
    assert detail in check.detail


def test_an_executor_that_does_not_share_the_output_is_told() -> None:
    check = judged([answer(0), answer(1, stores=(StoreResult(False),))])["shared output"]
    assert check.detail == (
        "worker 1 (10.0.0.5) does not see the driver's files in /shared/output; use storage that all nodes share "
        "as --output"
    )
    assert not check.passed


def test_an_executor_whose_files_the_driver_does_not_see_is_told() -> None:
    check = judged([answer(0), answer(1)], unseen=frozenset({(1, "--output")}))["shared output"]
    assert check.detail.startswith("the driver does not see the files of worker 1 (10.0.0.5) in /shared/output")


def test_an_executor_that_may_not_write_is_told() -> None:
    check = judged([answer(0, stores=(StoreResult(True, "Permission denied"),))])["shared output"]
    assert check.detail.startswith("worker 0 (10.0.0.4) cannot use /shared/output (Permission denied); correct its")


def test_an_unreachable_pair_is_named_with_the_cure() -> None:
    unreachable = (Unreachable(0, "10.0.0.4:40123", "no answer within 3 s"),)
    checks = judged([answer(0, all_reduce_time=None), answer(1, all_reduce_time=None, unreachable=unreachable)])
    assert not checks["reach"].passed
    assert checks["reach"].detail.startswith(
        "worker 1 (10.0.0.5) cannot reach worker 0 (10.0.0.4:40123): no answer within 3 s; open TCP between"
    )
    assert "all-reduce" not in checks, "it would fail for the same reason"


def test_many_unreachable_pairs_are_counted() -> None:
    answers = [
        answer(
            rank,
            all_reduce_time=None,
            unreachable=tuple(Unreachable(peer, "a:1", "refused") for peer in {0, 1, 2} - {rank}),
        )
        for rank in range(3)
    ]
    assert "and 3 more pairs; open TCP" in judged(answers)["reach"].detail


def test_a_worker_that_cannot_listen_is_told_once() -> None:
    checks = judged(
        [answer(0, all_reduce_time=None), answer(1, all_reduce_time=None, listening=None, listen_error="Cannot assign")]
    )
    assert checks["ports"].detail.startswith("worker 1 cannot listen on 10.0.0.5, the address that Spark knows")
    assert {"reach", "all-reduce"}.isdisjoint(checks)


_SILENT = {"event_seconds": None}
_NO_FILES = {"event_files_seconds": None}
_TCP = "every worker reaches the driver at 10.0.0.1 (2.3 ms for a message and its answer)"
_FILES = "files in the output folder (410 ms for a message and its answer)"


@pytest.mark.parametrize(
    ("changes", "tried", "detail", "by_files"),
    [
        ({}, True, f"{_TCP}; {_FILES} would do, too", False),
        (_NO_FILES, True, _TCP, False),
        (_SILENT, True, f"by {_FILES}: 10.0.0.1:5000 is out of reach of worker 1 (10.0.0.5)", True),
        (_SILENT, False, f"by {_FILES}: as asked by --events", True),
        (_SILENT | _NO_FILES, True, "worker 1 (10.0.0.5) cannot reach the driver's event channel at 10.0.0.1", None),
        (_SILENT | _NO_FILES, False, "worker 0 (10.0.0.4), worker 1 (10.0.0.5) and the driver exchange no fil", None),
    ],
)
def test_events_go_over_tcp_or_else_by_files(
    changes: dict[str, Any], tried: bool, detail: str, by_files: bool | None
) -> None:
    answers = [answer(0, **({} if tried else _SILENT)), answer(1, **changes)]
    check = judged(answers, address="10.0.0.1:5000" if tried else None)["events"]
    assert check.detail.startswith(detail)
    assert check.passed == (by_files is not None)
    if by_files is not None:
        ways = [executor_checks.events_by_files(way, [check]) for way in ("auto", "direct", "folder")]
        assert ways == [by_files, False, True]
        assert not executor_checks.events_by_files("auto", []), "a local session"


def test_the_all_reduce_is_the_slowest_workers_with_an_estimate() -> None:
    check = judged([answer(0), answer(1, all_reduce_time=AllReduceTime(0.0002, 0.0022))])["all-reduce"]
    # 1 MiB less 4 bytes in 2 ms: 524 MB a second, so 4 MB in 7.6 ms and the latency.
    assert (
        check.detail
        == "200 µs for 4 B, 2.2 ms for 1 MiB (524 MB/s); of gradients, 4 MB about 7.83 ms, 100 MB about 191 ms"
    )
    assert check.values["latency_seconds"] == 0.0002
    assert check.values["bytes_per_second"] == pytest.approx(524_286_000)


def test_an_all_reduce_that_failed_is_told() -> None:
    check = judged([answer(0), answer(1, all_reduce_time=None, ring_error="RingError: rank 0 disconnected")])[
        "all-reduce"
    ]
    assert check.detail.startswith(
        "worker 1 (10.0.0.5) could not sum with the others (RingError: rank 0 disconnected); look"
    )


def test_little_room_is_a_warning() -> None:
    check = judged([answer(0), answer(1, free_bytes=300_000_000)])["workers' disk"]
    assert check.status == "warn"
    assert check.detail.startswith("0.3 GB free in /tmp of node-1; make room")


@pytest.mark.parametrize(("ahead", "words"), [(2.5, "2.5 s ahead of"), (-40.0, "40.0 s behind")])
def test_clocks_that_differ_are_a_warning(ahead: float, words: str) -> None:
    check = judged([answer(0), answer(1)], clocks={0: 0.001, 1: ahead})["clocks"]
    assert check.status == "warn"
    assert check.detail.startswith(f"worker 1 is at least {words} the driver")


@pytest.mark.parametrize(
    ("ahead", "line"),
    [
        (0.5, "ok   clocks        within 910 ms of the driver's"),
        (-1.3, "ok   clocks        within 1,300 ms of the driver's"),
        (2.5, "warn clocks        worker 1 is at least 2.5 s ahead of the driver"),
        (-2.0, "warn clocks        worker 1 is at least 1.6 s behind the driver"),
    ],
)
def test_clocks_are_compared_by_files_as_exactly_as_a_round_trip_allows(ahead: float, line: str) -> None:
    """The answers come after 0.41 s."""
    answers = [answer(0, event_seconds=None), answer(1, event_seconds=None)]
    check = judged(answers, clocks={}, clocks_by_files={0: -0.2, 1: ahead})["clocks"]
    assert check.as_line().startswith(line)


def test_a_worker_without_its_gpus_is_told() -> None:
    check = judged([answer(0, gpus=("0",)), answer(1)], gpus=1)["gpus"]
    assert check.detail.startswith(
        "Spark gave worker 1 (10.0.0.5) 0 GPUs, and --gpus-per-worker is 1; start the session"
    )
    assert judged([answer(0, gpus=("0",)), answer(1, gpus=("1",))], gpus=1)["gpus"].passed
    named = judged([answer(0)], gpus=1, resource="accelerator")["gpus"]
    assert "spark.task.resource.accelerator.amount=1" in named.detail


class FakeSpark:
    """A local session whose barrier job gives ``outcome``; ``write`` does what its tasks would."""

    def __init__(self, outcome: Sequence[ProbeResult] | Exception, write: Any = None) -> None:
        self._outcome, self._write = outcome, write
        self.is_barrier = False
        self.tags: set[str] = set()
        self.sparkContext = SimpleNamespace(
            master="local[2]",
            getConf=dict,
            parallelize=lambda rows, tasks: self,
            addJobTag=self.tags.add,
            removeJobTag=self.tags.remove,
            cancelJobsWithTag=lambda tag: None,
        )

    def barrier(self) -> "FakeSpark":
        self.is_barrier = True
        return self

    def mapPartitions(self, task: Any) -> "FakeSpark":  # noqa: N802 - Spark's name
        return self

    def collect(self) -> Sequence[ProbeResult]:
        assert self.is_barrier, "one executor could run all tasks of a plain job"
        assert len(self.tags) == 1, "a job that hangs is cancelled by its tag"
        if self._write:
            self._write()
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


def checked(spark: Any, folder: Path) -> dict[str, Check]:
    return {check.name: check for check in check_executors(spark, 2, 17, {"--output": StoragePath.of(folder)})}


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> list[ProbeRequest]:
    """Return the questions that were asked."""
    asked: list[ProbeRequest] = []
    monkeypatch.setattr(executor_checks, "fingerprint", lambda: VERSIONS)
    original = executor_checks.Probe

    def note(question: ProbeRequest) -> Any:
        asked.append(question)
        return original(question)

    monkeypatch.setattr(executor_checks, "Probe", note)
    return asked


@pytest.mark.process
def test_files_of_the_tasks_are_looked_for_and_nothing_is_left_behind(
    stores: list[ProbeRequest], tmp_path: Path
) -> None:
    def write() -> None:
        assert stores[0].stores[0].can_read("driver")
        stores[0].stores[0].write("0")

    checks = checked(FakeSpark([answer(0), answer(1)], write), tmp_path)
    assert checks["shared output"].detail.startswith("the driver does not see the files of worker 1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_a_folder_that_the_driver_cannot_write_is_told_and_the_rest_is_asked(
    stores: list[ProbeRequest], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    spark = FakeSpark([answer(0, stores=()), answer(1, stores=())])
    checks = checked(spark, tmp_path / "file")
    assert not checks["shared output"].passed
    assert checks["shared output"].detail.startswith(f"{tmp_path / 'file'} cannot be written (")
    assert checks["executors"].passed
    assert spark.tags == set()


@pytest.mark.process
@pytest.mark.parametrize(
    ("message", "detail"),
    [
        (
            "Could not recover from a failed barrier ResultStage\n"
            "ModuleNotFoundError: python3 on this executor cannot import 'training'; install mirrorspark\n"
            "\tat org.apache.spark",
            "cannot run our code: python3 on this executor cannot import 'training'; install mirrorspark",
        ),
        ("Job 3 cancelled part of cancelled job tags", "did not answer within 60 s; see their logs in Spark's UI"),
    ],
)
def test_executors_that_cannot_run_our_code_are_told(
    stores: list[ProbeRequest], tmp_path: Path, message: str, detail: str
) -> None:
    checks = checked(FakeSpark(PySparkException(message)), tmp_path)
    assert checks["executors"] == Check("executors", False, detail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_a_driver_that_cannot_listen_is_told(
    stores: list[ProbeRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClassicSession, "bind_address", lambda _: "192.0.2.1")
    checks = checked(FakeSpark([]), tmp_path)
    assert checks["events"].detail.startswith("the driver cannot listen on 192.0.2.1 (Cannot assign requested address)")
    assert list(tmp_path.iterdir()) == []
