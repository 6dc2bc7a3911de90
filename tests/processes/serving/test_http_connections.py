"""Q5: connections of the HTTP servers end when their clients keep silent, and have a number."""

import asyncio
import contextlib
import gc
import socket
import struct
from collections.abc import AsyncIterator

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn import Server

from mirrorspark.serving import http_connections
from mirrorspark.serving.http_connections import ConnectionLimits, LimitedProtocol, is_probe, most_connections
from mirrorspark.serving.http_server import listening, server

GET = b"GET / HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize(("files", "most"), [(256, 128), (1024, 512), (1_000_000, 2048), (1, 1)])
def test_half_of_the_files_may_be_connections(files: int, most: int) -> None:
    assert most_connections(files) == most


def test_a_probe_is_a_path_or_all_below_one() -> None:
    assert [is_probe(path, ("/ping", "/v2/health/")) for path in ("/ping", "/v2/health/live", "/pings", "/v2")] == [
        True,
        True,
        False,
        False,
    ]


@contextlib.asynccontextmanager
async def serving(limits: ConnectionLimits, is_free: asyncio.Event) -> AsyncIterator[int]:
    """Yield the port of a server in this event loop, which answers all but probes when ``is_free`` is set."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/ping":
            await is_free.wait()
        await PlainTextResponse("")(scope, receive, send)

    running: Server = server(application, limits)
    running.capture_signals = contextlib.nullcontext  # type: ignore[assignment, method-assign]
    with listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        task = asyncio.create_task(running.serve([listener]))
        try:
            yield port
        finally:
            is_free.set()
            running.should_exit = running.force_exit = True
            await task


async def status(port: int, sent: bytes) -> int | None:
    """Return the status of the answer to some bytes, and None where the server closes the connection without one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        line = await asyncio.wait_for(reader.readline(), 60)
        return int(line.split()[1]) if line else None
    except ConnectionError:
        return None
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("limit", "sent"),
    [
        ("HEAD_SECONDS", b""),
        ("HEAD_SECONDS", b"GET / HTTP/1.1\r\nX: "),
        ("IDLE_SECONDS", b"GET /ping HTTP/1.1\r\n\r\n"),
        ("answer", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n"),
    ],
)
def test_a_client_that_keeps_silent_is_disconnected(monkeypatch: pytest.MonkeyPatch, limit: str, sent: bytes) -> None:
    if limit != "answer":
        monkeypatch.setattr(http_connections, limit, 0.2)

    async def ends() -> bytes:
        limits = ConnectionLimits(answer_seconds=0.2 if limit == "answer" else 60.0)
        async with serving(limits, asyncio.Event()) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            try:
                return await asyncio.wait_for(reader.read(), 60)
            except ConnectionError:
                return b""
            finally:
                writer.close()

    assert (b"200 OK" in asyncio.run(ends())) == (limit == "IDLE_SECONDS")


def test_where_all_connections_are_answered_a_probe_is_and_the_next_is_told_so() -> None:
    async def statuses() -> tuple[list[int | None], int | None, int | None]:
        is_free = asyncio.Event()
        limits = ConnectionLimits(answer_seconds=60.0, probes=("/ping",), most=3)
        async with serving(limits, is_free) as port:
            answered = [asyncio.create_task(status(port, GET)) for _ in range(3)]
            while (refused := await status(port, GET)) != 503:  # until the three have arrived
                assert refused is None
            probe = await status(port, b"GET /ping HTTP/1.1\r\n\r\n")
            is_free.set()
            return await asyncio.gather(*answered), refused, probe

    assert asyncio.run(statuses()) == ([200, 200, 200], 503, 200)


def test_nothing_is_kept_of_connections_that_their_clients_have_reset() -> None:
    def kept() -> int:
        gc.collect()
        return sum(isinstance(one, LimitedProtocol) for one in gc.get_objects())

    async def count() -> int:
        is_free = asyncio.Event()
        is_free.set()
        async with serving(ConnectionLimits(answer_seconds=60.0), is_free) as port:
            for _ in range(20):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(GET)
                await reader.readline()
                # Zero seconds of lingering: the connection is reset, not closed.
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            async with asyncio.timeout(30):
                while (found := kept()) > 2 and await status(port, GET) == 200:
                    pass
            return found

    assert asyncio.run(count()) <= 2
