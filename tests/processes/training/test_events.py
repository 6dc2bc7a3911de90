"""The channel from the ranks to the driver: its senders, its order, and its guarantees."""

import contextlib
import dataclasses
import errno
import json
import logging
import math
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import pytest

from mirrorspark.training.protocol.messages import admissions, event_client, event_server
from mirrorspark.training.protocol.messages.event_client import EventClient
from mirrorspark.training.protocol.messages.event_server import EventServer
from mirrorspark.training.protocol.messages.events import Event, EventAddress
from mirrorspark.training.protocol.messages.handshake import proof

SECONDS = 60.0


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.005)


class Log:
    """Keeps events, and says when a number of them is there."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def kinds(self) -> list[str]:
        return [event["event"] for event in self.events]


@contextlib.contextmanager
def connection_to(address: EventAddress) -> Iterator[socket.socket]:
    with socket.create_connection((address.host, address.port), SECONDS) as connection:
        yield connection


def read_line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and (byte := connection.recv(1)):
        line += byte
    return line


def let_in(connection: socket.socket, stream: BinaryIO) -> dict[str, Any]:
    """Do the driver's part of the handshake with a client whose token is ``token``; return its hello."""
    connection.settimeout(SECONDS)
    connection.sendall(b"00\n")
    theirs, answer = stream.readline().decode().split()
    assert answer == proof("token", "client", "00", theirs)
    connection.sendall(proof("token", "driver", theirs, "00").encode() + b"\n")
    return dict(json.loads(stream.readline()))


def read_events(connection: socket.socket, stream: BinaryIO) -> list[Event]:
    """Read to the end, and acknowledge."""
    heard = []
    for line in stream:
        number, _, event = json.loads(line)
        connection.sendall(json.dumps({"acknowledged": number}).encode() + b"\n")
        heard.append(event)
    return heard


@pytest.fixture
def silent_driver() -> Iterator[tuple[EventAddress, Callable[[], list[Event]]]]:
    """A driver that does not read until it is asked to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.settimeout(SECONDS)

        def read() -> list[Event]:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as stream:
                let_in(connection, stream)
                return read_events(connection, stream)

        yield EventAddress("127.0.0.1", listener.getsockname()[1], "token"), read


def test_events_arrive_with_rank_attempt_and_time() -> None:
    log = Log()
    with EventServer("127.0.0.1", log) as server:
        client = EventClient(server.address, rank=3, attempt=2)
        before = time.time()
        client.send({"event": "progress", "loss": 0.5})
        client.close()
    (event,) = log.events
    assert before <= event.pop("time") <= time.time()
    assert event == {"event": "progress", "loss": 0.5, "rank": 3, "attempt": 2}


def test_each_rank_is_heard_in_the_order_it_spoke() -> None:
    log = Log()
    with EventServer("127.0.0.1", log) as server:
        clients = [EventClient(server.address, rank, attempt=1) for rank in range(3)]
        for number in range(200):
            for client in clients:
                client.send({"event": "progress", "number": number})
        for client in clients:
            client.close()
    for rank in range(3):
        assert [event["number"] for event in log.events if event["rank"] == rank] == list(range(200))


def test_events_sent_before_the_end_arrive_before_it() -> None:
    log = Log()
    with EventServer("127.0.0.1", log) as server:
        client = EventClient(server.address, rank=0, attempt=1)
        for number in range(500):
            client.send({"event": "epoch_end", "epoch": number})
        client.close()
    assert len(log.events) == 500


def test_a_client_without_the_token_is_refused_and_others_are_served(caplog: pytest.LogCaptureFixture) -> None:
    log = Log()
    with EventServer("127.0.0.1", log) as server:
        client = EventClient(server.address, rank=0, attempt=1)
        client.send({"event": "progress"})
        with connection_to(server.address) as connection:
            nonce = read_line(connection)
            assert len(bytes.fromhex(nonce.decode())) == 32
            connection.sendall(b"00 " + b"0" * 64 + b'\n{"client": "c", "sender": "task"}\n[1, true, {}]\n')
            connection.settimeout(SECONDS)
            with contextlib.suppress(ConnectionResetError):  # what we sent after the proof was never read
                assert connection.recv(100) == b"refused\n"
                assert connection.recv(1) == b""
        client.send({"event": "epoch_end"})
        client.close()
    assert log.kinds() == ["progress", "epoch_end"]
    assert "wrong token" in caplog.text


def test_a_client_with_another_token_gets_nothing_through_and_does_not_raise() -> None:
    log = Log()
    with EventServer("127.0.0.1", log) as server:
        stranger = EventClient(dataclasses.replace(server.address, token="guessed"), rank=0, attempt=1)
        for _ in range(20):
            stranger.send({"event": "epoch_end"})
        stranger.close()
    assert log.events == []


def test_a_proof_cannot_be_used_twice() -> None:
    with EventServer("127.0.0.1", Log()) as server:
        nonces = set()
        for _ in range(2):
            with connection_to(server.address) as connection:
                nonces.add(read_line(connection))
    assert len(nonces) == 2


def test_the_token_is_neither_sent_nor_shown() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SECONDS)
        address = EventAddress("127.0.0.1", listener.getsockname()[1], "token")
        client = EventClient(address, rank=0, attempt=1)
        client.send({"event": "progress"})
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as stream:
            hello = let_in(connection, stream)
            sent = json.dumps(hello).encode() + stream.readline()
        client.close(timeout_seconds=0)
    assert b"token" not in sent
    assert "token" not in f"{address} {address!r}"
    assert repr(address) == f"EventAddress(127.0.0.1:{address.port})"


def test_every_server_has_a_token_of_its_own() -> None:
    with EventServer("127.0.0.1", Log()) as one, EventServer("127.0.0.1", Log()) as other:
        assert len(one.address.token) == len(other.address.token) == 64
        assert one.address.token != other.address.token


def test_the_driver_listens_on_the_given_interface_only() -> None:
    with EventServer("127.0.0.1", Log()) as server:
        elsewhere = dataclasses.replace(server.address, host="127.0.0.2")  # loopback too, on Linux
        with pytest.raises(ConnectionRefusedError), connection_to(elsewhere):
            pass


def test_an_interface_of_another_machine_is_refused() -> None:
    with pytest.raises(OSError, match="assign"):
        EventServer("192.0.2.1", Log())


def test_lines_that_are_no_events_end_only_the_connection_they_came_by() -> None:
    log = Log()
    with EventServer("127.0.0.1", log) as server:
        with connection_to(server.address) as connection:
            nonce = read_line(connection).strip().decode()
            answer = proof(server.address.token, "client", nonce, "00").encode()
            connection.sendall(b"00 " + answer + b'\n{"client": "c", "sender": "rank"}\nnot json\n')
            read_line(connection)
            assert connection.recv(1) == b""
        client = EventClient(server.address, rank=0, attempt=1)
        client.send({"event": "progress"})
        client.close()
    assert log.kinds() == ["progress"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('[1e999, true, {"event": "log", "rank": 3, "attempt": 1}]', "rank 3 sent .* its number is inf"),
        ('[NaN, true, {"event": "log", "rank": 3, "attempt": 1}]', "rank 3 sent .* its number is nan"),
        (f'[{10**400}, true, {{"event": "log", "rank": 3, "attempt": 1}}]', "rank 3 sent .* its number is 1000"),
        (
            f'[{"9" * 5000}, true, {{"event": "log", "rank": 3, "attempt": 1}}]',
            "a client sent a line that is not an event",
        ),
        ('[true, true, {"event": "log", "rank": 3, "attempt": 1}]', "rank 3 sent .* its number is True"),
        ('[0, true, {"event": "log", "rank": 3, "attempt": 1}]', "rank 3 sent .* its number is 0"),
        ('["1", true, {"event": "log", "rank": 3}]', "rank 3 sent .* its number is 1, and not a whole number"),
        ('[1, true, {"event": "alive", "rank": 3, "step": Infinity}]', "rank 3 sent .* its step is inf"),
        ('[1, true, {"event": "alive", "rank": 3, "step": "x"}]', "rank 3 sent .* its step is x"),
        ('[1, true, {"event": "alive", "rank": 3, "time": 1e400}]', "rank 3 sent .* its time is inf"),
        ('[1, true, {"event": "alive", "rank": [3]}]', r"a client sent .* its rank is \[3\]"),
        (
            f'[1, true, {{"event": "epoch_end", "rank": 3, "logs": {{"loss": {10**30}}}}}]',
            "rank 3 .* its logs has a number",
        ),
        ('[1, true, {"event": 7, "rank": 3}]', "rank 3 sent .* it is not an object with the kind of an event"),
        ('[1, true, [["event", "log"]]]', "a client sent .* it is not an object"),
        ("[" * 100_000, "a client sent a line that is not an event"),
        ("7", "a client sent a line that is not an event"),
    ],
)
def test_a_number_that_overflows_ends_one_connection_and_no_thread_and_names_the_rank(
    line: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Threads that end by an error are errors of a test."""
    log = Log()
    with EventServer("127.0.0.1", log) as server:
        with connection_to(server.address) as connection:
            nonce = read_line(connection).strip().decode()
            answer = proof(server.address.token, "client", nonce, "00").encode()
            connection.sendall(b"00 " + answer + b'\n{"client": "c", "sender": "rank"}\n' + line.encode() + b"\n")
            read_line(connection)
            assert connection.recv(1) == b""
        client = EventClient(server.address, rank=3, attempt=1)
        client.send({"event": "epoch_end", "logs": {"loss": math.nan, "auc": 0.5}, "step": 7})
        client.close()
    assert log.kinds() == ["epoch_end"], "a loss need not be a number"
    assert re.search(said, caplog.text)


def test_an_event_that_its_receiver_stumbles_over_does_not_silence_the_rank(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []

    def receive(event: Event) -> None:
        if event["event"] == "epoch_end":
            raise OSError("disk full")
        heard.append(event["event"])

    with EventServer("127.0.0.1", receive) as server:
        client = EventClient(server.address, rank=0, attempt=1)
        for kind in ("progress", "epoch_end", "error"):
            client.send({"event": kind})
        client.close()
    assert heard == ["progress", "error"]
    assert "epoch_end could not be handled" in caplog.text


def test_a_value_that_json_does_not_know_arrives_as_text() -> None:
    log = Log()
    with EventServer("127.0.0.1", log) as server:
        client = EventClient(server.address, rank=0, attempt=1)
        client.send({"event": "log", "message": ValueError("odd")})
        client.close()
    assert log.events[0]["message"] == "odd"


def test_without_a_driver_sending_costs_no_time_and_raises_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    begin = time.monotonic()
    client = EventClient(EventAddress("127.0.0.1", port, "token"), rank=0, attempt=1)
    for number in range(3000):
        client.send({"event": "error" if number % 2 else "progress"})
    client.close(timeout_seconds=100)
    assert time.monotonic() - begin < SECONDS
    assert "lost the event channel to the driver" in caplog.text
    assert "token" not in caplog.text


def test_a_driver_that_does_not_read_loses_progress_but_no_error(
    silent_driver: tuple[EventAddress, Callable[[], list[Event]]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(event_client, "_QUEUE_LENGTH", 20)
    address, read = silent_driver
    client = EventClient(address, rank=0, attempt=1)
    begin = time.monotonic()
    client.send({"event": "train_begin"})
    for number in range(1000):
        client.send({"event": "progress", "number": number})
    client.send({"event": "error", "message": "the reason"})
    assert time.monotonic() - begin < SECONDS
    heard: list[Event] = []
    reader = threading.Thread(target=lambda: heard.extend(read()), daemon=True)
    reader.start()
    client.close()
    reader.join(SECONDS)
    kinds = [event["event"] for event in heard]
    assert (kinds[0], kinds[-1]) == ("train_begin", "error")
    # The newest progress is kept: 20 places, less those of the two others.
    assert [event["number"] for event in heard[1:-1]] == list(range(982, 1000))
    assert caplog.text.count("does not read events") == 1


def test_a_queue_full_of_errors_takes_no_more_and_does_not_wait(
    silent_driver: tuple[EventAddress, Callable[[], list[Event]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_client, "_QUEUE_LENGTH", 5)
    address, read = silent_driver
    client = EventClient(address, rank=0, attempt=1)
    begin = time.monotonic()
    for number in range(100):
        client.send({"event": "error", "number": number})
    assert time.monotonic() - begin < SECONDS
    heard: list[Event] = []
    reader = threading.Thread(target=lambda: heard.extend(read()), daemon=True)
    reader.start()
    client.close()
    reader.join(SECONDS)
    assert [event["number"] for event in heard] == [0, 1, 2, 3, 4]


def test_closing_waits_at_most_its_timeout(
    silent_driver: tuple[EventAddress, Callable[[], list[Event]]],
) -> None:
    client = EventClient(silent_driver[0], rank=0, attempt=1)
    client.send({"event": "epoch_end"})
    begin = time.monotonic()
    client.close(timeout_seconds=0.1)
    assert time.monotonic() - begin < 4


def test_leaving_ends_every_thread_and_nothing_is_heard_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_server, "_LAST_WORDS_SECONDS", 0.1)
    before = set(threading.enumerate())
    log = Log()
    with EventServer("127.0.0.1", log) as server:
        late = EventClient(server.address, rank=0, attempt=1)
        late.send({"event": "progress"})
        wait_until(lambda: log.kinds() == ["progress"])
    # The client runs in this process as well: its threads learn of the cut line a moment later.
    started = [thread for thread in threading.enumerate() if thread not in before and thread is not late._thread]
    serving = [thread for thread in started if thread.name != "event answers"]
    assert serving == []
    for _ in range(3):
        late.send({"event": "epoch_end"})
    late.close()
    assert log.kinds() == ["progress"]
    with pytest.raises(ConnectionRefusedError), connection_to(server.address):
        pass


def test_the_oldest_of_too_many_unauthenticated_clients_is_disconnected(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(event_server, "_MOST_UNPROVEN", 8)
    monkeypatch.setattr(event_server, "HANDSHAKE_SECONDS", 600)
    monkeypatch.setattr(event_server, "_LAST_WORDS_SECONDS", 0.1)
    log = Log()
    with EventServer("127.0.0.1", log) as server, contextlib.ExitStack() as strangers:
        ranks = [EventClient(server.address, rank, attempt=1) for rank in range(5)]
        for rank in ranks:
            rank.send({"event": "epoch_end"})
        wait_until(lambda: len(log.events) == 5)
        silent = []
        for _ in range(9):
            # The challenge is awaited before the next one connects, which may end this connection.
            silent.append(strangers.enter_context(connection_to(server.address)))
            silent[-1].settimeout(SECONDS)
            assert len(read_line(silent[-1])) == 65
        assert silent[0].recv(1) == b""
        late = EventClient(server.address, 5, attempt=1)
        late.send({"event": "epoch_end"})
        wait_until(lambda: len(log.events) == 6)
        # It was one too many as well; but who has proved itself stays, however many come.
        assert silent[1].recv(1) == b""
        ranks[0].send({"event": "train_end"})
        for client in (late, *ranks):
            client.close()
    assert sorted(event["rank"] for event in log.events) == [0, 0, 1, 2, 3, 4, 5]
    assert log.kinds()[-1] == "train_end"
    assert "lost the event channel" not in caplog.text


def test_a_connection_that_never_says_who_it_is_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_server, "_LAST_WORDS_SECONDS", 0.1)
    begin = time.monotonic()
    with EventServer("127.0.0.1", Log()) as server, connection_to(server.address) as connection:
        read_line(connection)
    assert time.monotonic() - begin < 5


def test_a_thread_that_the_machine_refuses_costs_a_connection_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """T6: the rank connects again, and the end joins only threads that were started."""
    start, refused = threading.Thread.start, []

    def start_but_once(thread: threading.Thread) -> None:
        if "_admit" in thread.name and not refused:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    log = Log()
    with EventServer("127.0.0.1", log) as server:
        monkeypatch.setattr(threading.Thread, "start", start_but_once)
        client = EventClient(server.address, rank=0, attempt=1)
        client.send({"event": "epoch_end"})
        client.close()
    assert (len(refused), log.kinds()) == (1, ["epoch_end"])
    assert "could not be served: can't start new thread" in caplog.text


def test_used_up_file_descriptors_end_nothing_and_cost_no_processor(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """T6: the server tried again at once, all the time; the end does not wait for the pause."""
    tries: list[int] = []
    create_server = socket.create_server

    class ScarceListener(socket.socket):
        def accept(self) -> tuple[socket.socket, Any]:
            tries.append(len(tries))
            if len(tries) <= most:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    monkeypatch.setattr(
        socket, "create_server", lambda *at, **how: ScarceListener(fileno=create_server(*at, **how).detach())
    )
    most = 3
    log = Log()
    with EventServer("127.0.0.1", log) as server:
        client = EventClient(server.address, rank=0, attempt=1)
        client.send({"event": "epoch_end"})
        client.close()
    assert log.kinds() == ["epoch_end"]
    assert caplog.text.count("could not be served") == 1
    monkeypatch.setattr(admissions, "_PAUSE_SECONDS", 3600)
    tries.clear()
    with EventServer("127.0.0.1", log):
        wait_until(lambda: caplog.text.count("could not be served") == 2)
    assert len(tries) == 1


def test_an_event_that_waits_for_a_slow_receiver_is_dropped_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (event_server, "_LAST_WORDS_SECONDS"),
        (event_server, "_RECEIVER_SECONDS"),
        (admissions, "_CLOSE_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 0.1)
    log, is_received, may_go_on = Log(), threading.Event(), threading.Event()

    def receive(event: Event) -> None:
        log(event)
        is_received.set()
        may_go_on.wait(SECONDS)

    before = set(threading.enumerate())
    with EventServer("127.0.0.1", receive) as server:
        published = noted_publish(server, monkeypatch)
        clients = [EventClient(server.address, rank, attempt=1) for rank in range(2)]
        for client in clients:
            client.send({"event": "epoch_end"})
        assert is_received.wait(SECONDS)
        wait_until(lambda: len(published) == 2)
    serving = [thread for thread in threading.enumerate() if thread not in before and "_admit" in thread.name]
    assert len(serving) == 2
    may_go_on.set()
    for thread in serving:
        thread.join(SECONDS)
    for client in clients:
        client.close(0)
    assert len(log.events) == 1


def noted_publish(server: EventServer, monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Return a list that gets every event that a connection is about to publish."""
    published: list[Event] = []
    publish = server._publish

    def noted(client: str, number: int, event: Event) -> None:
        published.append(event)
        publish(client, number, event)

    monkeypatch.setattr(server, "_publish", noted)
    return published


def test_a_lost_channel_is_noted_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_server, "_LAST_WORDS_SECONDS", 0.0)
    monkeypatch.setattr(event_client, "_FIRST_PAUSE_SECONDS", 0.001)
    caplog.set_level(logging.WARNING)
    log = Log()
    with EventServer("127.0.0.1", log) as server:
        client = EventClient(server.address, rank=0, attempt=1)
        client.send({"event": "epoch_end"})
        wait_until(lambda: log.kinds() == ["epoch_end"])
    wait_until(lambda: "lost the event channel" in caplog.text)
    client.close()
    assert caplog.text.count("lost the event channel") == 1


@contextlib.contextmanager
def fake_driver() -> Iterator[tuple[EventAddress, Callable[[], socket.socket]]]:
    """A driver that is played by the test, connection by connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(SECONDS)
        yield EventAddress("127.0.0.1", listener.getsockname()[1], "token"), lambda: listener.accept()[0]


def test_events_lost_with_a_connection_are_resent_in_order_except_progress() -> None:
    with fake_driver() as (address, accept):
        client = EventClient(address, rank=0, attempt=1)
        with accept() as first, first.makefile("rb") as stream:
            let_in(first, stream)
            for number, kind in enumerate(("phase", "epoch_end", "progress", "error")):
                client.send({"event": kind, "number": number})
            assert json.loads(stream.readline())[2]["event"] == "phase"
            first.sendall(b'{"acknowledged": 1}\n')
            for _ in range(3):
                stream.readline()
            # Taken in by this side's kernel, never acknowledged.
            first.shutdown(socket.SHUT_RDWR)
        with accept() as second, second.makefile("rb") as stream:
            let_in(second, stream)
            closing = threading.Thread(target=client.close)
            closing.start()
            heard = read_events(second, stream)
        closing.join()
    assert [(event["event"], event["number"]) for event in heard] == [("epoch_end", 1), ("error", 3)]


def test_an_event_that_comes_twice_is_heard_once() -> None:
    log = Log()
    with EventServer("127.0.0.1", log) as server:
        for numbers in ((1, 2), (2, 3)):
            with connection_to(server.address) as connection:
                nonce = read_line(connection).strip().decode()
                answer = proof(server.address.token, "client", nonce, "00")
                lines = [f'[{number}, true, {{"event": "phase", "number": {number}}}]' for number in numbers]
                hello = json.dumps({"client": "one", "sender": "rank"})
                connection.sendall("\n".join([f"00 {answer}", hello, *lines, ""]).encode())
                read_line(connection)
                for number in numbers:
                    assert json.loads(read_line(connection)) == {"acknowledged": number}
    assert [event["number"] for event in log.events] == [1, 2, 3]


def test_no_event_is_sent_to_a_driver_without_the_token(caplog: pytest.LogCaptureFixture) -> None:
    with fake_driver() as (address, accept):
        client = EventClient(address, rank=0, attempt=1, on_command=lambda _: pytest.fail("obeyed"), sender="task")
        client.send({"event": "epoch_end"})
        with accept() as connection, connection.makefile("rb") as stream:
            connection.sendall(b"00\n")
            _, answer = stream.readline().decode().split()
            # The client's own proof, played back.
            connection.sendall(answer.encode() + b'\n{"command": "abort"}\n')
            assert stream.readline() == b""
        client.close()
    assert "not the driver of this run" in caplog.text


def commanded(server: EventServer, rank: int, attempt: int = 1) -> tuple[EventClient, "queue.SimpleQueue[Any]"]:
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    return EventClient(server.address, rank, attempt, on_command=heard.put, sender="task"), heard


def test_commands_reach_the_tasks_of_all_ranks() -> None:
    log = Log()
    with EventServer("127.0.0.1", log) as server, contextlib.ExitStack() as clients:
        of_the_process = EventClient(server.address, 0, 1, on_command=lambda _: pytest.fail("not a task"))
        clients.callback(of_the_process.close)
        tasks = [commanded(server, rank) for rank in range(2)]
        for client, _ in tasks:
            clients.callback(client.close)
            client.send({"event": "system"})
        of_the_process.send({"event": "phase"})
        wait_until(lambda: len(log.events) == 3)
        server.command({"command": "stacks"})
        server.command({"command": "lease"})
        for _, heard in tasks:
            assert heard.get(timeout=SECONDS) == {"command": "stacks"}
            assert heard.get(timeout=SECONDS) == {"command": "lease"}
    assert [event.get("from") for event in log.events if event["event"] == "system"] == ["task", "task"]


def test_a_task_that_comes_late_learns_what_still_stands() -> None:
    with EventServer("127.0.0.1", Log()) as server:
        server.command({"command": "lease"})
        server.command({"command": "stop", "reason": "driver"})
        client, heard = commanded(server, rank=0)
        assert heard.get(timeout=SECONDS) == {"command": "stop", "reason": "driver"}
        server.command({"command": "lease"})
        assert heard.get(timeout=SECONDS) == {"command": "lease"}
        client.close()


def test_addresses_reach_only_ranks_including_reconnected_ones() -> None:
    """T7: a rank whose line is cut while it waits for the others must not wait for ever."""
    log = Log()
    some, all_of_them = ({"command": "peers", "addresses": [first, "b:2"]} for first in (None, "a:1"))
    with EventServer("127.0.0.1", log) as server:
        task, heard_by_task = commanded(server, rank=0)
        task.send({"event": "system"})
        wait_until(lambda: len(log.events) == 1)
        server.command(some)
        server.command(all_of_them)
        for _ in range(2):
            heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
            rank = EventClient(server.address, 0, 1, on_command=heard.put)
            assert heard.get(timeout=SECONDS) == all_of_them
            rank.close()
        server.command({"command": "lease"})
        assert heard_by_task.get(timeout=SECONDS) == {"command": "lease"}
        task.close()


def test_a_rank_that_does_not_read_holds_up_neither_driver_nor_others() -> None:
    log = Log()
    with EventServer("127.0.0.1", log) as server, connection_to(server.address) as deaf:
        nonce = read_line(deaf).strip().decode()
        answer = proof(server.address.token, "client", nonce, "00")
        hello = json.dumps({"client": "deaf", "sender": "rank"})
        deaf.sendall(f'00 {answer}\n{hello}\n[1, false, {{"event": "system"}}]\n'.encode())
        client, heard = commanded(server, rank=1)
        client.send({"event": "system"})
        wait_until(lambda: len(log.events) == 2)
        for _ in range(40):
            server.command({"command": "peers", "addresses": ["x" * 200_000]})
        server.command({"command": "lease"})
        assert heard.get(timeout=SECONDS) == {"command": "lease"}
        client.close()


def test_silence_of_the_driver_is_measured() -> None:
    now = [100.0]
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    log = Log()
    with EventServer("127.0.0.1", log) as server:
        client = EventClient(server.address, 0, 1, on_command=heard.put, sender="task", clock=lambda: now[0])
        client.send({"event": "system"})
        wait_until(lambda: len(log.events) == 1)
        now[0] += 7
        assert client.silent_seconds == 7
        server.command({"command": "lease"})
        heard.get(timeout=SECONDS)
        assert client.silent_seconds == 0
        client.close()


def test_logs_do_not_block_an_error(
    silent_driver: tuple[EventAddress, Callable[[], list[Event]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_client, "_QUEUE_LENGTH", 5)
    address, read = silent_driver
    client = EventClient(address, rank=0, attempt=1)
    for number in range(50):
        client.send({"event": "log", "message": str(number)})
    client.send({"event": "error"})
    heard: list[Event] = []
    reader = threading.Thread(target=lambda: heard.extend(read()), daemon=True)
    reader.start()
    client.close()
    reader.join(SECONDS)
    assert [event.get("message", "error") for event in heard] == ["1", "2", "3", "4", "error"]


def test_unacknowledged_logs_do_not_block_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_client, "_QUEUE_LENGTH", 5)
    with fake_driver() as (address, accept):
        client = EventClient(address, rank=0, attempt=1)
        with accept() as connection, connection.makefile("rb") as stream:
            let_in(connection, stream)
            for number in range(5):
                client.send({"event": "log", "message": str(number)})
            for _ in range(5):
                stream.readline()
            client.send({"event": "error"})
            assert json.loads(stream.readline())[2]["event"] == "error"
            connection.shutdown(socket.SHUT_RDWR)
        client.close(0.0)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"event": "error", "message": "x" * 3_000_000}, {"event": "error", "message": "x" * 4000}),
        ({"event": "epoch_end", "logs": ["y" * 3_000_000]}, {"event": "epoch_end"}),
        ({"event": "log", ("a", 1): 2}, {"event": "log", "('a', 1)": 2}),
    ],
    ids=["long text", "long value", "odd key"],
)
def test_an_event_whose_line_would_be_too_long_or_odd_arrives_without_it(
    event: dict[Any, Any], expected: dict[str, Any]
) -> None:
    log = Log()
    with EventServer("127.0.0.1", log) as server:
        client = EventClient(server.address, rank=0, attempt=1)
        client.send(event)
        client.close()
    (heard,) = log.events
    assert expected.items() <= heard.items()
    assert (heard["rank"], heard["attempt"]) == (0, 1)
