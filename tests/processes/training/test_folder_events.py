"""The event channel by files: order, loss, partial and forged files, commands to ranks, and nothing left behind."""

import dataclasses
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mirrorspark.training.executor import worker_process
from mirrorspark.training.executor.task import WorkerTask
from mirrorspark.training.protocol.messages import folder_stream
from mirrorspark.training.protocol.messages.event_client import EventClient
from mirrorspark.training.protocol.messages.events import Event
from mirrorspark.training.protocol.messages.folder_server import FolderEventServer
from mirrorspark.training.protocol.messages.folder_stream import FolderStream, messages_in, write_message
from tests.unit.training import rank_entries

SECONDS = 60.0
NAME = "00112233aabbccdd"
TOKEN = "token"
END = b""


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.01)


class Side:
    """One side of a stream, turn by turn, whose other side is the test's: files written here, and those it writes."""

    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.incoming, self.outgoing = folder / "in", folder / "out"
        self.incoming.mkdir()
        self.outgoing.mkdir()
        self.user, near = socket.socketpair()
        self.user.setblocking(False)
        self._stream = FolderStream(
            near, NAME, TOKEN, outgoing=self.outgoing, incoming=self.incoming, clock=lambda: self.now
        )

    def turn(self) -> bytes:
        """Let it pass on what is there; return what its user got."""
        self._stream.turn(messages_in(self.incoming).get(NAME, frozenset()))
        try:
            return self.user.recv(1 << 16)
        except BlockingIOError:
            return b"-"

    def close(self) -> None:
        self._stream.end()
        self.user.close()


@pytest.fixture
def side(tmp_path: Path) -> Iterator[Side]:
    opened = Side(tmp_path)
    yield opened
    opened.close()


def write(side: Side, number: int, content: bytes, *, token: str = TOKEN, cut: int | None = None) -> None:
    write_message(side.incoming, NAME, number, token, content)
    if cut is not None:
        file = side.incoming / f"{NAME}-{number:08}"
        file.write_bytes(file.read_bytes()[:cut])


def test_messages_arrive_in_their_order_once_and_are_removed(side: Side) -> None:
    for number, content in enumerate([b"a", b"b", b"c"]):
        write(side, number, content)
    assert side.turn() == b"abc"
    assert side.turn() == b"-"
    assert list(side.incoming.iterdir()) == []
    write(side, 3, b"d")
    write(side, 4, END)
    assert (side.turn(), side.turn()) == (b"d", b"")
    side.user.sendall(b"up")
    side.user.shutdown(socket.SHUT_WR)
    side.turn()
    side.turn()
    assert [folder_stream.read_message(side.outgoing, NAME, number, TOKEN) for number in (0, 1)] == [b"up", END]


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda side: None, id="lost"),
        pytest.param(lambda side: write(side, 0, b"a", cut=20), id="partial"),
        pytest.param(lambda side: write(side, 0, b"a", token="guessed"), id="forged"),
        pytest.param(lambda side: write_message(side.outgoing, NAME, 0, TOKEN, b"a"), id="of the other direction"),
    ],
)
@pytest.mark.parametrize("is_mended", [True, False])
def test_a_message_that_is_not_whole_is_waited_for_and_then_ends_the_stream(
    side: Side, harm: Callable[[Side], None], *, is_mended: bool
) -> None:
    harm(side)
    for file in side.outgoing.iterdir():  # a message to the driver, given to its client as one of the driver's
        file.rename(side.incoming / file.name)
    write(side, 1, b"b")
    assert side.turn() == b"-"
    side.now = folder_stream.LOST_SECONDS
    assert side.turn() == b"-"
    if is_mended:
        write(side, 0, b"a")
        assert side.turn() == b"ab"
    else:
        side.now += 0.1
        with pytest.raises(ConnectionResetError, match=r"message 0 in .* is lost, or not of this attempt"):
            side.turn()


def test_a_message_that_its_reader_has_no_room_for_waits(side: Side) -> None:
    large = bytes(1 << 20)
    write(side, 0, large)
    write(side, 1, b"end")
    got = b""
    while not got.endswith(b"end"):
        got += side.turn().replace(b"-", b"")
    assert got == large + b"end"


class Log:
    """Keeps events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)


def test_events_and_commands_pass_both_ways_and_the_folder_is_removed(tmp_path: Path) -> None:
    log, heard, folder = Log(), queue.SimpleQueue[Any](), tmp_path / "run" / "channel"
    (folder / "of a killed driver").mkdir(parents=True)
    with FolderEventServer(folder, log) as server:
        assert [path.name for path in folder.iterdir()] == [Path(str(server.address.folder)).name]
        rank = EventClient(server.address, 0, 1)
        task = EventClient(server.address, 0, 1, on_command=heard.put, sender="task")
        for number in range(300):
            rank.send({"event": "epoch_end", "number": number})
        server.command({"command": "stop", "reason": "driver"})
        assert heard.get(timeout=SECONDS) == {"command": "stop", "reason": "driver"}
        begin = time.monotonic()
        rank.close()
        task.close()
        assert time.monotonic() - begin < 10.0, "each waits for two answers at most"
    assert [event["number"] for event in log.events] == list(range(300))
    assert not folder.exists()
    late = EventClient(server.address, 0, 1)
    late.send({"event": "error"})
    late.close()
    assert not folder.exists()


def test_a_message_that_is_lost_on_the_way_costs_no_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, lost = Log(), list[int]()
    monkeypatch.setattr(folder_stream, "LOST_SECONDS", 0.5)
    real = folder_stream.write_message

    def lose_one(folder: Path, stream: str, number: int, token: str, content: bytes) -> None:
        if folder.name == "up" and number == 2 and not lost:
            lost.append(number)
            return
        real(folder, stream, number, token, content)

    monkeypatch.setattr(folder_stream, "write_message", lose_one)
    with FolderEventServer(tmp_path / "channel", log) as server:
        client = EventClient(server.address, 0, 1)
        sent = 0
        while not lost or sent < 30:
            client.send({"event": "epoch_end", "number": sent})
            sent += 1
            time.sleep(0.05)
        assert client.flush(SECONDS)
        client.close()
    assert lost == [2]
    assert [event["number"] for event in log.events] == list(range(sent))


def test_a_stream_of_another_token_opens_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mirrorspark.training.protocol.messages.folder_server.LOST_SECONDS", 0.3)
    log = Log()
    with FolderEventServer(tmp_path / "channel", log) as server:
        stranger = EventClient(dataclasses.replace(server.address, token="guessed"), 0, 1)
        stranger.send({"event": "epoch_end"})
        wait_until(lambda: "refused an event stream" in caplog.text)
        client = EventClient(server.address, 0, 1)
        client.send({"event": "progress"})
        client.close()
        stranger.close(timeout_seconds=0)
    assert [event["event"] for event in log.events] == ["progress"]


def test_a_client_that_was_killed_delays_the_end_by_no_more_than_its_silence(tmp_path: Path) -> None:
    with FolderEventServer(tmp_path / "channel", Log()) as server:
        opened = folder_stream.connect(server.address)
        assert len(opened.recv(1)) == 1, "the driver has spoken"
        # Its thread goes on, as that of no killed process would; it sends nothing.
        begin = time.monotonic()
    assert time.monotonic() - begin < 8.0
    opened.close()


def test_the_files_of_a_heartbeat_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, written = Log(), list[float]()
    real = folder_stream.write_message

    def note(folder: Path, *rest: Any) -> None:
        if folder.name == "up":
            written.append(time.monotonic())
        real(folder, *rest)

    monkeypatch.setattr(folder_stream, "write_message", note)
    with FolderEventServer(tmp_path / "channel", log) as server:
        client = EventClient(server.address, 0, 1)
        begin = time.monotonic()
        while time.monotonic() - begin < 2.0:
            client.send({"event": "alive"})
            time.sleep(0.002)
        count, seconds = len(written), time.monotonic() - begin
        client.close()
    assert count <= 10 * seconds + 2


@pytest.fixture(scope="module")
def no_server_stays() -> Iterator[None]:
    yield
    worker_process.shut_down()


@pytest.mark.usefixtures("no_server_stays")
@pytest.mark.parametrize(
    ("function", "command", "outcome", "said"),
    [
        ("train_until_stopped", "stop", {"outcome": "stopped", "reason": "driver"}, "phase"),
        ("train_until_stopped", "abort", {"outcome": "aborted", "reason": "hung"}, "phase"),
        ("train_until_stopped", None, {"outcome": "aborted", "cause": "driver"}, "phase"),
        ("kill_itself", None, {"outcome": "failed", "cause": "lost", "type": "killed"}, "error"),
    ],
)
def test_a_task_and_its_rank_are_heard_and_obey_by_files(
    tmp_path: Path, function: str, command: str | None, outcome: dict[str, str], said: str
) -> None:
    """T6: the same outcomes as over TCP, without a driver, too."""
    log, outcomes = Log(), list[dict[str, Any]]()
    with FolderEventServer(tmp_path / "channel", log) as server:
        plan: Any = rank_entries.Plan(server.address, function=function)
        # A driver that is silent for so long counts as lost; over TCP and by files its leases come every five seconds.
        task = WorkerTask(plan, preload="json", lease_seconds=6.0 if outcome.get("cause") == "driver" else SECONDS)
        thread = threading.Thread(target=lambda: outcomes.extend(task()))
        thread.start()
        wait_until(lambda: said in [event["event"] for event in log.events] or not thread.is_alive())
        if command is not None:
            server.command({"command": command, "reason": outcome["reason"]})
        thread.join(SECONDS)
    assert [{name: found[name] for name in outcome} for found in outcomes] == [outcome]
    assert said in [event["event"] for event in log.events]
