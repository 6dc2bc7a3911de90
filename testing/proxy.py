"""A TCP proxy that imitates a dead, hanging or slow server, such as a tracking server."""

import contextlib
import socket
import threading
from collections.abc import Iterator

_CONNECT_SECONDS = 10.0
_BLOCK_BYTES = 1 << 16


class Proxy:
    """Forwards TCP connections to a server while its context lasts, with faults on request.

    Use ``proxy.port`` in place of the server's own port: ``http://127.0.0.1:{proxy.port}``. Loopback only.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        """Reserve a port; connections to the server at ``host:port`` are forwarded once the context is entered."""
        self._server = (host, port)
        # Bound until the end, so that no other service gets the port during a cut. The system refuses connections to a
        # socket that does not listen.
        self._reserved = _bound(0)
        self.port: int = self._reserved.getsockname()[1]
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._is_passable = threading.Event()
        self._is_passable.set()
        self._is_over = threading.Event()
        self._delay_seconds = 0.0

    def __enter__(self) -> "Proxy":
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._is_passable.set()
        self._close()
        self._reserved.close()
        for thread in self._threads:
            thread.join(_CONNECT_SECONDS)

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Close connections, and refuse new ones, while the block runs: a dead server."""
        self._close()
        try:
            yield
        finally:
            if not self._is_over.is_set():
                self._open()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Accept connections and answer nothing while the block runs: a hanging server."""
        self._is_passable.clear()
        try:
            yield
        finally:
            self._is_passable.set()

    @contextlib.contextmanager
    def slow(self, seconds: float) -> Iterator[None]:
        """Delay each block of data in either direction: a slow server or network."""
        before, self._delay_seconds = self._delay_seconds, seconds
        try:
            yield
        finally:
            self._delay_seconds = before

    def _open(self) -> None:
        self._listener = _bound(self.port)
        self._listener.listen()
        self._start(self._accept, self._listener)

    def _close(self) -> None:
        listener, self._listener = self._listener, None
        with self._lock:
            sockets = set(self._sockets)
        for one in sockets | ({listener} if listener is not None else set()):
            _shut_down(one)

    def _accept(self, listener: socket.socket) -> None:
        with listener, contextlib.suppress(OSError):  # shut down by _close
            while True:
                near, _ = listener.accept()
                self._start(self._serve, near)

    def _serve(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError), socket.create_connection(self._server, _CONNECT_SECONDS) as far:
            far.settimeout(None)
            with self._lock:
                self._sockets |= {near, far}
            if self._listener is None:  # Cut meanwhile.
                _shut_down(near)
            try:
                back = self._start(self._forward, far, near)
                self._forward(near, far)
                back.join()
            finally:
                with self._lock:
                    self._sockets -= {near, far}

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(_BLOCK_BYTES):
                self._is_passable.wait()
                self._is_over.wait(self._delay_seconds)
                target.sendall(block)
            target.shutdown(socket.SHUT_WR)
            return
        # One direction broke, so the other is useless.
        _shut_down(source)
        _shut_down(target)

    def _start(self, work: object, *arguments: socket.socket) -> threading.Thread:
        thread = threading.Thread(target=work, args=arguments, name="proxy", daemon=True)  # type: ignore[arg-type]
        self._threads = [one for one in self._threads if one.is_alive()] + [thread]
        thread.start()
        return thread


def _bound(port: int) -> socket.socket:
    """Return a socket on loopback that shares its port with the others of this process."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound


def _shut_down(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
