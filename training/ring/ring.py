"""Collectives over TCP between the ranks of a training: sums, gathers and broadcasts of NumPy arrays.

Every rank keeps one connection to the next rank and one from the previous, so that the bytes a rank sends do not grow
with the number of ranks. TensorFlow's own collectives on CPU go through gRPC, with a hand-shake and copies for every
tensor: docs/benchmarks/train_steps.md compares. A peer that dies shows as `RingError` in its neighbours at once, and
in the others when those leave.

Both sides of a connection prove that they know the run's token (`training.ring.connection`). What follows is
not encrypted, as Spark's own traffic is not unless it is told to. Nothing is unpickled.
"""

import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mirrorspark.training.ring.connection import connect_neighbours
from mirrorspark.training.ring.errors import RingError, RingMismatchError

Array = npt.NDArray[Any]

# Up to here every rank passes its whole array around, which takes half as many rounds as reducing it in parts.
_SMALL_BYTES = 1 << 14
_POLL_MILLISECONDS = 1000

# A neighbour at work comes within milliseconds. For so long a rank looks again and again before it sleeps: steps take
# less time then (docs/training.md, local updates).
_SPIN_SECONDS = 0.005

# Before every array: number of the collective, its kind, bytes of the array.
_HEADER = struct.Struct("<QBQ")
_SUM, _GATHER, _BROADCAST = range(1, 4)
_KINDS = {_SUM: "sum", _GATHER: "gather", _BROADCAST: "broadcast"}


class Observer(Protocol):
    """Sees what the ring does, such as `training.protocol.activity.Activity`."""

    collectives: int

    def waiting_for(self, what: str) -> AbstractContextManager[None]:
        """Be told that this rank waits for ``what`` while the block runs."""


class _Nobody:
    collectives = 0

    def waiting_for(self, what: str) -> AbstractContextManager[None]:
        return nullcontext()


class Ring:
    """One rank's place in the ring. All ranks call the same collectives in the same order, each from one thread.

    Attributes:
        rank: This rank.
        workers: How many ranks there are.
        operations: Collectives finished.
        failure: What ended the ring, where TensorFlow shows only a text of it; None while it holds.
    """

    def __init__(
        self,
        rank: int,
        workers: int,
        following: socket.socket | None = None,
        preceding: socket.socket | None = None,
        *,
        limit_seconds: float = 3600.0,
        observer: Observer | None = None,
    ) -> None:
        """Take proven connections to the next and from the previous rank; `connect` makes them."""
        self.rank = rank
        self.workers = workers
        self.operations = 0
        self.failure: Exception | None = None
        self._observer = observer or _Nobody()
        self._following = following
        self._preceding = preceding
        self._limit_seconds = limit_seconds
        self._pollers: dict[tuple[bool, bool], Any] = {}

    @classmethod
    def connect(
        cls,
        rank: int,
        addresses: Sequence[str],
        token: str,
        *,
        listener: socket.socket | None = None,
        timeout_seconds: float = 60.0,
        limit_seconds: float = 3600.0,
        observer: Observer | None = None,
    ) -> "Ring":
        """Call the next rank, hear the previous one, and return when both neighbours are there.

        Args:
            rank: This rank.
            addresses: ``host:port`` of every rank, in order.
            token: Secret that the ranks of this attempt share, and nobody else.
            listener: Listens on this rank's address, as `listen` makes it; is closed. Without one, this rank's port
                has to be free.
            timeout_seconds: Longest time until both neighbours are there.
            limit_seconds: Longest time that a collective waits for a neighbour; in a rank, whose driver knows how long
                each phase may take, infinite.
            observer: Is told of waits and finished collectives.

        Raises:
            RingConnectError: A neighbour did not come, or does not know the token.
            OSError: This rank's own address cannot be listened on.
        """
        workers = len(addresses)
        if workers == 1:
            return cls(0, 1)
        deadline = time.monotonic() + timeout_seconds
        following, preceding = connect_neighbours(rank, addresses, token, listener, deadline)
        return cls(rank, workers, following, preceding, limit_seconds=limit_seconds, observer=observer)

    def all_reduce(self, values: Array) -> Array:
        """Return the sum of all ranks' ``values``, element by element; every rank gets the same bits.

        Args:
            values: One-dimensional, of the same type and length on all ranks.

        Raises:
            RingError: A rank is gone.
            RingMismatchError: A rank is in another collective.
        """
        if self.workers == 1:
            return values.copy()
        values = np.ascontiguousarray(values)
        if self.workers == 2:
            theirs = np.empty_like(values)
            self._exchange(_SUM, values, theirs)
            theirs += values  # a sum of two has the same bits in either order
        elif values.nbytes <= _SMALL_BYTES:
            theirs = self._summed_from_all(values)
        else:
            theirs = self._reduced_in_parts(values)
        self._done()
        return theirs

    def all_gather(self, values: Array) -> list[Array]:
        """Return every rank's ``values`` in the order of the ranks; the first dimensions may differ, no others."""
        return [parts[0] for parts in self.all_gather_many([values])]

    def all_gather_many(self, arrays: Sequence[Array]) -> list[list[Array]]:
        """Return every rank's ``arrays`` in the order of the ranks, in one collective; see `all_gather`."""
        arrays = [np.ascontiguousarray(array) for array in arrays]
        parts: list[Array] = [_packed(arrays)] * self.workers
        for turn in range(self.workers - 1):
            mine, theirs = (self.rank - turn) % self.workers, (self.rank - turn - 1) % self.workers
            parts[theirs] = self._exchange(_GATHER, parts[mine])
        self._done()
        return [_unpacked(part, arrays) for part in parts]

    def broadcast(self, values: Array) -> Array:
        """Return rank 0's ``values``; type and shape are the same on all ranks."""
        received = np.array(values, order="C")
        if self.workers > 1:
            if self.rank:
                self._receive(_BROADCAST, received)
            if self._after:
                self._send(_BROADCAST, received)
            self._done()
        return received

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.all_reduce(np.zeros(1, np.uint8))

    def close(self) -> None:
        """End the connections; a neighbour in a collective takes it for the end of this rank."""
        for connection in (self._following, self._preceding):
            if connection is not None:
                connection.close()

    def _summed_from_all(self, values: Array) -> Array:
        """Pass every rank's ``values`` around, and sum them in the order of the ranks."""
        parts = [np.empty_like(values) for _ in range(self.workers)]
        parts[self.rank] = values
        for turn in range(self.workers - 1):
            mine, theirs = (self.rank - turn) % self.workers, (self.rank - turn - 1) % self.workers
            self._exchange(_SUM, parts[mine], parts[theirs])
        total: Array = parts[0].copy()
        for part in parts[1:]:
            total += part
        return total

    def _reduced_in_parts(self, values: Array) -> Array:
        """Sum each part on its way around the ring, then pass the sums around.

        Source: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations".
        """
        total = values.copy()
        parts = np.array_split(total, self.workers)
        room = np.empty_like(parts[0])  # the first part is never the shorter one
        for turn in range(self.workers - 1):
            mine, theirs = (self.rank - turn) % self.workers, (self.rank - turn - 1) % self.workers
            arrived = room[: len(parts[theirs])]
            self._exchange(_SUM, parts[mine], arrived)
            parts[theirs] += arrived
        for turn in range(self.workers - 1):
            mine, theirs = (self.rank - turn + 1) % self.workers, (self.rank - turn) % self.workers
            self._exchange(_SUM, parts[mine], parts[theirs])
        return total

    def _done(self) -> None:
        self.operations += 1
        self._observer.collectives = self.operations

    def _exchange(self, kind: int, sent: Array, room: Array | None = None) -> Array:
        """Send to the next rank and receive from the previous one at the same time: neither has to buffer it all.

        Args:
            kind: Of the collective.
            sent: Goes to the next rank.
            room: For what the previous one sends, which has to fill it; without one it may send any number of bytes.

        Returns:
            ``room``, or the bytes received.
        """
        outgoing = _Outgoing(_HEADER.pack(self.operations, kind, sent.nbytes), sent)
        incoming = _Incoming(room)
        while not (outgoing.is_done and incoming.is_done):
            has_moved = not outgoing.is_done and self._send_some(outgoing)
            if not incoming.is_done:
                has_moved |= self._receive_some(incoming, kind)
            if not has_moved:
                self._wait(reading=not incoming.is_done, writing=not outgoing.is_done)
        return incoming.values

    def _send(self, kind: int, sent: Array) -> None:
        outgoing = _Outgoing(_HEADER.pack(self.operations, kind, sent.nbytes), sent)
        while not outgoing.is_done:
            if not self._send_some(outgoing):
                self._wait(reading=False, writing=True)

    def _receive(self, kind: int, room: Array) -> None:
        incoming = _Incoming(room)
        while not incoming.is_done:
            if not self._receive_some(incoming, kind):
                self._wait(reading=True, writing=False)

    def _send_some(self, outgoing: "_Outgoing") -> bool:
        assert self._following is not None  # noqa: S101 - only a ring of one has no neighbours
        try:
            outgoing.advance(self._following.sendmsg(outgoing.views))
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._failed(RingError(self._after, f"is gone ({error.strerror or error})")) from error
        return True

    def _receive_some(self, incoming: "_Incoming", kind: int) -> bool:
        assert self._preceding is not None  # noqa: S101 - only a ring of one has no neighbours
        try:
            count = self._preceding.recvmsg_into(incoming.views)[0]
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._failed(RingError(self._before, f"is gone ({error.strerror or error})")) from error
        if not count:
            raise self._failed(RingError(self._before, "is gone (it closed the connection)"))
        if incoming.advance(count):
            self._check(incoming, kind)
        return True

    def _check(self, incoming: "_Incoming", kind: int) -> None:
        operation, their_kind, size = _HEADER.unpack(incoming.header)
        if (operation, their_kind) != (self.operations, kind) or not incoming.take(size):
            message = (
                f"rank {self._before} is in collective {operation}, a {_KINDS.get(their_kind, 'stranger')} of {size} "
                f"bytes, but rank {self.rank} is in collective {self.operations}, a {_KINDS[kind]} of "
                f"{incoming.values.nbytes} bytes; every rank has to run the same program on batches of the same shape"
            )
            raise self._failed(RingMismatchError(message))

    def _wait(self, *, reading: bool, writing: bool) -> None:
        peer = self._before if reading else self._after
        poller = self._poller(reading, writing)
        since = time.monotonic()
        with self._observer.waiting_for(f"rank {peer}"):
            while not poller.poll(0 if time.monotonic() - since < _SPIN_SECONDS else _POLL_MILLISECONDS):
                if time.monotonic() - since > self._limit_seconds:
                    raise self._failed(RingError(peer, f"has moved nothing for {self._limit_seconds:g} s"))
                os.sched_yield()  # to whoever else wants the core, perhaps the neighbour

    def _failed(self, error: Exception) -> Exception:
        self.failure = error
        return error

    def _poller(self, reading: bool, writing: bool) -> Any:
        poller = self._pollers.get((reading, writing))
        if poller is None:
            poller = self._pollers[reading, writing] = select.poll()
            if reading and self._preceding is not None:
                poller.register(self._preceding, select.POLLIN)
            if writing and self._following is not None:
                poller.register(self._following, select.POLLOUT)
        return poller

    @property
    def _after(self) -> int:
        return (self.rank + 1) % self.workers

    @property
    def _before(self) -> int:
        return (self.rank - 1) % self.workers


class _Outgoing:
    """A header and an array on their way out."""

    def __init__(self, header: bytes, values: Array) -> None:
        self.views = [memoryview(header), *_views(values)]

    @property
    def is_done(self) -> bool:
        return not self.views

    def advance(self, count: int) -> None:
        """Take ``count`` sent bytes off."""
        _advance(self.views, count)


class _Incoming:
    """Room for a header, and for an array of known size or of the size that the header says.

    Attributes:
        header: Its bytes.
        values: What comes behind it.
    """

    def __init__(self, room: Array | None) -> None:
        self.header = bytearray(_HEADER.size)
        self.values: Array = np.empty(0, np.uint8) if room is None else room
        self.views = [memoryview(self.header), *_views(self.values)]
        self._has_any_size = room is None
        self._has_header = False

    @property
    def is_done(self) -> bool:
        return self._has_header and not self.views

    def advance(self, count: int) -> bool:
        """Take ``count`` received bytes off; return whether the header has just become whole."""
        _advance(self.views, count)
        had_header, self._has_header = self._has_header, not self.views or self.views[0].obj is not self.header
        return self._has_header and not had_header

    def take(self, size: int) -> bool:
        """Make room for ``size`` bytes; return whether they fit."""
        if self._has_any_size:
            self.values = np.empty(size, np.uint8)
            self.views = _views(self.values)
        return self.values.nbytes == size


def _packed(arrays: Sequence[Array]) -> Array:
    """Return how many bytes each array has, and the bytes, in one piece."""
    sizes = np.array([array.nbytes for array in arrays], np.int64)
    return np.concatenate([part.reshape(-1).view(np.uint8) for part in (sizes, *arrays)])


def _unpacked(packed: Array, like: Sequence[Array]) -> list[Array]:
    """Return the arrays of another rank: of the types and inner shapes of ``like``, as long as they are."""
    ends = np.cumsum(packed[: 8 * len(like)].view(np.int64)) + 8 * len(like)
    starts = [8 * len(like), *ends[:-1].tolist()]
    return [
        # A copy where the type needs aligned memory: what stands before may be of any number of bytes.
        np.frombuffer(packed[start:end].tobytes(), mine.dtype).reshape(-1, *mine.shape[1:])
        for start, end, mine in zip(starts, ends.tolist(), like, strict=True)
    ]


def _advance(views: list[memoryview], count: int) -> None:
    while views and count >= len(views[0]):
        count -= len(views[0])
        del views[0]
    if count:
        views[0] = views[0][count:]


def _views(values: Array) -> list[memoryview]:
    """Return the bytes of ``values``, whatever its type; of an empty array, none."""
    return [values.reshape(-1).view(np.uint8).data] if values.nbytes else []
