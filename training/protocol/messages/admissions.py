"""Admission of callers to a listening socket: each is served in its own thread, and strangers are bounded.

An unauthenticated client holds a thread and a socket. Ranks authenticate within milliseconds, so of too many clients
that have not, the one that has taken longest is disconnected. A silent client delays no other.
"""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from mirrorspark.training.protocol.messages.handshake import RefusalLog, TokenMismatchError, hang_up

Admitted = TypeVar("Admitted")

# Another connection, or another process, may free the resource.
_PAUSE_SECONDS = 0.2
_CLOSE_SECONDS = 5.0

logger = logging.getLogger(__name__)


class Admissions(Generic[Admitted]):
    """Accepts connections until the context ends, and calls ``serve`` with each one in a new thread.

    ``serve`` closes the connection, or returns what :meth:`next` is to return, or raises an error because of what the
    client sent. A client counts as unauthenticated until ``serve`` returns or calls :meth:`trust`.
    """

    def __init__(
        self,
        listener: socket.socket,
        serve: Callable[[socket.socket], Admitted | None],
        what: str,
        *,
        most_unproven: int,
        discard: Callable[[Admitted], None] = lambda _: None,
    ) -> None:
        """Begin to accept.

        Args:
            listener: Is closed at the end.
            serve: Serves one connection.
            what: The purpose of the connections, such as "a registration", for the log of refused clients.
            most_unproven: Number of unauthenticated clients above which the oldest is disconnected.
            discard: Closes the results that :meth:`next` has not returned by the end.
        """
        self.port = int(listener.getsockname()[1])
        self._listener = listener
        self._serve = serve
        self._what = what
        self._refusals = RefusalLog(logger, what)
        self._most_unproven = most_unproven
        self._discard = discard
        self._admitted: SimpleQueue[Admitted] = SimpleQueue()
        self._over = threading.Event()
        # Guards the fields below.
        self._lock = threading.Lock()
        # In the order of arrival.
        self._unproven: dict[socket.socket, None] = {}
        self._serving: dict[socket.socket, threading.Thread] = {}
        self._failure: OSError | RuntimeError | None = None
        self._thread = threading.Thread(target=self._accept, name="admissions", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            listener.close()
            raise

    def __enter__(self) -> "Admissions[Admitted]":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def next(self, seconds: float) -> Admitted:
        """Return the next result of ``serve`` that is not None.

        Raises:
            Empty: None came within ``seconds``.
            OSError, RuntimeError: None came, since connections cannot be accepted: file descriptors or threads are
                used up.
        """
        try:
            return self._admitted.get(timeout=seconds)
        except Empty:
            with self._lock:
                if self._failure is not None:
                    raise self._failure from None
            raise

    def trust(self, connection: socket.socket) -> None:
        """Remove ``connection`` from the unauthenticated ones."""
        with self._lock:
            self._unproven.pop(connection, None)

    def end(self, patience_seconds: float = 0.0) -> None:
        """Accept no more, give the connections that are served this time to end, and disconnect the others."""
        self._over.set()
        hang_up(self._listener)
        self._thread.join(_CLOSE_SECONDS)
        self._listener.close()
        with self._lock:
            serving = dict(self._serving)
        _join(serving.values(), patience_seconds)
        for connection, thread in serving.items():
            if thread.is_alive():
                hang_up(connection)
        _join(serving.values(), _CLOSE_SECONDS)
        with contextlib.suppress(Empty):
            while True:
                self._discard(self._admitted.get_nowait())

    def _accept(self) -> None:
        while not self._over.is_set():
            failure: OSError | RuntimeError | None = None
            try:
                self._accept_one()
            except (OSError, RuntimeError) as error:
                failure = error
            if self._over.is_set():  # The listener was shut down.
                return
            with self._lock:
                is_new = failure is not None and self._failure is None
                self._failure = failure
            if is_new:
                logger.warning("%s could not be served: %s; clients connect again", self._what, failure)
            if failure is not None:
                self._over.wait(_PAUSE_SECONDS)

    def _accept_one(self) -> None:
        try:
            connection, address = self._listener.accept()
        except ConnectionAbortedError:  # The client has disconnected already.
            return
        thread = threading.Thread(target=self._admit, args=(connection, str(address[0])), daemon=True)
        with self._lock:
            self._unproven[connection] = None
            self._serving[connection] = thread
            surplus = next(iter(self._unproven)) if len(self._unproven) > self._most_unproven else None
            if surplus is not None:
                del self._unproven[surplus]
        if surplus is not None:
            hang_up(surplus)
        try:
            thread.start()
        except RuntimeError:  # The machine has no thread left.
            self._forget(connection)
            _close(connection)
            raise

    def _admit(self, connection: socket.socket, host: str) -> None:
        try:
            admitted = self._serve(connection)
            self._hand_on(connection, admitted)
        except TokenMismatchError:
            self._refusals.add(host)
            _close(connection)
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            logger.debug("%s from %s ended: %s", self._what, host, error)
            _close(connection)
        finally:
            self._forget(connection)

    def _hand_on(self, connection: socket.socket, admitted: Admitted | None) -> None:
        if admitted is None:
            return
        with self._lock:
            # Forgotten first: the connection's receiver may end the admissions at once, which disconnects the others.
            self._unproven.pop(connection, None)
            self._serving.pop(connection, None)
            if not self._over.is_set():
                self._admitted.put(admitted)
                return
        self._discard(admitted)

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._unproven.pop(connection, None)
            self._serving.pop(connection, None)


def _close(connection: socket.socket) -> None:
    # A stream that was made of the connection may keep it open.
    hang_up(connection)
    connection.close()


def _join(threads: Iterable[threading.Thread], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
