"""A server behind the proxy is reached, cut off, held up and slowed down; nothing stays."""

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mirrorspark.testing.proxy import Proxy

SECONDS = 60.0


class Answering(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join(SECONDS)


def ask(proxy: Proxy, timeout_seconds: float = SECONDS) -> bytes:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=timeout_seconds)) as connection:
        connection.request("GET", "/")
        return connection.getresponse().read()


def ask_again(connection: http.client.HTTPConnection) -> bytes:
    connection.request("GET", "/")
    return connection.getresponse().read()


def test_a_server_is_reached_through_it(port: int) -> None:
    with Proxy(port) as proxy:
        assert [ask(proxy) for _ in range(3)] == [b"ok"] * 3


def test_a_way_that_is_cut_refuses_and_ends_what_there_is(port: int) -> None:
    with Proxy(port) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=SECONDS)
        assert ask_again(connection) == b"ok"
        with proxy.cut():
            with pytest.raises(ConnectionRefusedError):
                ask(proxy)
            with pytest.raises((ConnectionError, http.client.HTTPException)):
                ask_again(connection)
        connection.close()
        assert ask(proxy) == b"ok"


def test_a_server_that_is_held_up_says_nothing_until_it_goes_on(port: int) -> None:
    with Proxy(port) as proxy:
        with proxy.held(), pytest.raises(TimeoutError):
            ask(proxy, timeout_seconds=0.2)
        assert ask(proxy) == b"ok"


def test_a_slow_server_takes_its_time_either_way(port: int) -> None:
    with Proxy(port) as proxy, proxy.slow(0.1):
        begin = time.monotonic()
        assert ask(proxy) == b"ok"
        assert time.monotonic() - begin >= 0.2


def test_nothing_is_left_of_it(port: int) -> None:
    before = threading.active_count()
    with Proxy(port) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=SECONDS)
        ask_again(connection)
    connection.close()
    with pytest.raises(ConnectionRefusedError):
        ask(proxy)
    deadline = time.monotonic() + SECONDS
    while threading.active_count() > before:  # the server's own
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_server_that_is_not_there_shows_as_a_connection_that_ends(port: int) -> None:
    with Proxy(1) as proxy, pytest.raises((ConnectionError, http.client.HTTPException)):
        ask(proxy)
