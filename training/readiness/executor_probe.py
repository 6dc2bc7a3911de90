"""What one barrier task finds out about its executor: versions, stores, ports, the other executors and the driver.

A top-level function of plain data: it pickles, and a test runs it in threads. A task never raises, since one that does
ends the whole barrier job and takes the others' findings along; what goes wrong is part of its answer.
"""

import contextlib
import hashlib
import importlib.util
import os
import re
import secrets
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
from pyspark import BarrierTaskContext

import mirrorspark
from mirrorspark.storage.paths import StorageError, StoragePath
from mirrorspark.training.protocol.event_client import EventClient
from mirrorspark.training.protocol.events import EventAddress
from mirrorspark.training.protocol.handshake import is_proof, proof, split_address
from mirrorspark.training.ring.ring import Ring

# Packages whose version must be the same on the driver and on every executor.
SHARED_PACKAGES = ("tensorflow", "tf-keras", "pyspark", "pyarrow", "numpy")

# Our own source: two states of it may carry the same version.

# Says nothing about whether two places are the same.
UNKNOWN = "unknown"

REACH_SECONDS = 3.0
STORE_SECONDS = 15.0
RING_SECONDS = 10.0

SMALL_BYTES = 4
LARGE_BYTES = 1 << 20
_FEWEST_ROUNDS = 5
_MOST_ROUNDS = 50
# Of either message; a slow network gets fewer rounds.
_MEASURED_SECONDS = 1.0

# More threads than that say nothing new, and a large cluster has many pairs.
_DIALLING_THREADS = 64
_LINE_BYTES = 256
# Of what a store says, whose libraries tell the whole way down.
_LONGEST_REASON = 300
_ROLE = "probe"
# Instead of the address of a task that cannot listen.
_NOWHERE = "-"


@dataclass(frozen=True)
class Store:
    """A folder that driver and executors must share.

    Attributes:
        folder: Where the probe writes; it exists where it is a local one.
        token: Names the files of this probe, and stands in them: another machine may have a folder of that name.
    """

    folder: StoragePath
    token: str

    def file(self, writer: str) -> StoragePath:
        """Return the file that ``writer`` (``driver``, or a task's rank) leaves there."""
        return self.folder / f".mirrorspark-probe-{self.token}-{writer}"

    def write(self, writer: str) -> None:
        """Leave the file; a local folder that is not there is not made.

        Raises:
            OSError: The store refuses, or the folder is not there.
            StorageError: No such store can be opened.
        """
        file = self.file(writer)
        (file.parent.kept_within() / file.name).write_bytes(self.token.encode())

    def sees(self, writer: str) -> bool:
        """Return whether the file that ``writer`` left can be read here.

        Raises:
            OSError: The store refuses.
            StorageError: No such store can be opened.
        """
        try:
            return self.file(writer).read_bytes() == self.token.encode()
        except FileNotFoundError:
            return False

    def clear(self, writers: Iterable[str]) -> None:
        """Remove the files; one that cannot be removed stays."""
        for writer in writers:
            with contextlib.suppress(OSError, StorageError, pa.ArrowException):
                self.file(writer).delete()


@dataclass(frozen=True)
class Question:
    """What the driver wants to know.

    Attributes:
        token: Proves that who answers belongs to this probe.
        events: Where the driver listens.
        stores: Folders that must be shared.
    """

    token: str = field(repr=False)
    events: EventAddress
    stores: tuple[Store, ...] = ()


@dataclass(frozen=True)
class StoreAnswer:
    """How a store looks from here.

    Attributes:
        sees_driver: Whether what the driver wrote can be read.
        error: Why nothing could be written or read; None when all went well.
    """

    sees_driver: bool
    error: str | None = None


@dataclass(frozen=True)
class Unreachable:
    """Another task that could not be reached.

    Attributes:
        rank: That task.
        address: Where it was tried.
        error: What happened.
    """

    rank: int
    address: str
    error: str


@dataclass(frozen=True)
class Pace:
    """How fast the tasks sum an array over all of them: medians of some tens of rounds.

    Attributes:
        small_seconds: For 4 bytes.
        large_seconds: For 1 MiB.
    """

    small_seconds: float
    large_seconds: float

    @property
    def bytes_per_second(self) -> float:
        """Bandwidth, the latency of a message taken off."""
        extra = max(self.large_seconds - self.small_seconds, 1e-9)
        return (LARGE_BYTES - SMALL_BYTES) / extra

    def seconds(self, array_bytes: int) -> float:
        """Return about how long the sum of an array of this size takes."""
        return self.small_seconds + array_bytes / self.bytes_per_second


@dataclass(frozen=True)
class Answer:
    """What one task found.

    Attributes:
        rank: The task.
        host: Address under which Spark knows its executor.
        node: What its machine calls itself.
        fingerprint: Versions that a rank would train with there.
        java: Major version of the executor's Java; None when that cannot be told.
        has_tf_keras: Whether Python finds ``tf_keras``.
        stores: One per store of the question.
        listening: ``host:port`` where it listened; None when it could not.
        listen_error: Why it could not.
        unreachable: The tasks that it could not reach.
        pace: How fast the all-reduce was; None when it was not tried or failed.
        ring_error: Why it failed.
        free_bytes: Room in the folder for temporary files.
        scratch: That folder.
        gpus: Addresses of the GPUs that Spark gave to the task.
    """

    rank: int
    host: str
    node: str
    fingerprint: dict[str, str]
    java: str | None
    has_tf_keras: bool
    stores: tuple[StoreAnswer, ...]
    listening: str | None
    listen_error: str | None
    unreachable: tuple[Unreachable, ...]
    pace: Pace | None
    ring_error: str | None
    free_bytes: int
    scratch: str
    gpus: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where a task stands among the others.

    Attributes:
        rank: Its number.
        host: Its executor's address.
        gather: Takes a text, waits for all tasks, and returns everybody's in the order of their ranks.
        gpus: Addresses of its GPUs.
    """

    rank: int
    host: str
    gather: Callable[[str], list[str]]
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class Probe:
    """The body of a barrier task."""

    question: Question

    def __call__(self, _: Iterable[object]) -> Iterator[Answer]:
        """Answer."""
        context = BarrierTaskContext.get()
        rank = context.partitionId()
        # As MirroredStrategyRunner takes them: these are the addresses that training will use.
        host = context.getTaskInfos()[rank].address.rpartition(":")[0]
        gpus = context.resources().get("gpu")
        place = Place(rank, host, context.allGather, tuple(gpus.addresses) if gpus else ())
        yield probe(self.question, place)


def probe(question: Question, place: Place) -> Answer:
    """Look around from one task; all tasks of the job do it at the same time."""
    events = EventClient(question.events, place.rank, 0)
    # Said at three moments, so that the driver can tell the difference of the clocks from a slow connection.
    events.send({"event": "probe"})
    stores = tuple(_bounded_store(store, place.rank) for store in question.stores)
    listener, reserved, listen_error = _listen(place.host, question.token)
    unreachable: tuple[Unreachable, ...] = ()
    pace, ring_error = None, None
    try:
        address = f"{place.host}:{listener.port}" if listener else _NOWHERE
        # A port of its own: who is slow to stop listening would answer the ring's first call.
        ring_address = f"{place.host}:{reserved.getsockname()[1]}" if reserved else _NOWHERE
        said = place.gather(f"{address} {ring_address}")
        addresses, ring_addresses = zip(*(line.split() for line in said), strict=True)
        events.send({"event": "probe"})
        unreachable = reach_all(place.rank, addresses, question.token)
        # Nobody stops to listen before all have called, and all agree whether the ring can be closed.
        failures = place.gather("" if _NOWHERE not in addresses and not unreachable else "unreachable")
    finally:
        if listener:
            listener.close()
        if reserved:
            reserved.close()
    if not any(failures):
        pace, ring_error = _measure(place.rank, ring_addresses, question.token)
    events.send({"event": "probe"})
    events.close(REACH_SECONDS)
    scratch = tempfile.gettempdir()
    return Answer(
        rank=place.rank,
        host=place.host,
        node=socket.gethostname(),
        fingerprint=fingerprint(),
        java=executor_java(),
        has_tf_keras=importlib.util.find_spec("tf_keras") is not None,
        stores=stores,
        listening=address if listener else None,
        listen_error=listen_error,
        unreachable=unreachable,
        pace=pace,
        ring_error=ring_error,
        free_bytes=shutil.disk_usage(scratch).free,
        scratch=scratch,
        gpus=place.gpus,
    )


def fingerprint() -> dict[str, str]:
    """Return the versions that this process would train with."""
    found = {"python": ".".join(map(str, sys.version_info[:2]))}
    for package in (*SHARED_PACKAGES, "mirrorspark"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found | {"mirrorspark's code": _source_digest()}


def _source_digest() -> str:
    """Return eight hex digits that two places share when they have the same source of ours; UNKNOWN in an archive."""
    root = Path(mirrorspark.__file__).parent
    if not root.is_dir():
        return UNKNOWN
    digest = hashlib.sha256()
    # In a clone the folders are links, which a search from above would not follow.
    for folder in (root, *sorted(path for path in root.iterdir() if path.is_dir())):
        for file in sorted(folder.glob("*.py") if folder == root else folder.rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:8]


def executor_java() -> str | None:
    """Return the major version of the Java that this Python worker belongs to, or None."""
    for parent in psutil.Process().parents():
        try:
            if parent.name() == "java":
                release = Path(parent.exe()).resolve().parents[1] / "release"
                found = re.search(r'^JAVA_VERSION="(?:1\.)?(\d+)', release.read_text(encoding="utf-8"), re.MULTILINE)
                return found[1] if found else None
        except (psutil.Error, OSError):
            continue
    return None


def bounded(ask: Callable[[], str | None], seconds: float) -> str | None:
    """Return the answer, or that there was none in time: a store or database may let its callers wait for ever."""
    answers: list[str | None] = []
    thread = threading.Thread(target=lambda: answers.append(ask()), name="preflight", daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else f"did not answer within {seconds:g} s"


def store_problem(error: Exception) -> str:
    """Return in one line what a store said."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]} ..."


def _bounded_store(store: Store, rank: int) -> StoreAnswer:
    seen: list[bool] = []

    def ask() -> str | None:
        try:
            seen.append(store.sees("driver"))
            # A folder that is another one here is not to be filled with our files.
            if seen[0]:
                store.write(str(rank))
        except (OSError, StorageError, pa.ArrowException) as error:
            return store_problem(error)
        return None

    error = bounded(ask, STORE_SECONDS)
    return StoreAnswer(bool(seen and seen[0]), error)


class _Listener:
    """Answers who calls with the proof that it belongs to this probe."""

    def __init__(self, server: socket.socket, token: str) -> None:
        self._server = server
        self._token = token
        self.port = int(server.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, name="probe", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop to listen."""
        with contextlib.suppress(OSError):
            # Closing alone would not wake the thread that accepts.
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(REACH_SECONDS)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(REACH_SECONDS)
                nonce = connection.recv(_LINE_BYTES).decode("ascii", "replace")
                connection.sendall(proof(self._token, _ROLE, nonce, str(self.port)).encode())


def _listen(host: str, token: str) -> tuple[_Listener | None, socket.socket | None, str | None]:
    """Return who answers the other tasks, and a port that is kept free for the ring; else why there is none."""
    with contextlib.ExitStack() as opened:
        try:
            server = opened.enter_context(socket.create_server((host, 0), backlog=256))
            reserved = opened.enter_context(socket.socket(server.family))
            # The port is bound again when it is needed, and must not have to wait.
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind((host, 0))
        except OSError as error:
            # Python's own text repeats the address.
            return None, None, os.strerror(error.errno) if error.errno else str(error)
        opened.pop_all()
    return _Listener(server, token), reserved, None


def reach_all(rank: int, addresses: Sequence[str], token: str) -> tuple[Unreachable, ...]:
    """Return which of the other tasks cannot be reached; those that do not listen are left out."""
    others = [(peer, address) for peer, address in enumerate(addresses) if peer != rank and address != _NOWHERE]
    if not others:
        return ()
    with ThreadPoolExecutor(min(len(others), _DIALLING_THREADS)) as pool:
        errors = list(pool.map(lambda other: _reach(other[1], token), others))
    return tuple(
        Unreachable(peer, address, error) for (peer, address), error in zip(others, errors, strict=True) if error
    )


def _reach(address: str, token: str) -> str | None:
    host, port = split_address(address)
    nonce = secrets.token_hex(16)
    try:
        with socket.create_connection((host, port), REACH_SECONDS) as connection:
            connection.sendall(nonce.encode())
            answer = connection.makefile("r", encoding="ascii", errors="replace").read(_LINE_BYTES)
    except TimeoutError:
        return f"no answer within {REACH_SECONDS:g} s"
    except OSError as error:
        return error.strerror or str(error)
    if not is_proof(answer, token, _ROLE, nonce, str(port)):
        return "another program answers there"
    return None


def _measure(rank: int, addresses: Sequence[str], token: str) -> tuple[Pace | None, str | None]:
    """Sum arrays over all tasks; return the pace, or why it failed."""
    try:
        ring = Ring.connect(rank, addresses, token, timeout_seconds=RING_SECONDS)
        try:
            seconds = [_median_seconds(ring, size, len(addresses)) for size in (SMALL_BYTES, LARGE_BYTES)]
        finally:
            ring.close()
    except (OSError, RuntimeError, ArithmeticError) as error:
        return None, f"{type(error).__name__}: {error}"
    return Pace(*seconds), None


def _median_seconds(ring: Ring, message_bytes: int, workers: int) -> float:
    values = np.ones(message_bytes // 4, np.float32)

    def one() -> float:
        begin = time.perf_counter()
        total = ring.all_reduce(values)
        seconds = time.perf_counter() - begin
        if not (total == workers).all():
            raise ArithmeticError(f"{workers} times 1 made {total[total != workers][0]} in an array of {total.size}")
        return seconds

    first = statistics.median(one() for _ in range(_FEWEST_ROUNDS))
    # Everybody has to do as many rounds as the others, so they go by the mean of what all have seen.
    mean = float(ring.all_reduce(np.array([first], np.float32))[0]) / workers
    rounds = min(_MOST_ROUNDS, max(_FEWEST_ROUNDS, int(_MEASURED_SECONDS / max(mean, 1e-9))))
    return statistics.median(one() for _ in range(rounds))
