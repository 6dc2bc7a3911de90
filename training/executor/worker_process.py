"""A worker's process as its task sees it: its start from a fork server, its input, answers, stacks and end.

Spark's Python worker lives on between the tasks of a session if Spark reuses it. There a fork server
(:mod:`training.executor.fork_server`) stays ready after the first worker, so that a restart does not import TensorFlow
again. The server and its workers end with the Python worker, even if that is killed. Signals to the Python worker's
process group do not reach them: Spark's daemon ends its Python workers that way, and a worker has a checkpoint to save.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import IO, Any

from mirrorspark.clear_error import ClearError
from mirrorspark.training.executor.fork_server import STACKS_AT_ONCE, STACKS_END, STACKS_WITH_LOCK

PRELOAD = "mirrorspark.training.executor.worker_preload"

# The runner sets these for each attempt. They may differ between the workers of one server, since TensorFlow reads them
# at its first operation, not at its import.
PER_RANK = frozenset({"TF_CONFIG", "CUDA_VISIBLE_DEVICES"})

# Only for the server, whose libraries must not start threads, since a fork would lack them. NumPy's linear algebra
# starts its threads at import, and Arrow's allocator starts one that returns memory (without it, it does so inline).
_NO_THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}

# Importing TensorFlow takes 3 s, on a cold disk 30.
_START_SECONDS = 180.0
_MESSAGE_BYTES = 1 << 12
_STACKS_POLL_SECONDS = 0.02


class WorkerStartError(ClearError, RuntimeError):
    """A worker could not be started."""


class WorkerProcess:
    """A running worker. To be used by one thread, except for its streams; leaving the context ends the process.

    Attributes:
        answers: Its answers, line by line; the stream ends with the process and all processes that it has started.
        errors: Its standard output and error.
    """

    def __init__(self, server: "_ForkServer", pid: int, streams: "_Streams") -> None:
        self.pid = pid
        self.answers = streams.answers
        self.errors = streams.errors
        self._server = server
        self._streams = streams

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()
        self._streams.close()

    def send(self, data: bytes) -> None:
        """Write to its input without waiting for it to read; does nothing if the process has ended."""
        self._streams.orders.write(data)

    def send_signal(self, number: int) -> None:
        """Send a signal; does nothing to a process that has ended."""
        self._server.signal(self.pid, number)

    def kill(self) -> None:
        """End it at once, even if it is stopped."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout_seconds: float | None = None) -> int | None:
        """Return the exit status, negative for a signal; None if it has not ended in time."""
        return self._server.wait(self.pid, timeout_seconds)

    def stacks(self, timeout_seconds: float = 2.0) -> str:
        """Return the Python stacks of its threads; empty if it does not answer, for example because it is stopped.

        It also works while a thread holds Python's lock without releasing it, then after half of the time.
        """
        begin = os.fstat(self._streams.stacks).st_size
        deadline = time.monotonic() + timeout_seconds
        self.send_signal(STACKS_WITH_LOCK)
        before = text = b""
        while not text and time.monotonic() < deadline - timeout_seconds / 2:
            time.sleep(_STACKS_POLL_SECONDS)
            text = self._stacks_since(begin)
        has_end_mark = bool(text)
        if not has_end_mark:
            self.send_signal(STACKS_AT_ONCE)
        # Text without an end mark is taken as complete when it no longer grows.
        while time.monotonic() < deadline and not (
            text.endswith(STACKS_END) or (text and text == before and not has_end_mark)
        ):
            time.sleep(_STACKS_POLL_SECONDS)
            before, text = text, self._stacks_since(begin)
        return text.replace(STACKS_END, b"").decode("utf-8", "replace")

    def _stacks_since(self, begin: int) -> bytes:
        return os.pread(self._streams.stacks, os.fstat(self._streams.stacks).st_size - begin, begin)


def start(environment: Mapping[str, str], preload: str = PRELOAD) -> WorkerProcess:
    """Start a worker with this environment and this process's import path.

    It waits for the orders that :func:`training.executor.worker.main` reads from its input.

    Args:
        environment: The complete environment.
        preload: Module that the fork server imports ahead.

    Raises:
        WorkerStartError: The process could not be started.
    """
    server = _server_for(environment, preload)
    streams = _Streams.open()
    try:
        pid = server.fork([*streams.others])
    except BaseException:
        streams.close()
        raise
    finally:
        for file in streams.others[:-1]:
            os.close(file)
    process = WorkerProcess(server, pid, streams)
    surroundings = {"environment": dict(environment), "path": [path for path in sys.path if path]}
    process.send(json.dumps(surroundings).encode() + b"\n")
    return process


def shut_down() -> None:
    """End the fork server, and with it every worker that it has forked."""
    place = _place()
    if place.server is not None:
        place.server.close()
        place.server = None


@contextlib.contextmanager
def own_server() -> Iterator[None]:
    """Give this thread a fork server of its own, which ends with the block."""
    _of_thread.place = _Place()
    try:
        yield
    finally:
        shut_down()
        del _of_thread.place


@contextlib.contextmanager
def started_ahead(environment: Mapping[str, str], preload: str = PRELOAD) -> Iterator[None]:
    """Start a fork server for the first :func:`start` with such settings in the block, whichever thread calls it."""
    server = _ForkServer(_Needs.of(environment, preload))
    _ahead.append(server)
    try:
        yield
    finally:
        if _taken_from_ahead(server):
            server.kill()


def _server_for(environment: Mapping[str, str], preload: str) -> "_ForkServer":
    """Return the running fork server, or another in its place if it was started with other settings."""
    needs, place = _Needs.of(environment, preload), _place()
    if place.server is None or place.server.needs != needs or not place.server.is_alive():
        shut_down()
        place.server = _ready_server(needs) or _ForkServer(needs)
    return place.server


def _place() -> "_Place":
    place: _Place = getattr(_of_thread, "place", _place_of_tasks)
    return place


def _ready_server(needs: "_Needs") -> "_ForkServer | None":
    for server in [*_ahead]:
        if server.needs.cover(needs) and server.is_alive() and _taken_from_ahead(server):
            return server
    return None


def _taken_from_ahead(server: "_ForkServer") -> bool:
    """Take a server from those started ahead, unless another thread has."""
    try:
        _ahead.remove(server)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class _Needs:
    """The settings that a fork server is started with, and cannot change for a worker."""

    environment: frozenset[tuple[str, str]]
    path: tuple[str, ...]
    preload: str

    @classmethod
    def of(cls, environment: Mapping[str, str], preload: str) -> "_Needs":
        lasting = {name: value for name, value in environment.items() if name not in PER_RANK}
        return cls(frozenset(lasting.items()), tuple(path for path in sys.path if path), preload)

    def cover(self, later: "_Needs") -> bool:
        """Return whether a server that was started with these serves later ones.

        Libraries that this process has imported since then may have set variables, which a worker gets at its start.
        """
        return self.environment <= later.environment and (self.path, self.preload) == (later.path, later.preload)


class _ForkServer:
    """The fork server as seen by the process that started it."""

    def __init__(self, needs: _Needs) -> None:
        self.needs = needs
        # This kind of socket keeps the borders and order of messages, and each process sees the other's end.
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._statuses: dict[int, int] = {}
        self._is_gone = False
        with theirs:
            self._process = subprocess.Popen(
                # -P keeps the task's working directory off the module path, unless this process's path contains it.
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "mirrorspark.training.executor.fork_server",
                    str(theirs.fileno()),
                    needs.preload,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=dict(needs.environment) | _NO_THREADS | {"PYTHONPATH": os.pathsep.join(needs.path)},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )

    def is_alive(self) -> bool:
        return not self._is_gone and self._process.poll() is None

    def fork(self, files: list[int]) -> int:
        """Fork a worker with these files, and return its process id.

        Raises:
            WorkerStartError: The server has ended, or does not answer.
        """
        try:
            socket.send_fds(self._channel, [b"{}"], files)
            deadline = time.monotonic() + _START_SECONDS
            while (message := self._receive(deadline - time.monotonic())) is not None:
                if "forked" in message:
                    return int(message["forked"])
        except ConnectionError as error:
            self.close()
            raise WorkerStartError(
                f"the fork server ended with status {self._process.returncode}; the executor's log may say why"
            ) from error
        self.close()
        raise WorkerStartError(f"importing {self.needs.preload} took more than {_START_SECONDS:.0f} s")

    def signal(self, pid: int, number: int) -> None:
        if pid in self._statuses:
            return
        try:
            # Only the server knows if the number still belongs to that process.
            self._channel.send(json.dumps({"signal": number, "rank": pid}).encode())
        except OSError:
            self._end_without_server(pid)

    def wait(self, pid: int, timeout_seconds: float | None) -> int | None:
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        try:
            while pid not in self._statuses:
                if self._receive(None if deadline is None else deadline - time.monotonic()) is None:
                    return None
        except OSError:
            self._end_without_server(pid)
        return self._statuses[pid]

    def close(self) -> None:
        """End the server; it kills the workers that it has forked."""
        self._channel.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # It is within an import, or stopped.
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """End a server that has forked nothing, even within an import."""
        self._process.kill()
        self.close()

    def _end_without_server(self, pid: int) -> None:
        """End a worker whose server was killed; its exit status can no longer be learnt."""
        # Its connections end before its end can be waited for.
        self._is_gone = True
        if pid not in self._statuses:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self._statuses[pid] = -signal.SIGKILL

    def _receive(self, timeout_seconds: float | None) -> dict[str, Any] | None:
        """Return the server's next message, or None if there is none in time.

        Raises:
            OSError: The server has ended.
        """
        self._channel.settimeout(None if timeout_seconds is None else max(timeout_seconds, 1e-3))
        try:
            text = self._channel.recv(_MESSAGE_BYTES)
        except TimeoutError:
            return None
        finally:
            self._channel.settimeout(None)
        if not text:
            raise ConnectionResetError("the fork server has ended")
        message: dict[str, Any] = json.loads(text)
        if "ended" in message:
            self._statuses[message["ended"]] = message["status"]
        return message


class _Orders:
    """A writer to a worker's input with its own thread, since a stopped worker reads nothing."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._waiting: SimpleQueue[bytes | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="orders", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        self._waiting.put(data)

    def close(self) -> None:
        self._waiting.put(None)
        # Wakes the thread.
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._connection.close()

    def _work(self) -> None:
        with contextlib.suppress(OSError):  # The worker has ended, and its end shows why.
            while (data := self._waiting.get()) is not None:
                self._connection.sendall(data)


@dataclass(frozen=True)
class _Streams:
    """Both ends of a worker's files.

    Orders and answers are sockets: this side can end them while a thread waits on them, and while a child of the worker
    holds the other end.
    """

    orders: _Orders
    connection: socket.socket
    answers: IO[str]
    errors: IO[str]
    stacks: int
    others: tuple[int, int, int, int]

    @classmethod
    def open(cls) -> "_Streams":
        orders, orders_read = socket.socketpair()
        answers, answers_write = socket.socketpair()
        errors, errors_write = os.pipe()
        # A file in memory, since a pipe without a reader would block the worker while it writes its stacks.
        stacks = os.memfd_create("stacks")
        return cls(
            _Orders(orders),
            answers,
            answers.makefile(encoding="utf-8", errors="replace"),
            os.fdopen(errors, encoding="utf-8", errors="replace"),
            stacks,
            (orders_read.detach(), answers_write.detach(), errors_write, stacks),
        )

    def close(self) -> None:
        self.orders.close()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.answers.close()
        self.connection.close()
        self.errors.close()
        os.close(self.stacks)


@dataclass
class _Place:
    """The place of a running fork server."""

    server: _ForkServer | None = None


# A fork server must outlive a task, and only a module's state does so in Spark's Python worker. On the driver,
# trainings in several threads have a server each.
_place_of_tasks = _Place()
_of_thread = threading.local()
_ahead: list[_ForkServer] = []
