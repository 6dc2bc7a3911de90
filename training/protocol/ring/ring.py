"""Collectives over TCP between the ranks of a training: sums, gathers and broadcasts of NumPy arrays.

Every rank has one connection to the next rank and one from the previous, so that the bytes a rank sends do not grow
with the number of ranks. TensorFlow's own collectives on CPU go through gRPC, with a handshake and copies for every
tensor: docs/benchmarks/train_steps.md compares. A lost rank raises `RingError` in its neighbours at once, and in the
other ranks when those close their connections.

Both sides of a connection prove that they know the run's token (`training.protocol.ring.connection`). Arrays are not
encrypted, as Spark's own traffic is not by default. Nothing is unpickled.

Every array travels with the sum of its 32-bit words and its header with a CRC-32, so that a changed byte that TCP's
16-bit checksum misses ends the attempt instead of making the ranks differ. The sum takes less than a hundredth of a
step; a CRC-32 of the array takes six to nine times as long, measured on arrays of 0.2 and 1 MB (`_checksum`).

The sum misses words that changed places, and changes of several words that cancel out. The ranks' weights are
therefore compared at every checkpoint as well (`callbacks.collectives.equal_weights`), which shows changes that made
ranks differ. Neither check sees an error that all ranks get: from three ranks on, and for arrays above
``_SMALL_BYTES``, a part is summed on its way from rank to rank, and then sent to all.
"""

import math
import os
import select
import socket
import struct
import time
import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mirrorspark.training.protocol.ring.connection import connect_neighbours
from mirrorspark.training.protocol.ring.errors import RingChecksumError, RingError, RingMismatchError

Array = npt.NDArray[Any]

# Up to this size an all-gather of whole arrays, which has half the rounds of reduce-scatter and all-gather, is faster.
_SMALL_BYTES = 1 << 14
_POLL_MILLISECONDS = 1000

# A busy neighbour sends within milliseconds, so a rank spins before it sleeps: steps are 8 % shorter at batch 256 and
# 3 % at 2,048 on two cores; two ranks on one core gain and lose nothing.
_SPIN_SECONDS = 0.005

# Header of every array: number of the collective, its kind, bytes of the array, sum of its words. Its CRC-32 follows.
_HEADER = struct.Struct("<QBQI")
_HEADER_CHECKSUM = struct.Struct("<I")
_SUM, _GATHER, _BROADCAST = range(1, 4)
_KINDS = {_SUM: "sum", _GATHER: "gather", _BROADCAST: "broadcast"}


class Observer(Protocol):
    """Follows the ring's waits and collectives, as `training.protocol.Activity` does."""

    collectives: int

    def waiting_for(self, what: str) -> AbstractContextManager[None]:
        """This rank waits for ``what`` while the block runs."""


class _NoObserver:
    collectives = 0

    def waiting_for(self, what: str) -> AbstractContextManager[None]:
        return nullcontext()


class Ring:
    """One rank of the ring. All ranks call the same collectives in the same order, each from one thread.

    Attributes:
        rank: This rank.
        workers: Number of ranks.
        operations: Finished collectives.
        failure: The error that ended the ring, for callers to whom TensorFlow shows only its text.
    """

    def __init__(
        self,
        rank: int,
        workers: int,
        to_next: socket.socket | None = None,
        from_previous: socket.socket | None = None,
        *,
        limit_seconds: float = 3600.0,
        observer: Observer | None = None,
    ) -> None:
        """Use authenticated connections to the next and from the previous rank; `connect` makes them."""
        self.rank = rank
        self.workers = workers
        self.operations = 0
        self.failure: Exception | None = None
        self._observer = observer or _NoObserver()
        self._to_next = to_next
        self._from_previous = from_previous
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
        """Connect to the next rank, accept the previous one, and return the ring once both are connected.

        Args:
            rank: This rank.
            addresses: ``host:port`` of every rank, in order.
            token: Secret of this attempt's ranks.
            listener: From `open_listener`, on this rank's address; it is closed. Without one, this rank's port must be
                free.
            timeout_seconds: Time limit for both connections.
            limit_seconds: Longest wait of a collective for a neighbour; infinite in a rank, where the driver's watchdog
                has limits for each phase.
            observer: Follows waits and finished collectives.

        Raises:
            RingConnectError: A neighbour did not connect, or does not know the token.
            OSError: This rank's own address cannot be listened on.
        """
        workers = len(addresses)
        if workers == 1:
            return cls(0, 1)
        deadline = time.monotonic() + timeout_seconds
        to_next, from_previous = connect_neighbours(rank, addresses, token, listener, deadline)
        return cls(rank, workers, to_next, from_previous, limit_seconds=limit_seconds, observer=observer)

    def all_reduce(self, values: Array) -> Array:
        """Return the sum of all ranks' ``values``, element by element; every rank gets the same bits.

        Args:
            values: One-dimensional, of the same type and length on all ranks.

        Raises:
            RingError: A rank is lost.
            RingMismatchError: A rank is in another collective.
        """
        if self.workers == 1:
            return values.copy()
        values = np.ascontiguousarray(values)
        if self.workers == 2:
            theirs = np.empty_like(values)
            self._exchange(_SUM, values, theirs)
            # In the order of the ranks: of two NaN the first one's bits stay, so both ranks get the same.
            first, second = (values, theirs) if self.rank == 0 else (theirs, values)
            np.add(first, second, out=theirs)
        elif values.nbytes <= _SMALL_BYTES:
            theirs = self._all_reduce_whole(values)
        else:
            theirs = self._all_reduce_in_parts(values)
        self._count_collective()
        return theirs

    def all_gather(self, values: Array) -> list[Array]:
        """Return every rank's ``values`` in the order of the ranks; only their first dimensions may differ."""
        return [parts[0] for parts in self.all_gather_many([values])]

    def all_gather_many(self, arrays: Sequence[Array]) -> list[list[Array]]:
        """Return every rank's ``arrays`` in the order of the ranks, in one collective; see `all_gather`."""
        arrays = [np.ascontiguousarray(array) for array in arrays]
        parts: list[Array] = [_packed(arrays)] * self.workers
        for turn in range(self.workers - 1):
            mine, theirs = (self.rank - turn) % self.workers, (self.rank - turn - 1) % self.workers
            parts[theirs] = self._exchange(_GATHER, parts[mine])
        self._count_collective()
        unpacked = []
        for rank, part in enumerate(parts):
            if (of_rank := _unpacked(part, arrays)) is None:
                message = (
                    f"rank {rank} gathers other arrays than rank {self.rank}, whose shapes are "
                    f"{[array.shape for array in arrays]}; every rank has to run the same program, and only the first "
                    f"dimensions may differ"
                )
                raise self._with_failure(RingMismatchError(message))
            unpacked.append(of_rank)
        return unpacked

    def broadcast(self, values: Array) -> Array:
        """Return rank 0's ``values``; type and shape are the same on all ranks."""
        received = np.array(values, order="C")
        if self.workers > 1:
            if self.rank:
                self._receive(_BROADCAST, received)
            if self._next_rank:
                self._send(_BROADCAST, received)
            self._count_collective()
        return received

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.all_reduce(np.zeros(1, np.uint8))

    def close(self) -> None:
        """Close the connections; to a neighbour in a collective this rank is then lost."""
        for connection in (self._to_next, self._from_previous):
            if connection is not None:
                connection.close()

    def _all_reduce_whole(self, values: Array) -> Array:
        """Gather every rank's ``values``, and sum them in the order of the ranks."""
        parts = [np.empty_like(values) for _ in range(self.workers)]
        parts[self.rank] = values
        for turn in range(self.workers - 1):
            mine, theirs = (self.rank - turn) % self.workers, (self.rank - turn - 1) % self.workers
            self._exchange(_SUM, parts[mine], parts[theirs])
        total: Array = parts[0].copy()
        for part in parts[1:]:
            total += part
        return total

    def _all_reduce_in_parts(self, values: Array) -> Array:
        """Reduce-scatter, then all-gather.

        Source: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations".
        """
        total = values.copy()
        parts = np.array_split(total, self.workers)
        buffer = np.empty_like(parts[0])  # The first part is the longest.
        for turn in range(self.workers - 1):
            mine, theirs = (self.rank - turn) % self.workers, (self.rank - turn - 1) % self.workers
            received = buffer[: len(parts[theirs])]
            self._exchange(_SUM, parts[mine], received)
            parts[theirs] += received
        for turn in range(self.workers - 1):
            mine, theirs = (self.rank - turn + 1) % self.workers, (self.rank - turn) % self.workers
            self._exchange(_SUM, parts[mine], parts[theirs])
        return total

    def _count_collective(self) -> None:
        self.operations += 1
        self._observer.collectives = self.operations

    def _exchange(self, kind: int, sent: Array, buffer: Array | None = None) -> Array:
        """Send to the next rank and receive from the previous one at the same time, so that no side buffers everything.

        Args:
            kind: Kind of the collective.
            sent: Values for the next rank.
            buffer: Must be filled exactly by the previous rank; without it that rank may send any number of bytes.

        Returns:
            ``buffer``, or the bytes received.
        """
        outgoing = _Outgoing(_packed_header(self.operations, kind, sent), sent)
        incoming = _Incoming(buffer)
        while not (outgoing.is_done and incoming.is_done):
            has_moved = not outgoing.is_done and self._send_some(outgoing)
            if not incoming.is_done:
                has_moved |= self._receive_some(incoming, kind)
            if not has_moved:
                self._wait(reading=not incoming.is_done, writing=not outgoing.is_done)
        self._verify(incoming)
        return incoming.values

    def _send(self, kind: int, sent: Array) -> None:
        outgoing = _Outgoing(_packed_header(self.operations, kind, sent), sent)
        while not outgoing.is_done:
            if not self._send_some(outgoing):
                self._wait(reading=False, writing=True)

    def _receive(self, kind: int, buffer: Array) -> None:
        incoming = _Incoming(buffer)
        while not incoming.is_done:
            if not self._receive_some(incoming, kind):
                self._wait(reading=True, writing=False)
        self._verify(incoming)

    def _send_some(self, outgoing: "_Outgoing") -> bool:
        assert self._to_next is not None  # noqa: S101 - only a ring of one has no neighbours
        try:
            outgoing.advance(self._to_next.sendmsg(outgoing.views))
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._with_failure(RingError(self._next_rank, f"disconnected ({error.strerror or error})")) from error
        return True

    def _receive_some(self, incoming: "_Incoming", kind: int) -> bool:
        assert self._from_previous is not None  # noqa: S101 - only a ring of one has no neighbours
        try:
            count = self._from_previous.recvmsg_into(incoming.views)[0]
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._with_failure(
                RingError(self._previous_rank, f"disconnected ({error.strerror or error})")
            ) from error
        if not count:
            raise self._with_failure(RingError(self._previous_rank, "disconnected (it closed the connection)"))
        if incoming.advance(count):
            self._check(incoming, kind)
        return True

    def _check(self, incoming: "_Incoming", kind: int) -> None:
        if (
            zlib.crc32(incoming.header[: _HEADER.size])
            != _HEADER_CHECKSUM.unpack_from(incoming.header, _HEADER.size)[0]
        ):
            raise self._changed("the header of an array")
        operation, their_kind, size, incoming.checksum = _HEADER.unpack_from(incoming.header)
        if (operation, their_kind) != (self.operations, kind) or not incoming.reserve(size):
            theirs = f"rank {self._previous_rank} is in collective {operation}, a {_KINDS.get(their_kind, 'unknown')}"
            message = (
                f"{theirs} of {size} bytes, but rank {self.rank} is in collective {self.operations}, a {_KINDS[kind]} "
                f"of {incoming.values.nbytes} bytes; every rank has to run the same program on batches of the same "
                f"shape"
            )
            raise self._with_failure(RingMismatchError(message))

    def _verify(self, incoming: "_Incoming") -> None:
        if _checksum(incoming.values) != incoming.checksum:
            raise self._changed(f"an array of {incoming.values.nbytes} bytes")

    def _changed(self, what: str) -> Exception:
        message = f"sent {what} that changed on the way (checksum): memory or network of one of the two is faulty"
        return self._with_failure(RingChecksumError(self._previous_rank, message))

    def _wait(self, *, reading: bool, writing: bool) -> None:
        peer = self._previous_rank if reading else self._next_rank
        poller = self._poller(reading, writing)
        since = time.monotonic()
        with self._observer.waiting_for(f"rank {peer}"):
            while not poller.poll(0 if time.monotonic() - since < _SPIN_SECONDS else _POLL_MILLISECONDS):
                if time.monotonic() - since > self._limit_seconds:
                    raise self._with_failure(RingError(peer, f"has moved nothing for {self._limit_seconds:g} s"))
                os.sched_yield()  # The neighbour may need this core.

    def _with_failure(self, error: Exception) -> Exception:
        self.failure = error
        return error

    def _poller(self, reading: bool, writing: bool) -> Any:
        poller = self._pollers.get((reading, writing))
        if poller is None:
            poller = self._pollers[reading, writing] = select.poll()
            if reading and self._from_previous is not None:
                poller.register(self._from_previous, select.POLLIN)
            if writing and self._to_next is not None:
                poller.register(self._to_next, select.POLLOUT)
        return poller

    @property
    def _next_rank(self) -> int:
        return (self.rank + 1) % self.workers

    @property
    def _previous_rank(self) -> int:
        return (self.rank - 1) % self.workers


class _Outgoing:
    """A header and an array to send."""

    def __init__(self, header: bytes, values: Array) -> None:
        self.views = [memoryview(header), *_views(values)]

    @property
    def is_done(self) -> bool:
        return not self.views

    def advance(self, count: int) -> None:
        """Remove ``count`` sent bytes."""
        _advance(self.views, count)


class _Incoming:
    """A buffer for a header, and one for an array: of the given size, or of the size in the header."""

    def __init__(self, buffer: Array | None) -> None:
        self.header = bytearray(_HEADER.size + _HEADER_CHECKSUM.size)
        self.checksum = 0
        self.values: Array = np.empty(0, np.uint8) if buffer is None else buffer
        self.views = [memoryview(self.header), *_views(self.values)]
        self._has_any_size = buffer is None
        self._has_header = False

    @property
    def is_done(self) -> bool:
        return self._has_header and not self.views

    def advance(self, count: int) -> bool:
        """Count ``count`` received bytes; return True if they completed the header."""
        _advance(self.views, count)
        had_header, self._has_header = self._has_header, not self.views or self.views[0].obj is not self.header
        return self._has_header and not had_header

    def reserve(self, size: int) -> bool:
        """Make the buffer ready for ``size`` bytes; return True if they fit."""
        if self._has_any_size:
            self.values = np.empty(size, np.uint8)
            self.views = _views(self.values)
        return self.values.nbytes == size


def _packed_header(operation: int, kind: int, sent: Array) -> bytes:
    header = _HEADER.pack(operation, kind, sent.nbytes, _checksum(sent))
    return header + _HEADER_CHECKSUM.pack(zlib.crc32(header))


def _checksum(values: Array) -> int:
    """Return the sum of the array's 32-bit words and of the bytes after them, modulo 2**32.

    Every change of a single word shows. A swap of words does not, nor do changes that cancel out: of random ones, one
    in 2**32. The module's docstring has what follows from that.
    """
    content = values.reshape(-1).view(np.uint8)
    end = len(content) // 4 * 4
    words = int(np.add.reduce(content[:end].view(np.uint32), dtype=np.uint32))
    return (words + int.from_bytes(content[end:].tobytes(), "little")) & 0xFFFFFFFF


def _packed(arrays: Sequence[Array]) -> Array:
    """Return the number of the arrays, their byte counts, then their bytes, as one array."""
    sizes = np.array([len(arrays), *(array.nbytes for array in arrays)], np.int64)
    return np.concatenate([part.reshape(-1).view(np.uint8) for part in (sizes, *arrays)])


def _unpacked(packed: Array, like: Sequence[Array]) -> list[Array] | None:
    """Return the arrays of another rank, which may differ from ``like`` in their lengths; None if they are others."""
    begin = 8 * (1 + len(like))
    count, *sizes = packed[:begin].view(np.int64).tolist() if packed.nbytes >= begin else [-1]
    if count != len(like) or begin + sum(sizes) != packed.nbytes:
        return None
    arrays = []
    for size, mine in zip(sizes, like, strict=True):
        row = mine.itemsize * math.prod(mine.shape[1:])
        if size % row if row else size:
            return None
        # A copy, since a view could be unaligned: the bytes before it may be of any number.
        values = np.frombuffer(packed[begin : begin + size].tobytes(), mine.dtype)
        arrays.append(values.reshape(size // row if row else len(mine), *mine.shape[1:]))
        begin += size
    return arrays


def _advance(views: list[memoryview], count: int) -> None:
    while views and count >= len(views[0]):
        count -= len(views[0])
        del views[0]
    if count:
        views[0] = views[0][count:]


def _views(values: Array) -> list[memoryview]:
    """Return the bytes of ``values``; of an empty array, none."""
    return [values.reshape(-1).view(np.uint8).data] if values.nbytes else []
