"""T11: the coordinator knows who is there, who is gone, and tells all when to leave."""

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mirrorspark.training.parameter_servers.members import Dismissal, Introduction, Members, Membership, workers_readers
from mirrorspark.training.protocol.roles import Roles
from mirrorspark.training.ring.errors import RingConnectError, RingError
from tests.unit.training.conftest import free_addresses

ROLES = Roles(workers=2, servers=1)
SECONDS = 60.0


@pytest.fixture
def gathered() -> Iterator[tuple[Members, list[Membership]]]:
    """Yield the coordinator's side, and the sides of ranks 1 to 3."""
    [address] = free_addresses(1)
    with ThreadPoolExecutor(4) as pool:
        everybody = pool.submit(Members.gather, address, ROLES, "secret", SECONDS)
        introductions = [Introduction(rank, f"host:{rank}", "pyfunc_0" if rank < 3 else "") for rank in (1, 2, 3)]
        # In another order than that of their numbers.
        joining = [pool.submit(Membership.join, address, one, "secret", SECONDS) for one in reversed(introductions)]
        members, lines = everybody.result(), [future.result() for future in reversed(joining)]
    yield members, lines
    members.close()
    for line in lines:
        line.close()


def never() -> None:
    return None


def wait_until(holds: Callable[[], bool]) -> None:
    waited = threading.Event()
    for _ in range(int(SECONDS / 0.01)):
        if holds():
            return
        waited.wait(0.01)
    raise AssertionError("it did not come")


def test_members_say_where_they_serve_in_the_order_of_their_roles(gathered: tuple[Members, list[Membership]]) -> None:
    members, _ = gathered
    assert members.cluster == {"worker": ["host:1", "host:2"], "ps": ["host:3"]}
    assert workers_readers(members.introductions.values()) == "pyfunc_0"
    members.check()


def test_a_lost_worker_is_told_and_the_last_one_is_missed(
    gathered: tuple[Members, list[Membership]], caplog: pytest.LogCaptureFixture
) -> None:
    members, lines = gathered
    with caplog.at_level(logging.WARNING):
        lines[0].close()
        wait_until(lambda: members.lost == (1,))
        members.check()
        lines[1].close()
        with pytest.raises(RingError, match=r"rank 2 \(worker 1\) is gone \(it closed the connection\)"):
            members.explain(SECONDS)
    assert "worker 0 (rank 1) is gone: 1 go on" in caplog.messages


def test_a_lost_server_is_missed_at_once(gathered: tuple[Members, list[Membership]]) -> None:
    members, lines = gathered
    lines[2].close()
    with pytest.raises(RingError, match=r"rank 3 \(parameter server 0\) is gone"):
        members.explain(SECONDS)


def test_members_leave_when_they_are_dismissed(gathered: tuple[Members, list[Membership]]) -> None:
    members, lines = gathered
    members.dismiss(Dismissal(step=12, path="step-12"))
    assert [line.wait(never) for line in lines] == [Dismissal(step=12, path="step-12")] * 3
    lines[2].close()
    members.explain(0.3)


def test_a_member_that_is_asked_to_stop_passes_it_on(gathered: tuple[Members, list[Membership]]) -> None:
    members, lines = gathered
    assert not members.is_stop_asked()
    with ThreadPoolExecutor(1) as pool:
        dismissal = pool.submit(lines[1].wait, lambda: "preempted")
        wait_until(members.is_stop_asked)
        members.dismiss(Dismissal(epochs=3))
        assert dismissal.result() == Dismissal(epochs=3)


def test_a_coordinator_that_is_gone_ends_the_wait(gathered: tuple[Members, list[Membership]]) -> None:
    members, lines = gathered
    members.close()
    with pytest.raises(RingError, match=r"rank 0 \(the coordinator\) is gone"):
        lines[0].wait(never)


def test_who_does_not_know_the_token_is_turned_away_and_keeps_nobody_out() -> None:
    [address] = free_addresses(1)
    roles = Roles(workers=1, servers=1)
    with ThreadPoolExecutor(3) as pool, contextlib.ExitStack() as lines:
        everybody = pool.submit(Members.gather, address, roles, "secret", SECONDS)
        with pytest.raises(RingConnectError, match="another token"):
            Membership.join(address, Introduction(1, "evil:1"), "guess", SECONDS)
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), SECONDS) as stranger:
            stranger.sendall(b"\xff GET / HTTP/1.1\r\n\r\n")
        for rank in (1, 2):
            line = Membership.join(address, Introduction(rank, f"host:{rank}"), "secret", SECONDS)
            lines.callback(line.close)
        members = everybody.result()
        lines.callback(members.close)
    assert members.cluster == {"worker": ["host:1"], "ps": ["host:2"]}


def test_who_does_not_come_is_named() -> None:
    [address] = free_addresses(1)
    with pytest.raises(RingConnectError, match=r"rank 1 \(worker 0\) has not called within 0.1 s"):
        Members.gather(address, ROLES, "secret", 0.1)
    with pytest.raises(RingConnectError, match=r"rank 0 \(the coordinator\) cannot be reached at"):
        Membership.join(address, Introduction(1, "host:1"), "secret", 0.1)


def test_workers_that_run_different_programs_are_refused() -> None:
    with pytest.raises(RuntimeError, match="have to run the same program"):
        workers_readers([Introduction(1, "host:1", "pyfunc_0"), Introduction(2, "host:2", "pyfunc_1")])
