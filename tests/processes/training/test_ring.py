"""Collectives over TCP: sums, gathers, broadcasts, and errors of peers that are lost, strange or out of step."""

import contextlib
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorspark.training.protocol.ring.connection import open_listener
from mirrorspark.training.protocol.ring.errors import RingChecksumError, RingConnectError, RingError, RingMismatchError
from mirrorspark.training.protocol.ring.ring import Ring
from tests.unit.training.conftest import free_addresses


def on_every_rank(workers: int, work: Callable[[Ring], Any], **options: Any) -> list[Future[Any]]:
    """Return the results of ``work`` on every rank of a ring of ``workers``, each in a thread."""
    addresses = free_addresses(workers)

    def rank(number: int) -> Any:
        ring = Ring.connect(number, addresses, "secret", timeout_seconds=60, **options)
        try:
            return work(ring)
        finally:
            ring.close()

    with ThreadPoolExecutor(workers) as pool:
        return [pool.submit(rank, number) for number in range(workers)]


@given(st.integers(1, 5), st.integers(0, 30_000), st.sampled_from([np.float32, np.float64, np.int64, np.float16]))
def test_every_rank_gets_the_sum_and_the_same_bits(workers: int, size: int, kind: type) -> None:
    def values(rank: int) -> Any:
        return np.random.default_rng(rank).integers(-9, 9, size).astype(kind)

    totals = [future.result() for future in on_every_rank(workers, lambda ring: ring.all_reduce(values(ring.rank)))]
    for total in totals:
        np.testing.assert_array_equal(total, sum(values(rank) for rank in range(workers)))
        assert total.dtype == kind


def test_sums_that_round_have_the_same_bits_everywhere() -> None:
    def total(ring: Ring) -> Any:
        return ring.all_reduce(np.random.default_rng(ring.rank).normal(size=50_001).astype(np.float32))

    for workers in (2, 3, 4):
        first, *others = [future.result() for future in on_every_rank(workers, total)]
        assert all((other == first).all() for other in others)


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("size", [3, 100_000], ids=["whole", "in parts"])
def test_nan_of_different_bits_becomes_the_same_bits_everywhere(workers: int, size: int) -> None:
    """T6: otherwise the ranks' weights differ, and a machine is taken for faulty."""
    bits = [0x7FC00000, 0xFFC00000, 0x7FC00001]

    def total(ring: Ring) -> Any:
        return ring.all_reduce(np.full(size, bits[ring.rank], np.uint32).view(np.float32)).view(np.uint32)

    first, *others = [future.result() for future in on_every_rank(workers, total)]
    assert all((other == first).all() for other in others)


def test_the_summands_are_left_as_they_are() -> None:
    def kept(ring: Ring) -> bool:
        mine = np.full(20_000, ring.rank + 1.0)
        ring.all_reduce(mine)
        return bool((mine == ring.rank + 1.0).all())

    assert all(future.result() for workers in (1, 2, 3) for future in on_every_rank(workers, kept))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_parts_of_any_length_are_gathered_in_the_order_of_the_ranks(workers: int) -> None:
    def gathered(ring: Ring) -> list[list[int]]:
        return [part.tolist() for part in ring.all_gather(np.full(ring.rank, ring.rank))]

    expected = [[rank] * rank for rank in range(workers)]
    assert [future.result() for future in on_every_rank(workers, gathered)] == [expected] * workers


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_chiefs_values_are_broadcast(workers: int) -> None:
    def received(ring: Ring) -> Any:
        return ring.broadcast(np.full((2, 3), float(ring.rank + 7)))

    assert all((future.result() == 7.0).all() for future in on_every_rank(workers, received))


def test_more_bytes_than_any_socket_buffers_do_not_lock_up() -> None:
    def total(ring: Ring) -> float:
        return float(ring.all_reduce(np.ones(8_000_000, np.float32))[-1])

    assert [future.result() for future in on_every_rank(2, total)] == [2.0, 2.0]


@pytest.mark.parametrize("workers", [2, 3])
def test_a_rank_that_leaves_is_named_by_its_neighbours(workers: int) -> None:
    def leaves_after_one(ring: Ring) -> None:
        ring.barrier()
        if ring.rank != 1:
            for _ in range(100):
                ring.all_reduce(np.ones(100_000, np.float32))

    stayed, left, *others = on_every_rank(workers, leaves_after_one)
    assert left.result() is None
    for future in (stayed, *others):
        error = future.exception()
        assert isinstance(error, RingError)
    if workers == 2:
        assert "rank 1 disconnected" in str(stayed.exception())


def test_a_failure_is_stored_for_callers_that_see_only_its_text() -> None:
    rings: list[Ring] = []

    def fails(ring: Ring) -> None:
        ring.barrier()
        if ring.rank == 0:
            rings.append(ring)
            ring.barrier()

    stayed, _ = on_every_rank(2, fails)
    assert rings[0].failure is stayed.exception()


def test_ranks_in_different_collectives_raise_with_both_kinds() -> None:
    def different(ring: Ring) -> None:
        ring.barrier()
        ring.all_reduce(np.ones(3 + ring.rank, np.float32))

    first, second = on_every_rank(2, different)
    assert "rank 1 is in collective 1, a sum of 16 bytes, but rank 0 is in collective 1, a sum of 12 bytes" in str(
        first.exception()
    )
    assert isinstance(second.exception(), RingMismatchError)


def test_a_neighbour_that_stands_still_is_not_waited_for_for_ever() -> None:
    released = threading.Event()

    def one_stands_still(ring: Ring) -> None:
        if ring.rank == 1:
            released.wait(60)
            return
        try:
            ring.barrier()
        finally:
            released.set()

    first, _ = on_every_rank(2, one_stands_still, limit_seconds=0.5)
    assert str(first.exception()) == "rank 1 has moved nothing for 0.5 s"


def test_a_long_waiting_rank_yields_its_core() -> None:
    def processor_seconds_of_waiting(ring: Ring) -> float:
        if ring.rank == 1:
            time.sleep(0.5)  # the wait itself
        before = time.thread_time()
        ring.barrier()
        return time.thread_time() - before

    first, _ = on_every_rank(2, processor_seconds_of_waiting)
    assert first.result() < 0.1


def test_waits_and_collectives_are_shown_to_an_observer() -> None:
    first_waits = threading.Event()

    class Observer:
        collectives = 0

        @contextmanager
        def waiting_for(self, what: str) -> Iterator[None]:
            if what == "rank 1":
                first_waits.set()
            yield

    observer = Observer()

    def second_comes_late(ring: Ring) -> bool:
        has_waited = ring.rank == 0 or first_waits.wait(60)
        ring.barrier()
        return has_waited

    assert [future.result() for future in on_every_rank(2, second_comes_late, observer=observer)] == [True, True]
    assert observer.collectives == 1


def test_a_rank_of_another_run_is_turned_away() -> None:
    addresses = free_addresses(2)
    with ThreadPoolExecutor(2) as pool:
        ours = pool.submit(Ring.connect, 0, addresses, "secret", timeout_seconds=2)
        theirs = pool.submit(Ring.connect, 1, addresses, "another", timeout_seconds=2)
    assert isinstance(ours.exception(), RingConnectError)
    assert isinstance(theirs.exception(), RingConnectError)


def test_strangers_at_the_door_keep_nobody_out() -> None:
    addresses = free_addresses(2)
    host, port = addresses[0].split(":")
    is_done = threading.Event()

    def knock() -> int:
        knocks = 0
        while not is_done.is_set():
            try:
                with socket.create_connection((host, int(port)), timeout=1) as stranger:
                    stranger.sendall(b"GET / HTTP/1.1\r\nHost: somewhere\r\nAccept: everything there is\r\n\r\n")
                    knocks += 1
            except OSError:
                continue
        return knocks

    with ThreadPoolExecutor(3) as pool:
        stranger = pool.submit(knock)
        try:
            ranks = [pool.submit(Ring.connect, rank, addresses, "secret", timeout_seconds=60) for rank in (0, 1)]
            rings = [rank.result() for rank in ranks]
        finally:
            is_done.set()
        sums = [pool.submit(ring.all_reduce, np.ones(1)) for ring in rings]
        assert [float(total.result()[0]) for total in sums] == [2.0, 2.0]
        for ring in rings:
            ring.close()
        stranger.result()


def test_silent_unauthenticated_clients_delay_no_rank() -> None:
    addresses = free_addresses(2)
    host, port = addresses[0].split(":")
    with ThreadPoolExecutor(2) as pool, contextlib.ExitStack() as silent:
        first = pool.submit(Ring.connect, 0, addresses, "secret", timeout_seconds=60)
        for _ in range(20):
            silent.enter_context(_called(host, port))
        begin = time.monotonic()
        second = pool.submit(Ring.connect, 1, addresses, "secret", timeout_seconds=60)
        for rank in (first, second):
            rank.result().close()
        assert time.monotonic() - begin < 10


def _called(host: str, port: str) -> socket.socket:
    """Return a connection to who will listen there soon."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=5)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline


def test_ranks_that_listened_before_they_knew_each_other_meet_and_stop_listening() -> None:
    listeners = [open_listener("127.0.0.1") for _ in range(3)]
    addresses = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in listeners]
    with ThreadPoolExecutor(3) as pool:
        ranks = [
            pool.submit(Ring.connect, rank, addresses, "secret", listener=listener, timeout_seconds=60)
            for rank, listener in enumerate(listeners)
        ]
        rings = [rank.result() for rank in ranks]
        sums = [pool.submit(ring.all_reduce, np.full(1, ring.rank)) for ring in rings]
        assert [int(total.result()[0]) for total in sums] == [3, 3, 3]
    for ring, listener in zip(rings, listeners, strict=True):
        assert listener.fileno() == -1
        ring.close()


def test_a_rank_that_never_comes_is_named() -> None:
    address, nobody = free_addresses(2)
    with pytest.raises(RingConnectError, match="rank 1 cannot be reached at") as raised:
        Ring.connect(0, [address, nobody], "secret", timeout_seconds=0.3)
    assert raised.value.rank == 1
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)  # noqa: S301 - our own


def test_a_port_that_is_taken_is_an_error_of_this_rank() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match="in use"):
            Ring.connect(0, [address, free_addresses(1)[0]], "secret", timeout_seconds=0.3)


@contextmanager
def pair_with_a_flipped_byte(place: int) -> Iterator[tuple[Ring, Ring]]:
    """Yield two connected ranks, where byte ``place`` of what rank 0 sends arrives with one bit changed."""
    sent, taken = socket.socketpair()
    given, received = socket.socketpair()
    back = socket.socketpair()
    for end in (sent, received, *back):
        end.setblocking(False)

    def relay() -> None:
        position = 0
        with given:  # also where its other end, which has found the change, is closed already
            while block := bytearray(taken.recv(1 << 16)):
                if position <= place < position + len(block):
                    block[place - position] ^= 1 << place % 8
                position += len(block)
                given.sendall(block)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(relay)
        rings = Ring(0, 2, sent, back[1], limit_seconds=30), Ring(1, 2, back[0], received, limit_seconds=30)
        try:
            yield rings
        finally:
            for ring in rings:
                ring.close()
            taken.close()


@pytest.mark.parametrize("collective", ["all_reduce", "all_gather"])
def test_any_bit_that_changes_on_the_way_is_noticed(collective: str) -> None:
    """T6: of the header and of the values, also where the checksum's width does not divide their number of bytes."""
    values = np.arange(7, dtype=np.float16)
    clean = 3 * len(values.tobytes()) + 100
    for place in range(clean):
        with pair_with_a_flipped_byte(place) as (first, second), ThreadPoolExecutor(2) as pool:
            other = pool.submit(getattr(first, collective), values)
            found = pool.submit(getattr(second, collective), values)
            error = found.exception()
            if error is None:
                assert place >= values.nbytes + 25, f"the change of byte {place} went unnoticed"
                break
            assert isinstance(error, RingChecksumError), error
            assert "rank 0 sent" in str(error)
            second.close()
            other.exception()
    else:
        pytest.fail("every byte belongs to the first collective")
    assert place >= values.nbytes + 25


def test_a_flood_of_silent_clients_is_bounded_and_keeps_nobody_out() -> None:
    """S12: more than may wait at a time."""
    listeners = [open_listener("127.0.0.1") for _ in range(2)]
    addresses = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in listeners]
    with ThreadPoolExecutor(2) as pool, contextlib.ExitStack() as silent:
        first = pool.submit(Ring.connect, 0, addresses, "secret", listener=listeners[0], timeout_seconds=60)
        clients = [silent.enter_context(_called(*addresses[0].split(":"))) for _ in range(200)]
        clients[0].settimeout(60)
        assert clients[0].recv(1) == b""  # the oldest was disconnected
        second = pool.submit(Ring.connect, 1, addresses, "secret", listener=listeners[1], timeout_seconds=60)
        for rank in (first, second):
            rank.result().close()
