"""T11: the coordinator accepts all ranks, notices lost ones, and sends the shutdown."""

import contextlib
import errno
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mirrorspark.training.executor.worker_failure import describe
from mirrorspark.training.programs.parameter_servers.connections import (
    ClusterConnections,
    CoordinatorConnection,
    Registration,
    Shutdown,
    reader_of_all_workers,
)
from mirrorspark.training.protocol.messages.admissions import Admissions
from mirrorspark.training.protocol.ring.errors import RingConnectError, RingError
from mirrorspark.training.protocol.roles import Roles
from tests.unit.training.conftest import free_addresses

ROLES = Roles(workers=2, servers=1)
SECONDS = 60.0


@pytest.fixture
def connected() -> Iterator[tuple[ClusterConnections, list[CoordinatorConnection]]]:
    """Yield the coordinator's side, and the sides of ranks 1 to 3."""
    [address] = free_addresses(1)
    with ThreadPoolExecutor(4) as pool:
        accepting = pool.submit(ClusterConnections.accept_all, address, ROLES, "secret", SECONDS)
        registrations = [Registration(rank, f"host:{rank}", "pyfunc_0" if rank < 3 else "") for rank in (1, 2, 3)]
        # In another order than that of the ranks.
        registering = [
            pool.submit(CoordinatorConnection.register, address, one, "secret", SECONDS)
            for one in reversed(registrations)
        ]
        connections, lines = accepting.result(), [future.result() for future in reversed(registering)]
    yield connections, lines
    connections.close()
    for line in lines:
        line.close()


@pytest.mark.full
def test_silent_strangers_delay_no_registration() -> None:
    """S12: all callers are read at once, and of too many that send nothing the oldest is disconnected."""
    [address] = free_addresses(1)
    host, port = address.split(":")
    with ThreadPoolExecutor(4) as pool, contextlib.ExitStack() as ending:
        accepting = pool.submit(ClusterConnections.accept_all, address, ROLES, "secret", SECONDS)
        wait_until(lambda: is_listening(host, int(port)))
        strangers = [
            ending.enter_context(socket.create_connection((host, int(port)), timeout=SECONDS)) for _ in range(100)
        ]
        begin = time.monotonic()
        lines = [
            pool.submit(
                CoordinatorConnection.register, address, Registration(rank, f"host:{rank}", ""), "secret", SECONDS
            )
            for rank in (1, 2, 3)
        ]
        connections = accepting.result()
        ending.callback(connections.close)
        for line in lines:
            ending.callback(line.result().close)
        assert time.monotonic() - begin < 10
        for stranger in strangers:  # nobody is left waiting
            with contextlib.suppress(ConnectionResetError):
                while stranger.recv(100):
                    pass


@pytest.mark.parametrize("odd", [10**30, -1, 0, 4, 1.0, True, [1], "1", None])
def test_a_rank_that_there_is_not_is_not_registered_and_ends_no_coordinator(odd: Any) -> None:
    [address] = free_addresses(1)
    with ThreadPoolExecutor(5) as pool, contextlib.ExitStack() as ending:
        accepting = pool.submit(ClusterConnections.accept_all, address, ROLES, "secret", SECONDS)
        stranger = CoordinatorConnection.register(address, Registration(odd, "host:9", ""), "secret", SECONDS)
        ending.callback(stranger.close)
        ranks = [
            pool.submit(CoordinatorConnection.register, address, Registration(rank, f"host:{rank}", ""), "secret", 60.0)
            for rank in (1, 2, 3)
        ]
        connections = accepting.result(SECONDS)
        ending.callback(connections.close)
        for rank in ranks:
            ending.callback(rank.result().close)
        assert connections.registrations.keys() == {1, 2, 3}


@pytest.mark.parametrize("line", [b"7\n", b"[1, 2]\n", b"1e999\n", b"[" * 2000 + b"\n", b'{"stop": \n'])
def test_a_line_that_is_no_message_is_the_loss_of_its_rank_and_ends_no_thread(
    connected: tuple[ClusterConnections, list[CoordinatorConnection]], line: bytes
) -> None:
    connections, lines = connected

    lines[0]._connection.socket.sendall(line)
    wait_until(lambda: connections.lost == (1,))
    lines[1]._connection.send({"stop": "preempted"})

    wait_until(connections.is_stop_requested)


class ScarceListener(socket.socket):
    """A listener that has no file descriptor for its first ``failures`` connections."""

    failures = 0

    def accept(self) -> tuple[socket.socket, Any]:
        if self.failures > 0:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def listen_with(monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    def create(address: tuple[str, int], backlog: int) -> ScarceListener:
        listener = ScarceListener(fileno=create_server(address, backlog=backlog).detach())
        listener.failures = failures
        return listener

    create_server = socket.create_server
    monkeypatch.setattr(socket, "create_server", create)


def test_ranks_are_admitted_once_there_are_file_descriptors_and_threads_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """T6: either had ended all admissions, and the training waited for its ranks until its time was over."""
    refused = []
    start = threading.Thread.start

    def start_second(thread: threading.Thread) -> None:
        if "_admit" in thread.name and not refused:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    [address] = free_addresses(1)
    listen_with(monkeypatch, failures=2)
    monkeypatch.setattr(threading.Thread, "start", start_second)
    with ThreadPoolExecutor(4) as pool, contextlib.ExitStack() as ending:
        accepting = pool.submit(ClusterConnections.accept_all, address, ROLES, "secret", SECONDS)
        for rank in (1, 2, 3):
            line = CoordinatorConnection.register(address, Registration(rank, f"host:{rank}"), "secret", SECONDS)
            ending.callback(line.close)
        ending.callback(accepting.result().close)
    assert len(refused) == 1


def test_what_the_machine_lacks_is_told_when_no_rank_was_admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """T6: the cause is the machine, whose training is restarted."""
    [address] = free_addresses(1)
    listen_with(monkeypatch, failures=10**6)
    with pytest.raises(OSError, match="Too many open files") as raised:
        ClusterConnections.accept_all(address, ROLES, "secret", 0.5)
    assert describe(raised.value, "connecting")["cause"] == "machine"


def is_listening(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def never() -> None:
    return None


def wait_until(holds: Callable[[], bool]) -> None:
    waited = threading.Event()
    for _ in range(int(SECONDS / 0.01)):
        if holds():
            return
        waited.wait(0.01)
    raise AssertionError("it did not come")


def test_cluster_lists_server_addresses_in_the_order_of_the_roles(
    connected: tuple[ClusterConnections, list[CoordinatorConnection]],
) -> None:
    connections, _ = connected
    assert connections.cluster == {"worker": ["host:1", "host:2"], "ps": ["host:3"]}
    assert reader_of_all_workers(connections.registrations.values()) == "pyfunc_0"
    connections.raise_if_lost()


def test_losing_one_worker_is_logged_and_losing_the_last_raises(
    connected: tuple[ClusterConnections, list[CoordinatorConnection]], caplog: pytest.LogCaptureFixture
) -> None:
    connections, lines = connected
    with caplog.at_level(logging.WARNING):
        lines[0].close()
        wait_until(lambda: connections.lost == (1,))
        connections.raise_if_lost()
        lines[1].close()
        with pytest.raises(RingError, match=r"rank 2 \(worker 1\) disconnected \(it closed the connection\)"):
            connections.wait_for_loss(SECONDS)
    assert "worker 0 (rank 1) disconnected: 1 go on" in caplog.messages


def test_losing_a_server_raises_at_once(connected: tuple[ClusterConnections, list[CoordinatorConnection]]) -> None:
    connections, lines = connected
    lines[2].close()
    with pytest.raises(RingError, match=r"rank 3 \(parameter server 0\) disconnected"):
        connections.wait_for_loss(SECONDS)


def test_shutdown_reaches_all_ranks_and_their_end_is_then_no_loss(
    connected: tuple[ClusterConnections, list[CoordinatorConnection]],
) -> None:
    connections, lines = connected
    connections.shut_down(Shutdown(step=12, path="step-12"))
    assert [line.wait_for_shutdown(never) for line in lines] == [Shutdown(step=12, path="step-12")] * 3
    lines[2].close()
    connections.wait_for_loss(0.3)


def test_a_rank_forwards_its_stop_request_to_the_coordinator(
    connected: tuple[ClusterConnections, list[CoordinatorConnection]],
) -> None:
    connections, lines = connected
    assert not connections.is_stop_requested()
    with ThreadPoolExecutor(1) as pool:
        shutdown = pool.submit(lines[1].wait_for_shutdown, lambda: "preempted")
        wait_until(connections.is_stop_requested)
        connections.shut_down(Shutdown(epochs=3))
        assert shutdown.result() == Shutdown(epochs=3)


def test_losing_the_coordinator_raises_in_the_ranks(
    connected: tuple[ClusterConnections, list[CoordinatorConnection]],
) -> None:
    connections, lines = connected
    connections.close()
    with pytest.raises(RingError, match=r"rank 0 \(the coordinator\) disconnected"):
        lines[0].wait_for_shutdown(never)


def test_clients_without_the_token_are_refused_and_block_no_rank(caplog: pytest.LogCaptureFixture) -> None:
    [address] = free_addresses(1)
    roles = Roles(workers=1, servers=1)
    with ThreadPoolExecutor(3) as pool, contextlib.ExitStack() as lines:
        accepting = pool.submit(ClusterConnections.accept_all, address, roles, "secret", SECONDS)
        with pytest.raises(RingConnectError, match="another token"):
            CoordinatorConnection.register(address, Registration(1, "evil:1"), "guess", SECONDS)
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), SECONDS) as stranger:
            stranger.sendall(b"\xff GET / HTTP/1.1\r\n\r\n")
        for rank in (1, 2):
            line = CoordinatorConnection.register(address, Registration(rank, f"host:{rank}"), "secret", SECONDS)
            lines.callback(line.close)
        connections = accepting.result()
        lines.callback(connections.close)
    assert connections.cluster == {"worker": ["host:1"], "ps": ["host:2"]}
    assert caplog.messages == ["refused a registration from 127.0.0.1: wrong token"]  # S12: one line a minute


def test_a_missing_rank_or_coordinator_is_named() -> None:
    [address] = free_addresses(1)
    with pytest.raises(RingConnectError, match=r"rank 1 \(worker 0\) has not connected within 0.1 s"):
        ClusterConnections.accept_all(address, ROLES, "secret", 0.1)
    with pytest.raises(RingConnectError, match=r"rank 0 \(the coordinator\) cannot be reached at"):
        CoordinatorConnection.register(address, Registration(1, "host:1"), "secret", 0.1)


def test_workers_with_different_programs_are_refused() -> None:
    with pytest.raises(RuntimeError, match="have to run the same program"):
        reader_of_all_workers([Registration(1, "host:1", "pyfunc_0"), Registration(2, "host:2", "pyfunc_1")])


def test_a_connection_that_was_handed_on_outlives_the_admissions(monkeypatch: pytest.MonkeyPatch) -> None:
    is_over = threading.Event()
    forget = Admissions._forget
    # The thread that served the connection is still about to end.
    monkeypatch.setattr(Admissions, "_forget", lambda self, of: (is_over.wait(SECONDS), forget(self, of)))
    listener = socket.create_server(("127.0.0.1", 0))
    admissions: Admissions[socket.socket] = Admissions(listener, lambda caller: caller, "a call", most_unproven=2)
    with socket.create_connection(("127.0.0.1", admissions.port), SECONDS) as client:
        admitted = admissions.next(SECONDS)
        admissions.end()
        is_over.set()
        with admitted:
            admitted.sendall(b"welcome")
            assert client.recv(7) == b"welcome"
