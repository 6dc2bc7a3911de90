"""T6: what the error of a rank is told as, and how its orders travel."""

import errno
import io
import json
import logging
import math
import sys
import threading
import time
import types
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest

from mirrorspark.callbacks.checkpoints.commit import CheckpointDamagedError
from mirrorspark.callbacks.checkpoints.fence import StaleAttemptError
from mirrorspark.callbacks.checkpoints.store import CheckpointStoreError, store_error
from mirrorspark.callbacks.nan_guard import NonFiniteLossError
from mirrorspark.storage.paths import StoreUnreachableError
from mirrorspark.training.executor.worker import WorkerOrders
from mirrorspark.training.executor.worker_failure import EntryError, describe
from mirrorspark.training.executor.worker_log import LogToDriver
from mirrorspark.training.protocol.activity import Activity, Phase
from mirrorspark.training.protocol.events import Command, Event, EventAddress
from mirrorspark.training.ring.errors import RingConnectError, RingError
from mirrorspark.training.ring.meeting import Meeting


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "phase", "cause"),
    [
        (ValueError("no such column"), "training", "user"),
        (ImportError("no module named model"), "building", "user"),
        (MemoryError(), "training", "user"),
        (FileNotFoundError(errno.ENOENT, "no such shard"), "training", "user"),
        (ConnectionResetError("a server of the user's own"), "training", "user"),
        (RingError(1, "is gone"), "training", "peer"),
        (RingError(1, "is gone"), "connecting", "start"),
        (RingConnectError(1, "cannot be reached"), "building", "start"),
        (EntryError("mirrorspark.training.fitting.fit:train cannot be loaded"), "starting", "start"),
        (ConnectionRefusedError("nobody there"), "connecting", "start"),
        (TimeoutError("nobody answers"), "connecting", "start"),
        (OSError(errno.EADDRINUSE, "Address already in use"), "training", "start"),
        (OSError(errno.ENOSPC, "No space left on device"), "checkpoint", "store"),
        (OSError(errno.ESTALE, "Stale file handle"), "training", "store"),
        (CheckpointDamagedError(Path("c"), "weights are cut short"), "restoring", "store"),
        (CheckpointStoreError("s3://b/c", "AWS Error NETWORK_CONNECTION"), "checkpoint", "store"),
        (CheckpointStoreError("/c", "Permission denied", number=errno.EACCES), "checkpoint", "store"),
        (CheckpointStoreError("/c", "Address already in use", number=errno.EADDRINUSE), "connecting", "store"),
        (store_error("/c", FileNotFoundError(errno.ENOENT, "FENCE.json is gone")), "checkpoint", "store"),
        (store_error("/c", TimeoutError("no answer for 301 s")), "connecting", "store"),
        (StoreUnreachableError("s3://b cannot be reached"), "building", "store"),
        (raised_from(RuntimeError("cannot read"), StoreUnreachableError("s3://b")), "training", "store"),
        (StaleAttemptError("/c", 1, 2), "checkpoint", "peer"),
        (raised_from(RuntimeError("fit failed"), RingError(0, "is gone")), "training", "peer"),
        (raised_from(RuntimeError("cannot save"), OSError(errno.EIO, "Input/output error")), "checkpoint", "store"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{type(value).__name__}",
)
def test_the_cause_of_an_error(error: Exception, phase: Phase, cause: str) -> None:
    assert describe(error, phase)["cause"] == cause


def test_an_error_that_was_only_being_handled_is_no_cause() -> None:
    error = ValueError("of the user's own")
    error.__context__ = RingError(1, "is gone")
    assert describe(error)["cause"] == "user"


class OpError(Exception):
    """Stands for TensorFlow's."""


class UnavailableError(OpError):
    """Likewise."""


@pytest.fixture
def tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TensorFlow whose errors are those above."""
    stand_in = types.ModuleType("tensorflow")
    stand_in.errors = types.SimpleNamespace(OpError=OpError)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorflow", stand_in)


@pytest.mark.usefixtures("tensorflow")
@pytest.mark.parametrize(
    ("error", "phase", "cause"),
    [
        (OpError("indices[0] = 7 is not in [0, 5)"), "training", "user"),
        (OpError("RingError: rank 1 is gone"), "training", "peer"),
        (OpError("RingConnectError: rank 1 cannot be reached"), "building", "start"),
        (OpError("Collective ops is aborted by: ..."), "training", "peer"),
        (UnavailableError("failed to connect to all addresses"), "training", "peer"),
        (UnavailableError("failed to connect to all addresses"), "connecting", "start"),
        (OpError("Could not start gRPC server"), "connecting", "start"),
        (OpError("/data/x; No space left on device"), "checkpoint", "store"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_cause_of_an_error_of_tensorflow(error: Exception, phase: Phase, cause: str) -> None:
    event = describe(error, phase)
    assert (event["cause"], event["is_from_tensorflow"]) == (cause, True)


def test_an_error_is_told_with_its_type_its_words_and_its_place() -> None:
    event = describe(ValueError("x" * 10_000))
    assert (event["event"], event["type"], event["is_from_tensorflow"]) == ("error", "ValueError", False)
    assert event["message"] == "x" * 4000
    assert len(event["traceback"]) == 8000


def test_an_error_that_was_noticed_late_tells_where_it_began() -> None:
    event = describe(NonFiniteLossError(2, 17, math.nan))
    assert (event["epoch"], event["step_in_epoch"]) == (2, 17)
    other = ValueError("theirs")
    other.epoch = np.float32(3)  # type: ignore[attr-defined] # nothing that could travel
    assert not {"epoch", "step_in_epoch"} & describe(other).keys()


def test_secrets_are_taken_out_before_a_text_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_TOKEN", "planted-secret")
    error = ValueError("x" * 3990 + "planted-secret")
    error.__cause__ = OSError("s3://user:" + "p" * 8000 + "@store/data")
    event = describe(error)
    assert event["message"] == "x" * 3990 + "***"
    assert "planted" not in json.dumps(event)
    assert "pppp" not in json.dumps(event)


class HeardEvents:
    """Stands for the line to the driver."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def send(self, event: Event) -> None:
        self.events.append(event)


def record(level: int, message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("model", level, "file.py", 1, message, arguments, None)


def test_a_talkative_log_is_told_in_parts_and_its_warnings_do_not_drown_in_it() -> None:
    line = HeardEvents()
    handler = LogToDriver(line, logging.INFO)  # type: ignore[arg-type] # all it needs
    for number in range(500):
        handler.handle(record(logging.INFO, "step %d %s", number, "x" * 3000))
        handler.handle(record(logging.WARNING, "bad %d", number))
    told = [event["message"] for event in line.events if event["level"] == "INFO"]
    assert 50 <= len(told) < 100
    assert {len(message) for message in told} == {2000}
    warnings = [event["message"] for event in line.events if event["level"] == "WARNING"]
    assert 50 <= len(warnings) < 100
    assert warnings[:20] == [f"bad {number}" for number in range(20)]


def test_a_log_record_that_cannot_be_read_does_not_end_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    line = HeardEvents()
    LogToDriver(line, logging.INFO).handle(record(logging.WARNING, "%d", "no number"))  # type: ignore[arg-type]
    assert line.events == []
    assert "no number" in capsys.readouterr().err


@pytest.mark.parametrize("payload", [None, b"", b"\x00\n\xff"])
def test_orders_are_read_as_they_were_written_and_what_follows_is_left(payload: bytes | None) -> None:
    address = EventAddress("h", 1, "secret")
    orders = WorkerOrders(2, 3, address, "m:f", "m:P", '{"a": "ä\\n"}', payload, host="10.0.0.1")
    stream = io.BytesIO(orders.to_bytes() + b'{"stop": "driver"}\n')
    assert WorkerOrders.read(stream) == orders
    assert stream.read() == b'{"stop": "driver"}\n'
    assert "secret" not in repr(orders)


class Rendezvous:
    """Rank 1 on its way to the others: what it tells, and what it is told."""

    def __init__(self) -> None:
        self.line = HeardEvents()
        self.heard: SimpleQueue[Command] = SimpleQueue()
        self.activity = Activity()
        self.meeting = Meeting(1, "10.0.0.2", self.line, self.heard, self.activity)  # type: ignore[arg-type] # all it needs

    def tell(self, *addresses: str | None) -> None:
        self.heard.put({"command": "peers", "addresses": list(addresses)})

    def wait_for(self, whom: str) -> None:
        deadline = time.monotonic() + 60
        while self.activity.snapshot()["waiting_for"] != whom:
            assert time.monotonic() < deadline, self.activity.snapshot()
            time.sleep(0.001)


def test_a_rank_learns_where_the_others_are_and_shows_for_whom_it_waits() -> None:
    """T7: the watchdog blames the one that everybody waits for."""
    rendezvous = Rendezvous()
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.extend(rendezvous.meeting.peers(80, 100)))
    thread.start()
    rendezvous.wait_for("the driver")
    rendezvous.tell(None, "10.0.0.2:80", None)
    rendezvous.wait_for("rank 0")
    rendezvous.tell("10.0.0.1:70", "10.0.0.2:80", None)
    rendezvous.wait_for("rank 2")
    rendezvous.tell("10.0.0.1:70", "10.0.0.2:80", "10.0.0.3:90")
    thread.join()
    assert found == ["10.0.0.1:70", "10.0.0.2:80", "10.0.0.3:90"]
    assert rendezvous.line.events == [{"event": "listening", "address": "10.0.0.2:80"}]
    assert rendezvous.activity.snapshot()["waiting_for"] is None


@pytest.mark.parametrize(
    ("told", "rank", "message"),
    [
        ((None, "b:2"), 0, "rank 0 has not told where it listens in 0.01 s"),
        ((None, "b:2", None, "d:4", None), 0, "rank 0 has not told where it listens in 0.01 s, nor ranks 2, 4"),
        (None, 1, "rank 1 has not heard from the driver where the others are in 0.01 s"),
    ],
    ids=["one", "three", "nobody knows"],
)
def test_ranks_that_do_not_come_in_time_are_named_and_the_start_has_failed(
    told: tuple[str | None, ...] | None, rank: int, message: str
) -> None:
    rendezvous = Rendezvous()
    if told is not None:
        rendezvous.tell(*told)
    with pytest.raises(RingConnectError) as raised:
        rendezvous.meeting.peers(80, 0.01)
    assert (raised.value.rank, str(raised.value)) == (rank, message)
    assert describe(raised.value, "connecting")["cause"] == "start"
