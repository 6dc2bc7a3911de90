"""The lines between the coordinator of a training with parameter servers and its workers and servers.

TensorFlow's servers know no end: they serve until their process is killed. And a coordinator whose last worker is gone
waits for another one for ever. So every worker and every server keeps a line to the coordinator: it says where its
TensorFlow server listens, the coordinator says when to leave, and whoever is gone shows as a line that is cut.

Both sides prove that they know the attempt's token without sending it. Messages are bounded lines of JSON.
"""

import contextlib
import json
import logging
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mirrorspark.training.protocol.handshake import is_proof, keep_alive, proof, split_address
from mirrorspark.training.protocol.roles import COORDINATOR, Roles
from mirrorspark.training.ring.errors import RingConnectError, RingError

_NONCE_BYTES = 32
_LINE_BYTES = 1 << 12
_HANDSHAKE_SECONDS = 10.0
_DIAL_PAUSE_SECONDS = 0.05
_POLL_SECONDS = 0.2
_CLOSE_SECONDS = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Introduction:
    """What a member says of itself.

    Attributes:
        rank: Who it is.
        address: ``host:port`` where its TensorFlow server listens.
        reader: Name under which a worker gives batches; empty for a server.
    """

    rank: int
    address: str
    reader: str = ""


@dataclass(frozen=True)
class Dismissal:
    """Why a member may leave.

    Attributes:
        epochs: Completed by a training that has come to its end; None for one that was stopped.
        step: Where it was stopped, with a checkpoint; None for one that has come to its end.
        path: That checkpoint.
    """

    epochs: int | None = None
    step: int | None = None
    path: str = ""


class Members:
    """The coordinator's lines to all members.

    Attributes:
        introductions: By rank.
    """

    def __init__(self, roles: Roles, lines: "Mapping[int, _Line]", introductions: Mapping[int, Introduction]) -> None:
        """Listen to proven lines; :meth:`gather` makes them."""
        self.introductions = dict(introductions)
        self._roles = roles
        self._lines = dict(lines)
        self._asked: str | None = None
        # Guards what follows, and tells of every change.
        self._changed = threading.Condition()
        self._lost: dict[int, str] = {}
        self._is_dismissed = False
        self._listener = threading.Thread(target=self._listen, name="members", daemon=True)
        self._listener.start()

    @classmethod
    def gather(cls, address: str, roles: Roles, token: str, timeout_seconds: float) -> "Members":
        """Listen on ``address`` until every worker and server has called.

        Raises:
            RingConnectError: One has not.
            OSError: The address cannot be listened on.
        """
        deadline = time.monotonic() + timeout_seconds
        lines: dict[int, _Line] = {}
        introductions: dict[int, Introduction] = {}
        with socket.create_server(split_address(address), backlog=roles.ranks) as listener:
            try:
                while len(lines) < roles.ranks - 1:
                    missing = next(rank for rank in range(1, roles.ranks) if rank not in lines)
                    listener.settimeout(max(0.01, deadline - time.monotonic()))
                    try:
                        connection, _ = listener.accept()
                    except TimeoutError as error:
                        what = f"({roles.of(missing)}) has not called within {timeout_seconds:g} s"
                        raise RingConnectError(missing, what) from error
                    line = _Line(connection)
                    try:
                        introduction = line.let_in(token)
                    except (OSError, ValueError, TypeError) as error:
                        logger.debug("a caller was turned away: %s", error)
                        line.close()
                        continue
                    if introduction.rank in lines:  # it was cut off, and calls again
                        lines[introduction.rank].close()
                    lines[introduction.rank], introductions[introduction.rank] = line, introduction
            except BaseException:
                for line in lines.values():
                    line.close()
                raise
        return cls(roles, lines, introductions)

    @property
    def cluster(self) -> dict[str, list[str]]:
        """Where the TensorFlow servers of workers and parameter servers listen."""
        addresses = ["", *(self.introductions[rank].address for rank in range(1, self._roles.ranks))]
        return {job: found for job, found in self._roles.cluster(addresses).items() if job != "chief"}

    @property
    def lost(self) -> tuple[int, ...]:
        """The ranks that are gone."""
        with self._changed:
            return tuple(self._lost)

    def is_stop_asked(self) -> bool:
        """Whether a member was asked to stop: its machine is taken away, say."""
        return self._asked is not None

    def check(self) -> None:
        """Raise ``RingError`` when the training cannot go on: a server is gone, or the last worker."""
        with self._changed:
            rank = self._roles.missed(self._lost)
            why = "" if rank is None else self._lost[rank]
        if rank is not None:
            raise RingError(rank, f"({self._roles.of(rank)}) is gone ({why})")

    def explain(self, seconds: float = 2.0) -> None:
        """Do what :meth:`check` does, giving a loss a moment to show: TensorFlow may have noticed it first."""
        with self._changed:
            self._changed.wait_for(lambda: self._roles.missed(self._lost) is not None, seconds)
        self.check()

    def dismiss(self, dismissal: Dismissal) -> None:
        """Tell all members that they may leave."""
        with self._changed:
            self._is_dismissed = True
        for line in self._lines.values():
            with contextlib.suppress(OSError):  # it is gone
                line.say(asdict(dismissal))

    def close(self) -> None:
        """Hang up; a member that was not dismissed takes it for the coordinator's end."""
        with self._changed:
            self._is_dismissed = True
        for line in self._lines.values():
            line.hang_up()
        self._listener.join(_CLOSE_SECONDS)

    def _listen(self) -> None:
        selector = selectors.DefaultSelector()
        for rank, line in self._lines.items():
            selector.register(line.connection, selectors.EVENT_READ, rank)
        while selector.get_map():
            for key, _ in selector.select():
                why = self._hear(key.data)
                if why is not None:
                    selector.unregister(key.fileobj)
                    self._lines[key.data].close()
                    self._note_loss(key.data, why)
        selector.close()

    def _hear(self, rank: int) -> str | None:
        """Take in what a member says; return why it is gone if it is."""
        try:
            message = self._lines[rank].hear()
        except (OSError, ValueError) as error:
            return str(error)
        if message is None:
            return "it closed the connection"
        self._asked = self._asked or str(message.get("stop"))
        return None

    def _note_loss(self, rank: int, why: str) -> None:
        with self._changed:
            if self._is_dismissed:
                return
            self._lost[rank] = why
            self._changed.notify_all()
            left = self._roles.workers - sum(self._roles.is_dispensable(lost) for lost in self._lost)
        if self._roles.is_dispensable(rank):
            logger.warning("%s (rank %d) is gone: %d go on", self._roles.of(rank), rank, left)


class Membership:
    """A worker's or a server's line to the coordinator."""

    def __init__(self, line: "_Line") -> None:
        """Take a proven line; :meth:`join` makes it."""
        self._line = line

    @classmethod
    def join(cls, address: str, introduction: Introduction, token: str, timeout_seconds: float) -> "Membership":
        """Call the coordinator, which may not listen yet, and introduce this rank.

        Raises:
            RingConnectError: It does not answer, or belongs to another attempt.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            line: _Line | None = None
            try:
                line = _Line(socket.create_connection(split_address(address), max(0.01, deadline - time.monotonic())))
                line.introduce(introduction, token)
                return cls(line)
            except OSError as error:
                if line is not None:
                    line.close()
                if isinstance(error, RingConnectError):
                    raise
                if time.monotonic() + _DIAL_PAUSE_SECONDS > deadline:
                    what = f"(the coordinator) cannot be reached at {address} ({error.strerror or error})"
                    raise RingConnectError(COORDINATOR, what) from error
            time.sleep(_DIAL_PAUSE_SECONDS)

    def wait(self, stop_reason: Callable[[], str | None]) -> Dismissal:
        """Wait until the coordinator says that this rank may leave; pass on a stop that this rank is asked for.

        Raises:
            RingError: The coordinator is gone.
        """
        has_asked = False
        try:
            while True:
                if not has_asked and (reason := stop_reason()) is not None:
                    has_asked = True
                    self._line.say({"stop": reason})
                if self._line.has_news(_POLL_SECONDS):
                    message = self._line.hear()
                    if message is None:
                        raise ConnectionResetError("it closed the connection")
                    return Dismissal(**message)
        except OSError as error:
            raise RingError(COORDINATOR, f"(the coordinator) is gone ({error.strerror or error})") from error

    def close(self) -> None:
        """Hang up, which the coordinator takes for this rank's end unless it has dismissed it."""
        self._line.close()


class _Line:
    """One connection. Each direction is used by one thread at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.settimeout(_HANDSHAKE_SECONDS)
        # Unbuffered: whether there is news is the socket's to say.
        self._stream = connection.makefile("rb", buffering=0)

    def introduce(self, introduction: Introduction, token: str) -> None:
        """Prove the token to the coordinator, and ask for its proof."""
        theirs = self._read_line()
        mine = secrets.token_hex(_NONCE_BYTES)
        self._write_line(f"{mine} {proof(token, 'member', theirs, mine)}")
        if not is_proof(self._read_line(), token, "coordinator", mine, theirs):
            raise RingConnectError(COORDINATOR, "answers with another token: it belongs to another attempt")
        self.say(asdict(introduction))
        self._settle()

    def let_in(self, token: str) -> Introduction:
        """Return who calls.

        Raises:
            ConnectionRefusedError: Somebody who does not know the token.
        """
        mine = secrets.token_hex(_NONCE_BYTES)
        self._write_line(mine)
        theirs, _, answer = self._read_line().partition(" ")
        if not is_proof(answer, token, "member", mine, theirs):
            self._write_line("refused")
            raise ConnectionRefusedError("it does not know the token")
        self._write_line(proof(token, "coordinator", theirs, mine))
        introduction = Introduction(**json.loads(self._read_line()))
        self._settle()
        return introduction

    def say(self, message: Mapping[str, Any]) -> None:
        self._write_line(json.dumps(message))

    def has_news(self, seconds: float) -> bool:
        """Whether a message, or the end, comes within ``seconds``."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.connection, selectors.EVENT_READ)
            return bool(selector.select(seconds))

    def hear(self) -> dict[str, Any] | None:
        """Return the next message; None when the other side has hung up."""
        line = self._stream.readline(_LINE_BYTES)
        return dict(json.loads(line)) if line else None

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.hang_up()
        self._stream.close()
        self.connection.close()

    def _read_line(self) -> str:
        line = self._stream.readline(_LINE_BYTES)
        if not line:
            raise ConnectionResetError("it closed the connection")
        return line.decode("ascii", "replace").strip()

    def _write_line(self, text: str) -> None:
        self.connection.sendall(text.encode() + b"\n")

    def _settle(self) -> None:
        """From now on silence is no fault, but a host that vanished is."""
        self.connection.settimeout(None)
        keep_alive(self.connection)


def workers_readers(introductions: Iterable[Introduction]) -> str:
    """Return the one name under which all workers give batches: graphs that run on all of them name it."""
    names = sorted({introduction.reader for introduction in introductions if introduction.reader})
    if len(names) != 1:
        raise RuntimeError(f"workers give batches under the names {names}; they have to run the same program")
    return names[0]
