"""The event channel by files: an event server on loopback, and a relay between it and the streams in a folder."""

import dataclasses
import logging
import math
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mirrorspark.training.protocol.messages.event_server import EventServer
from mirrorspark.training.protocol.messages.events import Event, EventAddress
from mirrorspark.training.protocol.messages.folder_stream import (
    LOST_SECONDS,
    UP,
    FolderStream,
    messages_in,
    read_message,
    remove_message,
)
from mirrorspark.training.protocol.messages.handshake import HANDSHAKE_SECONDS, RefusalLog

_LOOPBACK = "127.0.0.1"
_ROUND_SECONDS = 0.2
# A mounted store answers after some hundredths of a second.
_AT_A_TIME = 16
# At the end of an attempt: a client that has sent nothing for this time, more than its longest pause, has been killed.
_QUIET_SECONDS = 1.5
_LAST_WORDS_SECONDS = 5.0

logger = logging.getLogger(__name__)


class FolderEventServer(EventServer):
    """An event server whose clients reach it by files in a folder; the folder is removed at the end."""

    def __init__(self, folder: Path, on_event: Callable[[Event], None]) -> None:
        """Take the folder, which clients and driver share; the files that a killed driver has left there are removed.

        Raises:
            OSError: The folder cannot be written.
        """
        super().__init__(_LOOPBACK, on_event)
        self._folder = folder
        # Another one for each attempt: a late client of an earlier one finds none.
        place = folder / secrets.token_hex(8)
        try:
            shutil.rmtree(folder, ignore_errors=True)
            (place / UP).mkdir(parents=True)
            self.address = dataclasses.replace(self.address, folder=str(place))
            self._relay = _Relay(place, self.address)
        except (OSError, RuntimeError):
            super().__exit__()
            raise

    def __exit__(self, *error: object) -> None:
        self._relay.end()
        super().__exit__(*error)
        shutil.rmtree(self._folder, ignore_errors=True)


class _Relay:
    """A thread that connects every stream of the folder with the server."""

    def __init__(self, place: Path, address: EventAddress) -> None:
        self._place = place
        self._address = address
        self._streams: dict[str, FolderStream] = {}
        self._ended: set[str] = set()
        # Since when streams are there whose first message is not whole.
        self._unproven: dict[str, float] = {}
        self._refusals = RefusalLog(logger, "an event stream")
        self._is_reported = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="event folder", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Pass on what clients still send, and disconnect them."""
        self._over.set()
        self._thread.join(2 * _LAST_WORDS_SECONDS)

    def _work(self) -> None:
        with ThreadPoolExecutor(_AT_A_TIME, "event files") as pool:
            while not self._over.wait(_ROUND_SECONDS):
                self._round(pool)
            begin = moved = time.monotonic()
            while self._round(pool) or (self._streams and time.monotonic() - moved < _QUIET_SECONDS):
                if time.monotonic() - begin > _LAST_WORDS_SECONDS:
                    break
                time.sleep(_ROUND_SECONDS)
            for stream in self._streams.values():
                stream.end()

    def _round(self, pool: ThreadPoolExecutor) -> bool:
        """Pass on what is there, and return True if a message has arrived."""
        try:
            present = messages_in(self._place / UP)
            for name in sorted(present.keys() - self._streams.keys() - self._ended):
                self._admit(name)
        except OSError as error:
            if not self._is_reported:
                self._is_reported = True
                logger.warning("events in %s cannot be read, which is tried again: %s", self._place, error)
            return False
        self._is_reported = False

        def turn(stream: FolderStream) -> bool:
            return self._turn(stream, present.get(stream.name, ()))

        has_arrived = any(list(pool.map(turn, self._streams.values())))
        self._ended |= {name for name, stream in self._streams.items() if stream.is_over}
        self._streams = {name: stream for name, stream in self._streams.items() if name not in self._ended}
        return has_arrived

    def _admit(self, name: str) -> None:
        """Connect a new stream with the server, unless its first message is not of a client of this attempt.

        Raises:
            OSError: This machine refuses the connection.
        """
        if read_message(self._place / UP, name, 0, self._address.token) is None:
            now = time.monotonic()
            if now - self._unproven.setdefault(name, now) > LOST_SECONDS:
                self._unproven[name] = math.inf
                self._refusals.add(str(self._place))
            return
        near = socket.create_connection((_LOOPBACK, self._address.port), HANDSHAKE_SECONDS)
        remove_message(self._place / UP, name, 0)
        self._streams[name] = FolderStream(
            near, name, self._address.token, outgoing=self._place / name, incoming=self._place / UP, received=1
        )

    def _turn(self, stream: FolderStream, present: Collection[int]) -> bool:
        try:
            has_arrived = stream.turn(frozenset(present))
        except OSError as error:
            logger.debug("the stream %s ended: %s", stream.name, error)
            stream.end()
            return False
        if stream.is_over:
            stream.end()
        return has_arrived
