"""T6: the report of a rank's error, and the path of its orders."""

import asyncio
import errno
import io
import itertools
import json
import logging
import math
import os
import socket
import sys
import threading
import time
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest

from mirrorspark.callbacks.checkpoints.checkpoint_store import CheckpointStoreError, store_error
from mirrorspark.callbacks.checkpoints.commit import CheckpointDamagedError
from mirrorspark.callbacks.checkpoints.fencing import StaleAttemptError
from mirrorspark.callbacks.nan_guard import NonFiniteLossError
from mirrorspark.storage.paths import StoreUnreachableError
from mirrorspark.training.executor.worker import WorkerOrders
from mirrorspark.training.executor.worker_failure import _MACHINE_ERRORS, EntryError, describe
from mirrorspark.training.executor.worker_log import LogToDriver, let_the_log_out
from mirrorspark.training.protocol.messages.event_client import EventClient
from mirrorspark.training.protocol.messages.events import Command, Event, EventAddress
from mirrorspark.training.protocol.outcomes.activity import Activity, Phase
from mirrorspark.training.protocol.ring.errors import RingConnectError, RingError
from mirrorspark.training.protocol.ring.rendezvous import Rendezvous


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "phase", "cause"),
    [
        (ValueError("no such column"), "training", "user"),
        (ImportError("no module named model"), "building", "user"),
        (MemoryError(), "training", "unknown"),
        (FileNotFoundError(errno.ENOENT, "no such shard"), "training", "user"),
        (ConnectionResetError("a server of the user's own"), "training", "user"),
        (RingError(1, "disconnected"), "training", "peer"),
        (RingError(1, "disconnected"), "connecting", "start"),
        (RingConnectError(1, "cannot be reached"), "building", "start"),
        (EntryError("mirrorspark.training.programs.keras_fit.fit:train cannot be loaded"), "starting", "start"),
        (ConnectionRefusedError("nobody there"), "connecting", "start"),
        (TimeoutError("nobody answers"), "connecting", "start"),
        (OSError(errno.EADDRINUSE, "Address already in use"), "training", "start"),
        (OSError(errno.ENOSPC, "No space left on device"), "checkpoint", "store"),
        (OSError(errno.ESTALE, "Stale file handle"), "training", "store"),
        (CheckpointDamagedError(Path("c"), "weights are cut short"), "restoring", "store"),
        (CheckpointStoreError("s3://b/c", "AWS Error NETWORK_CONNECTION"), "checkpoint", "store"),
        (CheckpointStoreError("/c", "Permission denied", number=errno.EACCES), "checkpoint", "store"),
        (CheckpointStoreError("/c", "Address already in use", number=errno.EADDRINUSE), "connecting", "store"),
        (store_error("/c", FileNotFoundError(errno.ENOENT, "FENCE-*.json is missing")), "checkpoint", "store"),
        (store_error("/c", TimeoutError("no answer for 301 s")), "connecting", "store"),
        (StoreUnreachableError("s3://b cannot be reached"), "building", "store"),
        (raised_from(RuntimeError("cannot read"), StoreUnreachableError("s3://b")), "training", "store"),
        (StaleAttemptError("/c", 1, 2), "checkpoint", "peer"),
        (raised_from(RuntimeError("fit failed"), RingError(0, "disconnected")), "training", "peer"),
        (raised_from(RuntimeError("cannot save"), OSError(errno.EIO, "Input/output error")), "checkpoint", "store"),
        (RuntimeError("can't start new thread"), "building", "machine"),
        (raised_from(ValueError("no rows"), OSError(errno.EMFILE, "Too many open files")), "training", "machine"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), "connecting", "machine"),
        (raised_from(RuntimeError("no answer"), socket.gaierror(socket.EAI_AGAIN, "try again")), "training", "machine"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "training", "user"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{type(value).__name__}",
)
def test_the_cause_of_an_error(error: Exception, phase: Phase, cause: str) -> None:
    assert describe(error, phase)["cause"] == cause


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "memory has run out; give the workers' machines more memory, start fewer workers on each, or"),
        (MemoryError("Unable to allocate 8 GiB"), "Unable to allocate 8 GiB; give the workers' machines"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "[Errno 12] Cannot allocate memory; give the workers'"),
    ],
    ids=["Python", "NumPy", "kernel"],
)
def test_an_error_for_want_of_memory_has_the_remedy(error: Exception, message: str) -> None:
    assert describe(error)["message"].startswith(message)


@pytest.mark.parametrize("number", sorted(_MACHINE_ERRORS))
def test_an_error_of_the_machine_is_not_the_users(number: int) -> None:
    """T6: limits of the machine that are reached, or a network that is down, cost an attempt and not the run."""
    assert describe(OSError(number, os.strerror(number)))["cause"] == "machine"


def raised_by(work: Callable[[], object]) -> Exception:
    try:
        work()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def of_the_users_own() -> None:
    raise RuntimeError("of the user's own")


@pytest.mark.parametrize(
    ("work", "cause"),
    [
        (of_the_users_own, "user"),
        (lambda: json.loads("{"), "user"),
        (lambda: Path("/no/such/file").read_text(), "user"),
        (lambda: asyncio.run(asyncio.wait_for(asyncio.sleep(9), 0)), "unknown"),
        (lambda: zipfile.ZipFile(io.BytesIO(b"no archive")), "unknown"),
    ],
    ids=["raise", "value", "file", "timeout", "archive"],
)
def test_an_error_is_the_users_if_their_code_raised_it_or_its_class_says_so(
    work: Callable[[], object], cause: str
) -> None:
    """T6: a library's error, which may or may not recur, gets one more attempt."""
    assert describe(raised_by(work))["cause"] == cause


def test_an_error_that_was_only_being_handled_is_no_cause() -> None:
    error = ValueError("of the user's own")
    error.__context__ = RingError(1, "disconnected")
    assert describe(error)["cause"] == "user"


class OpError(Exception):
    """Stands for TensorFlow's."""


class UnavailableError(OpError):
    """Likewise."""


class UnknownError(OpError):
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
        (OpError("RingError: rank 1 disconnected"), "training", "peer"),
        (OpError("RingConnectError: rank 1 cannot be reached"), "building", "start"),
        (OpError("Collective ops is aborted by: ..."), "training", "peer"),
        (UnavailableError("failed to connect to all addresses"), "training", "peer"),
        (UnavailableError("failed to connect to all addresses"), "connecting", "start"),
        (OpError("Could not start gRPC server"), "connecting", "start"),
        (OpError("/data/x; No space left on device"), "checkpoint", "store"),
        (OpError("/data/x; Too many open files"), "training", "machine"),
        (UnknownError("cuDNN launch failure"), "training", "unknown"),
        (UnknownError("KeyboardError: 3\nTraceback (most recent call last):\n"), "training", "user"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_cause_of_an_error_of_tensorflow(error: Exception, phase: Phase, cause: str) -> None:
    event = describe(error, phase)
    assert (event["cause"], event["is_from_tensorflow"]) == (cause, True)


@pytest.mark.usefixtures("tensorflow")
def test_an_error_of_tensorflow_for_want_of_memory_is_the_line_that_says_so_with_the_remedy() -> None:
    event = describe(OpError("Graph execution error:\n\nOOM when allocating tensor with shape[9]\n [[node]]"))
    assert event["message"].startswith("OOM when allocating tensor with shape[9]; give the workers' machines more memo")


def test_an_error_is_reported_with_type_message_and_place() -> None:
    event = describe(ValueError("x" * 10_000))
    assert (event["event"], event["type"], event["is_from_tensorflow"]) == ("error", "ValueError", False)
    assert event["message"] == "x" * 4000
    assert len(event["traceback"]) == 8000


def test_an_error_noticed_late_is_reported_with_its_origin() -> None:
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


def test_a_flood_of_warnings_is_sampled_and_what_is_printed_leaves_no_warning_out() -> None:
    line = HeardEvents()
    seconds = itertools.count(0, 0.005)
    handler = LogToDriver(line, verbose=True, clock=lambda: next(seconds))  # type: ignore[arg-type] # all it needs
    for number in range(500):
        handler.handle(record(logging.INFO, "step %d", number))
        handler.handle(record(logging.WARNING, "bad %d %s", number, "x" * 3000))
    warnings = [event["message"] for event in line.events]
    assert 50 <= len(warnings) < 100
    assert [message.split()[:2] for message in warnings[:20]] == [["bad", str(number)] for number in range(20)]
    assert {len(message) for message in warnings} == {2000}


def test_a_record_of_the_log_is_printed_or_sent_but_not_both(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """T6: the channel's own warnings are not sent through it, which would not end."""
    root = logging.Logger("root", logging.WARNING)
    monkeypatch.setattr(logging, "getLogger", lambda *_: root)
    line = HeardEvents()
    let_the_log_out(line, verbose=True)  # type: ignore[arg-type] # all it needs
    for level, name in ((logging.INFO, "model"), (logging.ERROR, "model"), (logging.ERROR, EventClient.__module__)):
        root.handle(logging.LogRecord(name, level, "file.py", 1, f"{level} of %s", (name,), None))
    assert [event["message"] for event in line.events] == ["40 of model"]
    printed = [line.partition(": ")[2] for line in capsys.readouterr().err.splitlines()]
    assert printed == ["20 of model", f"40 of {EventClient.__module__}"]


def test_warnings_about_which_nothing_need_be_done_are_sent_only_where_all_is_shown() -> None:
    """H2, T3: a loss of a notebook has no source in a worker."""
    loss = "AutoGraph could not transform <function costly>. Cause: Unable to locate the source code of it"
    layer = "No training configuration found in save file, so the model was *not* compiled."
    sent = {}
    for verbose in (False, True):
        line = HeardEvents()
        for message in (loss, layer, "AutoGraph could not transform it, for it raises"):
            LogToDriver(line, verbose=verbose).handle(record(logging.WARNING, message))  # type: ignore[arg-type]
        sent[verbose] = len(line.events)
    assert sent == {False: 1, True: 3}


def test_a_log_record_that_cannot_be_read_does_not_end_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    line = HeardEvents()
    LogToDriver(line).handle(record(logging.WARNING, "%d", "no number"))  # type: ignore[arg-type]
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


class RankAtRendezvous:
    """Rank 1 at a rendezvous: its events, and the commands that it receives."""

    def __init__(self) -> None:
        self.line = HeardEvents()
        self.heard: SimpleQueue[Command] = SimpleQueue()
        self.activity = Activity()
        self.side = Rendezvous(1, "10.0.0.2", self.line, self.heard, self.activity)  # type: ignore[arg-type]

    def tell(self, *addresses: str | None) -> None:
        self.heard.put({"command": "peers", "addresses": list(addresses)})

    def wait_for(self, whom: str) -> None:
        deadline = time.monotonic() + 60
        while self.activity.snapshot()["waiting_for"] != whom:
            assert time.monotonic() < deadline, self.activity.snapshot()
            time.sleep(0.001)


def test_a_rendezvous_returns_all_addresses_and_shows_the_rank_it_waits_for() -> None:
    """T7: the watchdog blames the one that everybody waits for."""
    rendezvous = RankAtRendezvous()
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.extend(rendezvous.side.exchange_addresses(80, 100)))
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
        ((None, "b:2"), 0, "rank 0 has not reported its address in 0.01 s"),
        ((None, "b:2", None, "d:4", None), 0, "rank 0 has not reported its address in 0.01 s, nor ranks 2, 4"),
        (None, 1, "rank 1 has received no addresses from the driver in 0.01 s"),
    ],
    ids=["one", "three", "nobody knows"],
)
def test_ranks_missing_at_the_rendezvous_are_named_and_the_start_has_failed(
    told: tuple[str | None, ...] | None, rank: int, message: str
) -> None:
    rendezvous = RankAtRendezvous()
    if told is not None:
        rendezvous.tell(*told)
    with pytest.raises(RingConnectError) as raised:
        rendezvous.side.exchange_addresses(80, 0.01)
    assert (raised.value.rank, str(raised.value)) == (rank, message)
    assert describe(raised.value, "connecting")["cause"] == "start"
