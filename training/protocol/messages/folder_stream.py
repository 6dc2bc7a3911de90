"""Streams of bytes through files, in the place of TCP connections, where the ranks cannot reach the driver.

A message is a whole file, which its reader removes: nothing is appended or renamed. Its name has its stream and its
number; its content follows a signature of both, by the attempt's token. The first message of a stream is empty, and so
is the last one of each direction.

Both sides look for messages in rounds. A message that is lost, or that somebody else has written, ends its stream as a
cut ends a connection: the client opens another one, and sends again what was not acknowledged.
"""

import contextlib
import logging
import os
import re
import secrets
import select
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

from mirrorspark.storage import signed_content
from mirrorspark.training.protocol.messages.events import EventAddress
from mirrorspark.training.protocol.messages.handshake import HANDSHAKE_SECONDS

UP = "up"
"""Folder of the messages to the driver; those to a client are in a folder with the name of its stream."""

# A client looks for messages after a tenth of a second where it has just got one, else after up to a second. It writes
# at most ten messages a second, whatever the number of events.
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 1.0

LOST_SECONDS = 10.0
"""Time in which a message becomes whole. Mounted stores show files out of order for some seconds."""

_MESSAGE_BYTES = 1 << 20
_NAME = re.compile(r"([0-9a-f]{16})-([0-9]{8})")

logger = logging.getLogger(__name__)


def connect(address: EventAddress) -> socket.socket:
    """Open a stream to the driver, and return a socket that sends and receives by it.

    Raises:
        OSError: The folder is missing, which means that the driver has ended the attempt, or refuses.
        RuntimeError: The machine has no thread left.
    """
    folder, name = Path(address.folder or ""), secrets.token_hex(8)
    down = folder / name
    down.mkdir()
    write_message(folder / UP, name, 0, address.token, b"")
    far, near = socket.socketpair()
    try:
        stream = FolderStream(near, name, address.token, outgoing=folder / UP, incoming=down, sent=1)
        threading.Thread(target=_pass_on, args=(stream,), name="event files", daemon=True).start()
    except RuntimeError:
        far.close()
        near.close()
        raise
    far.settimeout(HANDSHAKE_SECONDS)
    return far


def _pass_on(stream: "FolderStream") -> None:
    """Pass on the messages of a client until its stream has ended in both directions, or its socket is closed."""
    pause = _FIRST_PAUSE_SECONDS
    try:
        while not stream.is_over and stream.wait(pause):
            awaits_more = stream.turn(messages_in(stream.incoming).get(stream.name, frozenset()))
            pause = _FIRST_PAUSE_SECONDS if awaits_more else min(2 * pause, _LONGEST_PAUSE_SECONDS)
            time.sleep(_FIRST_PAUSE_SECONDS)
    except OSError as error:
        logger.debug("the stream %s ended: %s", stream.name, error)
    finally:
        stream.end()


class FolderStream:
    """One side of a stream: writes messages of what its socket receives, and sends to its socket what messages hold.

    Attributes:
        name: Sixteen hex digits.
        incoming: Folder of the messages to this side.
    """

    def __init__(
        self,
        near: socket.socket,
        name: str,
        token: str,
        *,
        outgoing: Path,
        incoming: Path,
        sent: int = 0,
        received: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the socket, and the numbers of messages so far."""
        near.setblocking(False)
        self.name = name
        self.incoming = incoming
        self._near = near
        self._token = token
        self._outgoing = outgoing
        self._sent = sent
        self._received = received
        self._clock = clock
        self._unsent = b""
        self._has_sent_end = self._has_received_end = False
        self._stuck_since: float | None = None

    @property
    def is_over(self) -> bool:
        """True if both directions have ended."""
        return self._has_sent_end and self._has_received_end

    def wait(self, seconds: float) -> bool:
        """Wait for bytes of the socket, for so long at most; return False if its other end is closed and all is read.

        After its last byte wait for the whole time.
        """
        poller = select.poll()
        poller.register(self._near, 0 if self._has_sent_end else select.POLLIN)
        happened = poller.poll(seconds * 1000)
        return not (happened and happened[0][1] & select.POLLHUP and self._has_sent_end)

    def turn(self, present: AbstractSet[int]) -> bool:
        """Pass on what is there in both directions; return True if a message has arrived, or this side's last one left.

        Args:
            present: Numbers of the messages in the folder.

        Raises:
            ConnectionResetError: A message is lost.
            OSError: The socket is closed, or the folder refuses.
        """
        before = self._received, self._has_sent_end
        self._give()
        self._take(present)
        return before != (self._received, self._has_sent_end)

    def end(self) -> None:
        """End both directions, as far as the folder allows it."""
        with contextlib.suppress(OSError):
            if not self._has_sent_end:
                self._write(b"")
        self._has_received_end = True
        self._near.close()

    def _take(self, present: AbstractSet[int]) -> None:
        while not self._has_received_end and self._is_sent():
            content = self._next_message(present)
            if content is None:
                return
            self._received += 1
            self._unsent = content
            if not content:
                self._has_received_end = True
                with contextlib.suppress(OSError):  # its other end is closed already
                    self._near.shutdown(socket.SHUT_WR)

    def _is_sent(self) -> bool:
        """Send what is left of the last message; return False if the other end has not read it all."""
        while self._unsent:
            try:
                self._unsent = self._unsent[self._near.send(self._unsent) :]
            except BlockingIOError:
                return False
        return True

    def _next_message(self, present: AbstractSet[int]) -> bytes | None:
        """Return the next message and remove it; None if it has not arrived.

        Raises:
            ConnectionResetError: Later ones have, or it is not whole, for too long.
        """
        number, is_expected = self._received, bool(present) and max(present) >= self._received
        content = read_message(self.incoming, self.name, number, self._token) if number in present else None
        if content is not None or not is_expected:
            self._stuck_since = None
        elif self._stuck_since is None:
            self._stuck_since = self._clock()
        elif self._clock() - self._stuck_since > LOST_SECONDS:
            raise ConnectionResetError(f"message {number} in {self.incoming} is lost, or not of this attempt")
        if content is not None:
            remove_message(self.incoming, self.name, number)
        return content

    def _give(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if not self._has_sent_end:
                self._write(self._near.recv(_MESSAGE_BYTES))

    def _write(self, content: bytes) -> None:
        self._has_sent_end = not content
        write_message(self._outgoing, self.name, self._sent, self._token, content)
        self._sent += 1


def messages_in(folder: Path) -> Mapping[str, AbstractSet[int]]:
    """Return the numbers of the messages in a folder, by their stream.

    Raises:
        OSError: There is no such folder, or it cannot be read.
    """
    # A listing is up to date on NFS, which remembers for half a minute that a file was missing.
    found: dict[str, set[int]] = defaultdict(set)
    for name in os.listdir(folder):  # noqa: PTH208 - names are needed alone
        if match := _NAME.fullmatch(name):
            found[match[1]].add(int(match[2]))
    return found


def write_message(folder: Path, stream: str, number: int, token: str, content: bytes) -> None:
    """Write a message; its reader waits until it is whole.

    Raises:
        OSError: The folder is missing, or refuses.
    """
    file = _file(folder, stream, number)
    file.write_bytes(signed_content.signed(content, _signed_name(file), token.encode()))


def read_message(folder: Path, stream: str, number: int, token: str) -> bytes | None:
    """Return the content of a message; None if its file is not whole, or has another signature."""
    file = _file(folder, stream, number)
    try:
        with file.open("rb") as opened:
            found = opened.read(signed_content.SIGNATURE_BYTES + _MESSAGE_BYTES)
    except OSError:  # of a mounted store, for a moment
        return None
    return signed_content.verified(found, _signed_name(file), token.encode())


def remove_message(folder: Path, stream: str, number: int) -> None:
    """Remove a message that has been read.

    Raises:
        OSError: The folder refuses.
    """
    _file(folder, stream, number).unlink(missing_ok=True)


def _file(folder: Path, stream: str, number: int) -> Path:
    return folder / f"{stream}-{number:08}"


def _signed_name(file: Path) -> str:
    # With the folder: a message to the driver is none to its client.
    return f"{file.parent.name}/{file.name}"
