"""An HTTP server under load: requests at fixed times, or one after the other, over connections that stay open.

The server has one core of its own, its clients another one.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np

from benchmarks.report import Table
from benchmarks.servers import Daemon
from benchmarks.train_work import in_new_process

BROKEN = 0
"""Stands for the status of a request whose connection broke."""
_LONGEST_SECONDS = 60.0
SERVER_CORE, CLIENT_CORE = 0, 1
START_SECONDS = 180.0
ENVIRONMENT = {
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "TF_USE_LEGACY_KERAS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass
class Load:
    """Outcome of some requests.

    Attributes:
        seconds: Time of each answer with status 200: from when its request was due, so that a server that stalls is
            charged for those that had to wait behind it.
        statuses: Number of answers by status; ``BROKEN`` counts lost connections.
        versions: Number of answers by the version in their head.
        wall_seconds: Time of all.
        done: Time at which each request was done, in seconds since the first, and its status.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    wall_seconds: float = 0.0
    done: list[tuple[float, int]] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        """Answers with status 200 per second."""
        return self.statuses[200] / self.wall_seconds

    def milliseconds(self, quantile: float) -> float:
        """Return a quantile, such as 99, of the times in milliseconds."""
        return float(np.percentile(self.seconds, quantile)) * 1e3 if self.seconds else float("nan")


def steady(port: int, requests: Sequence[bytes], per_second: float, seconds: float, connections: int = 64) -> Load:
    """Send requests in turn at fixed times, whether or not earlier ones are answered."""
    return asyncio.run(_Client(port, requests).steady(per_second, seconds, connections))


def saturated(port: int, requests: Sequence[bytes], seconds: float, connections: int) -> Load:
    """Send the next request of each connection as it has its answer."""
    return asyncio.run(_Client(port, requests).saturated(seconds, connections))


def post(path: str, body: bytes) -> bytes:
    """Return the bytes of a request."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def on_core(core: int) -> None:
    """Let this process run on one core alone, if the machine has it."""
    if core in os.sched_getaffinity(0):
        os.sched_setaffinity(0, {core})


class _Client:
    def __init__(self, port: int, requests: Sequence[bytes]) -> None:
        self._port, self._requests = port, cycle(requests)
        self._load = Load()
        self._idle: asyncio.LifoQueue[_Connection] = asyncio.LifoQueue()

    async def steady(self, per_second: float, seconds: float, connections: int) -> Load:
        for _ in range(connections):
            self._idle.put_nowait(_Connection(self._port))
        begin = time.perf_counter()
        tasks = []
        for number in range(int(per_second * seconds)):
            due = begin + number / per_second
            if (left := due - time.perf_counter()) > 0:
                await asyncio.sleep(left)
            tasks.append(asyncio.create_task(self._one(begin, due)))
        await asyncio.gather(*tasks)
        return self._ended(begin)

    async def saturated(self, seconds: float, connections: int) -> Load:
        begin = time.perf_counter()

        async def ask() -> None:
            connection = _Connection(self._port)
            while (now := time.perf_counter()) < begin + seconds:
                await self._ask(connection, begin, now)
            connection.close()

        await asyncio.gather(*(ask() for _ in range(connections)))
        return self._ended(begin)

    async def _one(self, begin: float, due: float) -> None:
        connection = await self._idle.get()
        await self._ask(connection, begin, due)
        self._idle.put_nowait(connection)

    async def _ask(self, connection: "_Connection", begin: float, due: float) -> None:
        try:
            async with asyncio.timeout(_LONGEST_SECONDS):
                status, version = await connection.ask(next(self._requests))
        except (OSError, asyncio.IncompleteReadError):  # a timeout is an OSError
            connection.close()
            status, version = BROKEN, ""
        now = time.perf_counter()
        self._load.statuses[status] += 1
        self._load.versions[version] += 1
        self._load.done.append((now - begin, status))
        if status == 200:
            self._load.seconds.append(now - due)

    def _ended(self, begin: float) -> Load:
        self._load.wall_seconds = time.perf_counter() - begin
        while not self._idle.empty():
            self._idle.get_nowait().close()
        return self._load


class _Connection:
    """A connection that is opened with its first request, and anew after it broke."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, str]:
        """Return status and version of the answer."""
        if self._streams is not None and self._streams[0].at_eof():
            self.close()  # the server may close connections that nobody uses
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        await reader.readexactly(int(fields["content-length"]))
        if fields.get("connection") == "close":
            self.close()
        return int(head.split(" ", 2)[1]), fields.get("x-model-version", "")

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        if self._streams is not None:
            with contextlib.suppress(OSError):
                self._streams[1].close()
            self._streams = None


def longest_gap(done: Sequence[tuple[float, int]], status: int = 200) -> float:
    """Return the longest time in seconds without an answer of a status."""
    times = sorted(when for when, of in done if of == status)
    return float(np.diff(times).max()) if len(times) > 1 else float("inf")


@contextlib.contextmanager
def served(scratch: Path, *flags: str) -> Iterator[int]:
    """Start ``mirrorspark serve`` with these flags, and give its port."""
    command = (sys.executable, "-m", "mirrorspark", "serve", *flags)
    with on_server_core(scratch, "serve", *command) as daemon:
        yield int(daemon.wait_for(r"listening on http://127\.0\.0\.1:(\d+)", START_SECONDS)[1])


@contextlib.contextmanager
def on_server_core(folder: Path, name: str, *command: str) -> Iterator[Daemon]:
    """Start a program on the core that servers have."""
    daemon = Daemon.start(("taskset", "--cpu-list", str(SERVER_CORE), *command), folder / f"{name}.log", ENVIRONMENT)
    try:
        yield daemon
    finally:
        daemon.end()


def load_of(ask: "partial[Load]") -> Load:
    """Send requests from the core of the clients, in a process of its own."""
    return in_new_process(_from_client_core, ask)


def loads_table(title: str, loads: Mapping[str, Load], note: str) -> Table:
    """Return a row per load."""
    rows = tuple(
        (
            name,
            f"{load.statuses.total() / load.wall_seconds:,.0f}",
            f"{load.per_second:,.0f}",
            *(f"{load.milliseconds(quantile):.1f}" for quantile in (50, 99, 99.9)),
            ", ".join(f"{count:,} of {status or 'no answer'}" for status, count in sorted(load.statuses.items())),
            f"{longest_gap(load.done):.2f}",
        )
        for name, load in loads.items()
    )
    columns = ("load", "asked/s", "answered/s", "p50 ms", "p99 ms", "p99.9 ms", "statuses", "longest silence, s")
    return Table(title, columns, rows, note)


def _from_client_core(ask: "partial[Load]") -> Load:
    on_core(CLIENT_CORE)
    return ask()
