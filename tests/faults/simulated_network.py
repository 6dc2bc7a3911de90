"""Simulated connections, and the stand-ins of modules; see :mod:`tests.faults.simulated`."""

import errno
import math
import secrets as real_secrets
import socket as real_socket
import threading as real_threading
import time as real_time
from collections import deque
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.faults.simulated import Condition, Event, Lock, Process, Thread, this_process, this_room

_EPOCH = 1_700_000_000.0
# Keep-alive breaks a connection that is silent for this long, a little later.
_SILENT_SECONDS = 25.0


class _Flow:
    """One direction of a connection, as a queue of bytes and the moments at which they arrive."""

    def __init__(self) -> None:
        self.parts: deque[tuple[float, bytes]] = deque()
        self.size = 0
        self.latest = 0.0
        self.ends_at = math.inf

    def put(self, content: bytes, at: float) -> None:
        self.latest = max(self.latest, at)
        self.parts.append((self.latest, content))
        self.size += len(content)

    def has_arrived(self, now: float) -> bool:
        return bool(self.parts) and self.parts[0][0] <= now

    def take(self, most: int) -> bytes:
        at, content = self.parts.popleft()
        if most < len(content):
            self.parts.appendleft((at, content[most:]))
        self.size -= min(most, len(content))
        return content[:most]

    def hold(self, now: float, until: float) -> None:
        """Let what is on its way arrive later."""
        self.latest = max(self.latest, until)
        self.parts = deque((at if at <= now else max(at, until), content) for at, content in self.parts)
        if now < self.ends_at < until:
            self.ends_at = until

    def drop(self, now: float) -> bool:
        """Lose what is on its way; return whether there was anything."""
        before = self.size
        self.parts = deque((at, content) for at, content in self.parts if at <= now)
        self.size = sum(len(content) for _, content in self.parts)
        return self.size < before


class Socket:
    """Simulated connected ``socket.socket``."""

    def __init__(self, process: Process, incoming: _Flow, outgoing: _Flow) -> None:
        self.process, self.incoming, self.outgoing = process, incoming, outgoing
        self.peer: Socket
        self.notices_silence = False
        self._timeout: float | None = None
        self._is_shut = {real_socket.SHUT_RD: False, real_socket.SHUT_WR: False}
        self._is_closed = False
        self._dies_at, self._error = math.inf, _reset
        self._loses_unread = process.room.chance.random() < 0.5
        process.sockets.append(self)

    def __enter__(self) -> "Socket":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def settimeout(self, seconds: float | None) -> None:
        self._timeout = seconds

    def setsockopt(self, level: int, option: int, value: int) -> None:
        if self._is_closed:
            raise OSError(errno.EBADF, "Bad file descriptor")
        self.notices_silence |= option == real_socket.TCP_USER_TIMEOUT

    def sendall(self, content: bytes) -> None:
        while content:
            content = content[self.send(content[: self.process.room.some(len(content))]) :]

    def send(self, content: bytes, flags: int = 0) -> int:
        room = self.process.room
        room.point()

        def is_ready() -> bool:
            return self.outgoing.size < room.capacity or self._is_shut[real_socket.SHUT_WR] or self._is_dead(room.now)

        if not is_ready():
            if flags & real_socket.MSG_DONTWAIT:
                raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
            if not room.wait(is_ready, self._timeout):
                raise TimeoutError("timed out")
        if self._is_dead(room.now):
            raise self._error()
        if self._is_shut[real_socket.SHUT_WR]:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        content = content[: room.capacity - self.outgoing.size]
        at = self._arrival()
        if self.peer._is_shut[real_socket.SHUT_RD]:
            # Like what was on its way, it is dropped where it arrives, and answered by a reset.
            self._die(max(at, self.outgoing.latest) + room.delay(), _reset)
        else:
            self.outgoing.put(content, at)
            room.notice(self.outgoing.latest)
        return len(content)

    def recv(self, most: int) -> bytes:
        room = self.process.room
        room.point()

        def is_ready() -> bool:
            now = room.now
            has_ended = self._is_shut[real_socket.SHUT_RD] or self.incoming.ends_at <= now
            return has_ended or self.incoming.has_arrived(now) or self._is_dead(now)

        if not is_ready() and not room.wait(is_ready, self._timeout):
            raise TimeoutError("timed out")
        is_dead = self._is_dead(room.now)
        if not (is_dead and self._loses_unread) and self.incoming.has_arrived(min(room.now, self._dies_at)):
            return self.incoming.take(room.some(most))
        if is_dead:
            raise self._error()
        return b""

    def makefile(self, mode: str, buffering: int = -1) -> "Stream":
        return Stream(self)

    def shutdown(self, how: int) -> None:
        if self._is_closed:
            raise OSError(errno.EBADF, "Bad file descriptor")
        if self._is_dead(self.process.room.now):
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        self._shut(how)
        self.process.room.point()

    def close(self) -> None:
        self.process.room.check()
        self.end()

    def end(self) -> None:
        """Close it, as the system does for a process."""
        if not self._is_closed:
            self._is_closed = True
            if self.incoming.size:  # unread: the other side gets an error
                self.peer.reset()
            self._shut(real_socket.SHUT_RDWR)
            self.process.sockets.remove(self)

    def reset(self) -> None:
        """Break this end when its host gets the message."""
        self._die(self._arrival(), _reset)

    def hold(self, until: float) -> None:
        """Let nothing arrive at either end until a moment; break the connection if that is too late."""
        now = self.process.room.now
        for end in (self, self.peer):
            end.incoming.hold(now, until)
            if end.notices_silence and until - now > _SILENT_SECONDS:
                end._die(now + self.process.room.chance.uniform(_SILENT_SECONDS, 1.5 * _SILENT_SECONDS), _timed_out)
                end.peer._die(until + self.process.room.latency, _reset)

    def _die(self, at: float, error: Callable[[], OSError]) -> None:
        if at < self._dies_at:
            self._dies_at, self._error = at, error
            self.process.room.notice(at)

    def _is_dead(self, now: float) -> bool:
        return now >= self._dies_at

    def _arrival(self) -> float:
        """Return the moment at which something arrives that is sent now, from either end."""
        room = self.process.room
        return max(room.now, self.process.cut_off_until, self.peer.process.cut_off_until) + room.delay()

    def _shut(self, how: int) -> None:
        room = self.process.room
        if how != real_socket.SHUT_RD and not self._is_shut[real_socket.SHUT_WR]:
            self._is_shut[real_socket.SHUT_WR] = True
            self.outgoing.ends_at = max(self.outgoing.latest, self._arrival())
            room.notice(self.outgoing.ends_at)
        if how != real_socket.SHUT_WR:
            self._is_shut[real_socket.SHUT_RD] = True
            if self.incoming.drop(room.now):
                self.peer.reset()


class Stream:
    """Simulated file of a socket; the real one would hold a lock of its own while others go on."""

    closed = False

    def __init__(self, source: Socket) -> None:
        self._source = source
        self._read = bytearray()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, size: int) -> bytes:
        if not self._read:
            self._read += self._source.recv(8192)
        content = bytes(self._read[:size])
        del self._read[:size]
        return content

    def readline(self, limit: int) -> bytes:
        while b"\n" not in self._read and len(self._read) < limit:
            received = self._source.recv(8192)
            if not received:
                break
            self._read += received
        end = self._read.find(b"\n") + 1 or len(self._read)
        return self.read(min(end, limit)) if self._read else b""

    def close(self) -> None:
        self.closed = True


class Listener:
    """Simulated ``socket.socket`` that listens."""

    def __init__(self, *_: object) -> None:
        self.process: Process = this_process()
        self.waiting: deque[Socket] = deque()
        self._port = self.process.room.chance.getrandbits(32)
        self._is_shut = False

    def bind(self, address: tuple[str, int]) -> None:
        self._host = address[0]

    def getsockname(self) -> tuple[str, int]:
        return self._host, self._port

    def listen(self, most: int) -> None:
        self.process.room.listeners[self._port] = self

    def accept(self) -> tuple[Socket, tuple[str, int]]:
        room = self.process.room
        room.point()
        if not self.waiting and not self._is_shut:
            room.wait(lambda: bool(self.waiting) or self._is_shut)
        if self._is_shut:
            raise OSError(errno.EINVAL, "Invalid argument")
        return self.waiting.popleft(), ("somewhere", 0)

    def shutdown(self, how: int) -> None:
        """Listen no more; who waits for a connection gets an error."""
        if not self._is_shut:
            self._is_shut = True
            del self.process.room.listeners[self._port]
            for connection in list(self.waiting):
                connection.peer.reset()
                connection.end()

    def close(self) -> None:
        self.shutdown(real_socket.SHUT_RDWR)


def _create_server(address: tuple[str, int], *, backlog: int) -> Listener:
    listener = Listener()
    listener.bind(address)
    listener.listen(backlog)
    return listener


def _reset() -> OSError:
    return ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


def _timed_out() -> OSError:
    return TimeoutError(errno.ETIMEDOUT, "Connection timed out")


def _connect(address: tuple[str, int], timeout: float | None = None) -> Socket:
    process: Process = this_process()
    room = process.room
    room.sleep(room.delay())
    listener = room.listeners.get(address[1])
    ends = [process] if listener is None else [process, listener.process]

    def is_reached() -> bool:
        return all(room.now >= end.cut_off_until for end in ends)

    if not is_reached() and not room.wait(is_reached, timeout):
        raise TimeoutError("timed out")
    listener = room.listeners.get(address[1])
    if listener is None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
    there, back = _Flow(), _Flow()
    mine, theirs = Socket(process, back, there), Socket(listener.process, there, back)
    mine.peer, theirs.peer = theirs, mine
    mine.settimeout(timeout)
    listener.waiting.append(theirs)
    return mine


def _like(module: ModuleType, **replaced: Any) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(module), **replaced})


def _token_hex(size: int) -> str:
    return f"{this_room().chance.getrandbits(8 * size):0{2 * size}x}"


STAND_INS = {
    "threading": _like(real_threading, Thread=Thread, Lock=Lock, Condition=Condition, Event=Event),
    "socket": _like(real_socket, socket=Listener, create_connection=_connect, create_server=_create_server),
    "time": _like(
        real_time,
        time=lambda: _EPOCH + this_room().now + this_process().skew_seconds,
        monotonic=lambda: this_room().now,
        sleep=lambda seconds: this_room().sleep(seconds),
    ),
    "secrets": _like(real_secrets, token_hex=_token_hex),
}


def simulate(patch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
    """Give modules the stand-ins."""
    for module in modules:
        for name, stand_in in STAND_INS.items():
            if hasattr(module, name):
                patch.setattr(module, name, stand_in)
