"""Several processes behind one address: each serves, and one that dies or keeps silent is replaced."""

import asyncio
import contextlib
import logging
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from socket import socket

LISTENER_FLAG = "--listener"
"""Flag of a process that serves on a socket that it has got, and that ends when its standard input does."""

_LISTENING = b"listening on "
_ALIVE = b"alive"

_LOGGER = logging.getLogger(__name__)
# A process that dies sooner waits before it is started anew, longer each time.
_SOUND_SECONDS, _LONGEST_WAIT_SECONDS = 30.0, 30.0
# A process that is silent for this number of seconds is stopped or hangs, and is killed.
_SILENT_SECONDS = 10


def serve_in_processes(arguments: Sequence[str], count: int, listener: socket, last_seconds: float) -> int:
    """Serve until SIGTERM or SIGINT, in ``count`` processes that accept from one socket.

    Args:
        arguments: The command-line arguments.
        count: Number of processes.
        listener: The socket, which listens.
        last_seconds: How long a process may take to end after a signal; then it is killed.

    Returns:
        0 after a signal; the status of a process that ended before it served for the first time.
    """
    with tempfile.TemporaryDirectory(prefix="mirrorspark-serve-") as folder:
        # The library reads this when it is imported; counts of all processes are added up from files there.
        environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": folder}
        return asyncio.run(_Group(arguments, listener, environment, last_seconds).serve(count))


def report_alive() -> None:
    """Report to the process that started this one that it still works; not if nobody reads, which would block."""
    _, writable, _ = select.select([], [sys.stdout.fileno()], [], 0)
    if writable:
        os.write(sys.stdout.fileno(), _ALIVE + b"\n")


class _Life:
    """The signs of life of a process.

    Attributes:
        ready: Gets what it serves, in words, when it does so for the first time.
    """

    def __init__(self, ready: "asyncio.Future[str]") -> None:
        self.ready, self._serves, self._silent_seconds = ready, False, 0

    def begin(self, served: str) -> None:
        """Take note that it listens, and of what it serves."""
        self._serves = True
        if not self.ready.done():
            self.ready.set_result(served)

    def see(self) -> None:
        """Take note of a sign."""
        self._silent_seconds = 0

    async def end(self) -> None:
        """Return when it has served and then kept silent for too long.

        Seconds are counted here, not read from a clock: while this process is stopped, too, nobody is silent.
        """
        while self._silent_seconds < _SILENT_SECONDS:
            await asyncio.sleep(1)
            self._silent_seconds += self._serves


class _Group:
    def __init__(
        self, arguments: Sequence[str], listener: socket, environment: dict[str, str], last_seconds: float
    ) -> None:
        self._command = [
            *(sys.executable, "-m", "mirrorspark", "serve", *arguments),
            *("--processes", "1", LISTENER_FLAG, str(listener.fileno())),
        ]
        self._listener, self._environment, self._last_seconds = listener, environment, last_seconds
        self._is_ending = asyncio.Event()
        self._has_served = False

    async def serve(self, count: int) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._is_ending.set)
        ready = [loop.create_future() for _ in range(count)]
        tasks = [asyncio.create_task(self._keep_alive(one)) for one in ready]
        announcing = asyncio.create_task(self._announce(ready))
        statuses = await asyncio.gather(*tasks)
        announcing.cancel()
        return max(statuses)

    async def _announce(self, ready: Sequence["asyncio.Future[str]"]) -> None:
        served = [await one for one in ready]
        self._has_served = True
        host, port = self._listener.getsockname()[:2]
        print(f"listening on http://{host}:{port} with {served[0]}, by {len(served)} processes", flush=True)

    async def _keep_alive(self, ready: "asyncio.Future[str]") -> int:
        """Keep one process alive, and return the status of the group as this one decides it."""
        wait_seconds = 0.0
        while not self._is_ending.is_set():
            began = time.monotonic()
            try:
                status = await self._run(ready)
            except OSError as error:  # no memory or descriptor is left; the others go on
                _LOGGER.error("a process cannot be started: %s", error)  # noqa: TRY400 - no fault of the code
                status = 1
            if self._is_ending.is_set():
                break
            if not self._has_served:
                self._is_ending.set()
                return 128 - status if status < 0 else status or 1
            is_sound = time.monotonic() - began > _SOUND_SECONDS
            wait_seconds = 0.0 if is_sound else min(wait_seconds * 2 + 1, _LONGEST_WAIT_SECONDS)
            _LOGGER.error("a process has ended with status %s; another one begins in %g s", status, wait_seconds)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._is_ending.wait(), wait_seconds)
        return 0

    async def _run(self, ready: "asyncio.Future[str]") -> int:
        """Run a process to its end, and return its status."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=pipe,
            stdout=pipe,
            env=self._environment,
            pass_fds=[self._listener.fileno()],
            # A signal to the group of this process must not come to it twice.
            start_new_session=True,
        )
        ended = asyncio.create_task(process.wait())
        ending = asyncio.create_task(self._is_ending.wait())
        life = _Life(ready)
        reading = asyncio.create_task(_read_output(process, life))
        silent = asyncio.create_task(life.end())
        try:
            await asyncio.wait([ended, ending, silent], return_when=asyncio.FIRST_COMPLETED)
            if silent.done() and not ending.done():
                _LOGGER.error("process %s has been silent for %s s; it is killed", process.pid, _SILENT_SECONDS)
            elif not ended.done():
                process.terminate()
                await asyncio.wait([ended], timeout=self._last_seconds)
        finally:
            ending.cancel()
            silent.cancel()
            if not ended.done():
                process.kill()
            status = await ended
            # The rest is there already, unless a child of the process holds the pipe.
            await asyncio.wait([reading], timeout=1.0)
            reading.cancel()
        return status


async def _read_output(process: asyncio.subprocess.Process, life: _Life) -> None:
    """Read a process's signs of life and pass on the rest of its output, to its end."""
    assert process.stdout is not None  # noqa: S101 - a pipe
    rest = b""
    # A process whose pipe nobody reads would stop at its next print.
    while chunk := await process.stdout.read(1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(_LISTENING):
                life.begin(line.partition(b" with ")[2].decode(errors="replace"))
            elif line == _ALIVE:
                life.see()
            else:
                print(line.decode(errors="replace"), file=sys.stderr, flush=True)
        rest = rest[-(1 << 16) :]
