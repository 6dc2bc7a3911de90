"""The channel from the ranks to the driver: who may speak, in what order it arrives, and what it never does."""

import contextlib
import dataclasses
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from training import events
from training.events import Event, EventAddress, EventClient, EventServer

SECONDS = 10.0


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


@pytest.fixture
def silent_driver() -> Iterator[tuple[EventAddress, Callable[[], list[Event]]]]:
    """A driver that lets everybody in and does not read until it is asked to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.settimeout(SECONDS)

        def read() -> list[Event]:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as stream:
                connection.settimeout(SECONDS)
                connection.sendall(b"00\n")
                stream.readline()
                return [json.loads(line) for line in stream]

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


def test_what_was_sent_before_the_end_is_heard_before_the_end() -> None:
    log = Log()
    with EventServer("127.0.0.1", log) as server:
        client = EventClient(server.address, rank=0, attempt=1)
        for number in range(500):
            client.send({"event": "epoch_end", "epoch": number})
        client.close()
    assert len(log.events) == 500


def test_who_does_not_know_the_token_is_refused_and_the_others_are_heard(caplog: pytest.LogCaptureFixture) -> None:
    log = Log()
    with EventServer("127.0.0.1", log) as server:
        client = EventClient(server.address, rank=0, attempt=1)
        client.send({"event": "progress"})
        with connection_to(server.address) as connection:
            nonce = read_line(connection)
            assert len(bytes.fromhex(nonce.decode())) == 32
            connection.sendall(b"0" * 64 + b'\n{"event": "error", "rank": 0, "attempt": 1}\n')
            connection.settimeout(SECONDS)
            with contextlib.suppress(ConnectionResetError):  # what we sent after the proof was never read
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
        address = EventAddress("127.0.0.1", listener.getsockname()[1], "the-token")
        client = EventClient(address, rank=0, attempt=1)
        client.send({"event": "progress"})
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as stream:
            connection.sendall(b"00\n")
            sent = stream.readline() + stream.readline()
        client.close()
    assert b"the-token" not in sent
    assert "the-token" not in f"{address} {address!r}"
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
            proof = events._proof(server.address.token, nonce).encode()
            connection.sendall(proof + b"\nnot json\n")
            assert connection.recv(1) == b""
        client = EventClient(server.address, rank=0, attempt=1)
        client.send({"event": "progress"})
        client.close()
    assert log.kinds() == ["progress"]


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
    client.close()
    assert time.monotonic() - begin < 5
    assert "lost the event channel to the driver" in caplog.text
    assert "token" not in caplog.text


def test_a_driver_that_does_not_read_loses_progress_but_no_error(
    silent_driver: tuple[EventAddress, Callable[[], list[Event]]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(events, "_QUEUE_LENGTH", 20)
    address, read = silent_driver
    client = EventClient(address, rank=0, attempt=1)
    begin = time.monotonic()
    client.send({"event": "train_begin"})
    for number in range(1000):
        client.send({"event": "progress", "number": number})
    client.send({"event": "error", "message": "the reason"})
    assert time.monotonic() - begin < 2
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
    monkeypatch.setattr(events, "_QUEUE_LENGTH", 5)
    address, read = silent_driver
    client = EventClient(address, rank=0, attempt=1)
    begin = time.monotonic()
    for number in range(100):
        client.send({"event": "error", "number": number})
    assert time.monotonic() - begin < 2
    heard: list[Event] = []
    reader = threading.Thread(target=lambda: heard.extend(read()), daemon=True)
    reader.start()
    client.close()
    reader.join(SECONDS)
    assert [event["number"] for event in heard] == [0, 1, 2, 3, 4]


def test_closing_waits_no_longer_than_it_was_told(
    silent_driver: tuple[EventAddress, Callable[[], list[Event]]],
) -> None:
    client = EventClient(silent_driver[0], rank=0, attempt=1)
    client.send({"event": "epoch_end"})
    begin = time.monotonic()
    client.close(timeout_seconds=0.1)
    assert time.monotonic() - begin < 2


def test_leaving_ends_every_thread_and_nothing_is_heard_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_LAST_WORDS_SECONDS", 0.1)
    before = set(threading.enumerate())
    log = Log()
    with EventServer("127.0.0.1", log) as server:
        late = EventClient(server.address, rank=0, attempt=1)
        late.send({"event": "progress"})
        wait_until(lambda: log.kinds() == ["progress"])
    serving = [thread for thread in threading.enumerate() if thread not in before and thread is not late._thread]
    assert serving == []
    for _ in range(3):
        late.send({"event": "epoch_end"})
    late.close()
    assert log.kinds() == ["progress"]
    with pytest.raises(ConnectionRefusedError), connection_to(server.address):
        pass


def test_a_connection_that_never_says_who_it_is_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_LAST_WORDS_SECONDS", 0.1)
    begin = time.monotonic()
    with EventServer("127.0.0.1", Log()) as server, connection_to(server.address) as connection:
        read_line(connection)
    assert time.monotonic() - begin < 5


def test_a_lost_channel_is_noted_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_LAST_WORDS_SECONDS", 0.0)
    caplog.set_level(logging.WARNING)
    with EventServer("127.0.0.1", Log()) as server:
        client = EventClient(server.address, rank=0, attempt=1)

    def lost() -> bool:
        client.send({"event": "progress"})
        return "lost the event channel" in caplog.text

    wait_until(lost)
    for _ in range(10):
        client.send({"event": "progress"})
    client.close()
    assert caplog.text.count("lost the event channel") == 1
