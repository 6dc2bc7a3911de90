"""L17, pains 6 and 29: findings of a barrier task; here each task is a thread."""

import contextlib
import errno
import pickle
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mirrorspark
from mirrorspark.spark_session.task import BarrierTask
from mirrorspark.storage.paths import StoragePath
from mirrorspark.training.job.readiness import executor_probe
from mirrorspark.training.job.readiness.executor_probe import (
    AllReduceTime,
    Probe,
    ProbeRequest,
    ProbeResult,
    Store,
    StoreResult,
    Unreachable,
    executor_java,
    fingerprint,
    probe,
    reach_all,
    store_problem,
    with_timeout,
)
from mirrorspark.training.protocol.messages import admissions
from mirrorspark.training.protocol.messages.event_server import EventServer
from mirrorspark.training.protocol.messages.handshake import proof


class FakeRing:
    """Sums among threads, each of which has to call as the others."""

    tables: dict[str, tuple[threading.Barrier, dict[int, np.ndarray]]]

    def __init__(self, rank: int, barrier: threading.Barrier, table: dict[int, np.ndarray]) -> None:
        self._rank, self._barrier, self._table = rank, barrier, table

    def all_reduce(self, values: np.ndarray) -> np.ndarray:
        self._table[self._rank] = values
        self._barrier.wait(60)
        total = sum(self._table.values())
        self._barrier.wait(60)
        return np.asarray(total)

    def close(self) -> None:
        self._barrier.wait(60)


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replace the ring by one of threads; return the ranks that joined one."""
    joined: list[int] = []
    lock = threading.Lock()
    tables: dict[str, tuple[threading.Barrier, dict[int, np.ndarray]]] = {}

    class Ring:
        @classmethod
        def connect(cls, rank: int, addresses: Sequence[str], token: str, *, timeout_seconds: float) -> FakeRing:
            assert len(set(addresses)) == len(addresses)
            with lock:
                joined.append(rank)
                barrier, table = tables.setdefault(token, (threading.Barrier(len(addresses)), {}))
            return FakeRing(rank, barrier, table)

    monkeypatch.setattr(executor_probe, "Ring", Ring)
    return joined


class Gang:
    """Tasks in threads, which gather as Spark's barrier tasks do."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._hosts = hosts
        self._barrier = threading.Barrier(len(hosts))
        self._said = [""] * len(hosts)

    def ask(self, question: ProbeRequest) -> list[ProbeResult]:
        with ThreadPoolExecutor(len(self._hosts)) as pool:
            return list(pool.map(lambda place: probe(question, place), map(self._place, range(len(self._hosts)))))

    def _place(self, rank: int) -> BarrierTask:
        def gather(text: str) -> list[str]:
            self._said[rank] = text
            self._barrier.wait(60)
            said = list(self._said)
            self._barrier.wait(60)
            return said

        return BarrierTask(rank, self._hosts[rank], gather)


@pytest.fixture
def heard() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def question(heard: list[dict[str, Any]]) -> Iterator[ProbeRequest]:
    with EventServer("127.0.0.1", heard.append) as server:
        yield ProbeRequest("s3cret", server.address)


def test_three_tasks_find_each_other_the_driver_and_the_pace(
    question: ProbeRequest, heard: list[dict[str, Any]], ring: list[int]
) -> None:
    answers = Gang(["127.0.0.1"] * 3).ask(question)
    assert [answer.rank for answer in answers] == [0, 1, 2]
    assert all(answer.listening and answer.listening.startswith("127.0.0.1:") for answer in answers)
    assert [answer.unreachable for answer in answers] == [(), (), ()]
    assert sorted(ring) == [0, 1, 2]
    for answer in answers:
        assert answer.ring_error is None
        assert answer.all_reduce_time is not None
        assert answer.all_reduce_time.small_seconds > 0
        assert answer.fingerprint == fingerprint()
        assert answer.has_tf_keras
        assert answer.free_bytes > 0
    assert {event["rank"] for event in heard} == {0, 1, 2}
    assert pickle.loads(pickle.dumps(answers)) == answers  # noqa: S301


def test_a_task_that_cannot_listen_says_why_and_no_ring_is_tried(question: ProbeRequest, ring: list[int]) -> None:
    # 192.0.2.0/24 is reserved for documentation: no interface has it.
    answers = Gang(["127.0.0.1", "192.0.2.1"]).ask(question)
    assert [answer.listening is None for answer in answers] == [False, True]
    assert answers[1].listen_error == "Cannot assign requested address"
    assert ring == []
    assert all(answer.all_reduce_time is None and answer.ring_error is None for answer in answers)


def test_a_pair_that_cannot_reach_each_other_is_named_and_no_ring_is_tried(
    question: ProbeRequest, ring: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = socket.create_connection
    event_port = question.events.port

    def firewall(address: tuple[str, int], *rest: Any, **named: Any) -> socket.socket:
        if address[0] == "127.0.0.2" and address[1] != event_port:
            raise ConnectionRefusedError(111, "Connection refused")
        return connect(address, *rest, **named)

    monkeypatch.setattr(socket, "create_connection", firewall)
    answers = Gang(["127.0.0.1", "127.0.0.2"]).ask(question)
    there = answers[1].listening
    assert there is not None
    assert answers[0].unreachable == (Unreachable(1, there, "Connection refused"),)
    assert answers[1].unreachable == ()
    assert ring == []


def test_a_ring_that_breaks_is_part_of_the_answer(question: ProbeRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ring:
        @classmethod
        def connect(cls, *_: Any, **__: Any) -> FakeRing:
            raise ConnectionResetError("rank 1 disconnected")

    monkeypatch.setattr(executor_probe, "Ring", Ring)
    answers = Gang(["127.0.0.1"] * 2).ask(question)
    assert [answer.ring_error for answer in answers] == ["ConnectionResetError: rank 1 disconnected"] * 2


def test_a_sum_that_is_wrong_is_part_of_the_answer(question: ProbeRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ring:
        @classmethod
        def connect(cls, *_: Any, **__: Any) -> "Ring":
            return cls()

        def all_reduce(self, values: np.ndarray) -> np.ndarray:
            return values

        def close(self) -> None:
            pass

    monkeypatch.setattr(executor_probe, "Ring", Ring)
    answers = Gang(["127.0.0.1"] * 2).ask(question)
    assert answers[0].ring_error == "ArithmeticError: 2 times 1 made 1.0 in an array of 1"


def test_another_program_at_the_address_is_not_taken_for_a_task() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        stranger.settimeout(60)

        def greet() -> None:
            connection, _ = stranger.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        greeter = threading.Thread(target=greet, daemon=True)
        greeter.start()
        address = f"127.0.0.1:{stranger.getsockname()[1]}"
        found = reach_all(0, ["127.0.0.1:1", address], "s3cret")
        greeter.join(60)
    assert found == (Unreachable(1, address, "another program answers there"),)


def test_a_task_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor_probe, "REACH_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        begin = time.monotonic()
        found = reach_all(1, [address, "127.0.0.1:1"], "s3cret")
    assert time.monotonic() - begin < 60
    assert found == (Unreachable(0, address, "no answer within 0.1 s"),)


def test_strangers_and_a_lack_of_file_descriptors_make_no_task_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """S12, T6: one silent caller held up all others, and one failure ended the listener."""
    create_server, failures = socket.create_server, [OSError(errno.EMFILE, "Too many open files")]

    class ScarceListener(socket.socket):
        def accept(self) -> tuple[socket.socket, Any]:
            if failures:
                raise failures.pop()
            return super().accept()

    monkeypatch.setattr(
        socket, "create_server", lambda *at, **how: ScarceListener(fileno=create_server(*at, **how).detach())
    )
    monkeypatch.setattr(executor_probe, "_MOST_CALLERS", 8)
    monkeypatch.setattr(admissions, "_PAUSE_SECONDS", 0.001)
    listener, reserved, _ = executor_probe._listen("127.0.0.1", "s3cret")
    assert listener is not None
    assert reserved is not None
    address = ("127.0.0.1", listener.port)
    with reserved, listener, contextlib.ExitStack() as strangers:
        silent = [strangers.enter_context(socket.create_connection(address, 60)) for _ in range(12)]
        assert silent[0].recv(1) == b""  # of too many, the oldest is disconnected
        assert reach_all(1, [f"127.0.0.1:{listener.port}", "127.0.0.1:1"], "s3cret") == ()
    assert failures == []


def test_a_call_that_the_listener_cut_off_is_made_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        port = listener.getsockname()[1]

        def answer_the_second() -> None:
            listener.accept()[0].close()
            caller, _ = listener.accept()
            with caller:
                nonce = caller.recv(100).decode()
                caller.sendall(proof("s3cret", "probe", nonce, str(port)).encode())

        answering = threading.Thread(target=answer_the_second, daemon=True)
        answering.start()
        assert reach_all(0, ["127.0.0.1:1", f"127.0.0.1:{port}"], "s3cret") == ()
        answering.join(60)


def test_a_shared_folder_is_read_and_written(question: ProbeRequest, ring: list[int], tmp_path: Path) -> None:
    store = Store(StoragePath.of(tmp_path), "t0ken")
    store.write("driver")
    asked = ProbeRequest(question.token, question.events, (store,))
    answers = Gang(["127.0.0.1"] * 2).ask(asked)
    assert [answer.stores for answer in answers] == [(StoreResult(True),)] * 2
    assert store.can_read("0")
    assert store.can_read("1")
    store.clear(("driver", "0", "1"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_shared_gets_no_files_and_is_not_made(
    question: ProbeRequest, ring: list[int], tmp_path: Path
) -> None:
    missing = Store(StoragePath.of(tmp_path / "missing"), "t0ken")
    another = Store(StoragePath.of(tmp_path), "t0ken")
    another.file("driver").write_bytes(b"of another probe")
    (answer,) = Gang(["127.0.0.1"]).ask(ProbeRequest(question.token, question.events, (missing, another)))
    assert answer.stores == (StoreResult(False), StoreResult(False))
    assert [path.name for path in tmp_path.iterdir()] == [another.file("driver").name]
    with pytest.raises(FileNotFoundError, match="No such file"):
        missing.write("0")


def test_a_store_without_a_server_is_reported(question: ProbeRequest, ring: list[int]) -> None:
    store = Store(StoragePath("nosuch://bucket/folder"), "t0ken")
    (answer,) = Gang(["127.0.0.1"]).ask(ProbeRequest(question.token, question.events, (store,)))
    assert answer.stores[0].error is not None
    assert answer.stores[0].error.startswith("no store here serves nosuch://")


def test_a_slow_answer_is_not_waited_for() -> None:
    may_end = threading.Event()
    assert with_timeout(lambda: str(may_end.wait(100)), 0.05) == "did not answer within 0.05 s"
    may_end.set()
    assert with_timeout(lambda: None, 60) is None


def test_the_estimate_takes_latency_and_bandwidth() -> None:
    # 1 MiB less 4 bytes took 2 ms, so 524,286,000 bytes a second; 4 MB then take 7.63 ms and the latency of 1 ms.
    all_reduce_time = AllReduceTime(small_seconds=0.001, large_seconds=0.003)
    assert all_reduce_time.bytes_per_second == pytest.approx(524_286_000)
    assert all_reduce_time.seconds(4_000_000) == pytest.approx(0.001 + 4_000_000 / 524_286_000)


def test_the_source_is_part_of_the_fingerprint_and_its_place_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def digest(place: str, text: str) -> str:
        file = tmp_path / place / "training" / "a.py"
        file.parent.mkdir(parents=True)
        file.write_text(text)
        monkeypatch.setattr(mirrorspark, "__file__", str(tmp_path / place / "__init__.py"))
        return fingerprint()["mirrorspark's code"]

    one, same, other = digest("1", "a = 1"), digest("2", "a = 1"), digest("3", "a = 2")
    assert one == same != other
    monkeypatch.setattr(mirrorspark, "__file__", str(tmp_path / "packed.zip" / "mirrorspark" / "__init__.py"))
    assert fingerprint()["mirrorspark's code"] == executor_probe.UNKNOWN


def test_outside_of_an_executor_there_is_no_java() -> None:
    assert executor_java() is None


def test_the_probe_travels_and_its_token_is_not_shown(question: ProbeRequest) -> None:
    task = Probe(question)
    assert pickle.loads(pickle.dumps(task)) == task  # noqa: S301
    assert "s3cret" not in repr(task)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("a\n  b"), "a b"),
        (ValueError(""), "ValueError"),
        (ValueError("x" * 400), "x" * 300 + " ..."),
    ],
)
def test_a_stores_error_is_shortened_to_one_line(error: Exception, words: str) -> None:
    assert store_problem(error) == words
