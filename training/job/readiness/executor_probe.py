"""The probe of one barrier task: its executor's versions, stores and ports, the other executors and the driver.

A top-level function of plain data: it pickles, and a test runs it in threads. A task never raises, since that would end
the whole barrier job without the other tasks' answers; errors are part of its answer.
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
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

import mirrorspark
from mirrorspark.distributions import library_version
from mirrorspark.spark_session import BarrierTask, barrier_task
from mirrorspark.storage import StorageError, StoragePath
from mirrorspark.training.protocol.messages import Admissions, EventAddress, EventClient, handshake
from mirrorspark.training.protocol.ring import Ring

# Packages whose version must be the same on the driver and on every executor.
SHARED_PACKAGES = ("tensorflow", "tf-keras", "pyspark", "pyarrow", "numpy")

# A version that cannot be determined is equal to any other.
UNKNOWN = "unknown"

REACH_SECONDS = 3.0
STORE_SECONDS = 15.0
RING_SECONDS = 10.0

SMALL_BYTES = 4
LARGE_BYTES = 1 << 20
_FEWEST_ROUNDS = 5
_MOST_ROUNDS = 50
# For either message size; a slow network gets fewer rounds.
_MEASURED_SECONDS = 1.0

# A large cluster has many pairs.
_CONNECTING_THREADS = 64
# All tasks call the others in the same order, so that many may call one at the same time.
_MOST_CALLERS = 256
_RETRY_SECONDS = 0.1
_LINE_BYTES = 256
# Characters of a store's error, whose libraries include whole stacks.
_LONGEST_REASON = 300
_ROLE = "probe"
# Address of a task that cannot listen.
_NO_ADDRESS = "-"


@dataclass(frozen=True)
class Store:
    """A folder that driver and executors must share.

    Attributes:
        folder: The probe's folder; a local one exists.
        token: Name and content of the probe's files: another machine may have a folder of the same name.
    """

    folder: StoragePath
    token: str

    def file(self, writer: str) -> StoragePath:
        """Return the file of ``writer``: ``driver``, or a task's rank."""
        return self.folder / f".mirrorspark-probe-{self.token}-{writer}"

    def write(self, writer: str) -> None:
        """Write the file; a missing local folder is not created.

        Raises:
            OSError: The store refuses, or the folder is missing.
            StorageError: The store cannot be opened.
        """
        file = self.file(writer)
        (file.parent.kept_within() / file.name).write_bytes(self.token.encode())

    def can_read(self, writer: str) -> bool:
        """Return True if the file of ``writer`` can be read here.

        Raises:
            OSError: The store refuses.
            StorageError: The store cannot be opened.
        """
        try:
            return self.file(writer).read_bytes() == self.token.encode()
        except FileNotFoundError:
            return False

    def clear(self, writers: Iterable[str]) -> None:
        """Remove the files as possible."""
        for writer in writers:
            with contextlib.suppress(OSError, StorageError, pa.ArrowException):
                self.file(writer).delete()


@dataclass(frozen=True)
class ProbeRequest:
    """The driver's request to every task.

    Attributes:
        token: Authenticates the tasks of this probe.
        events: Address of the driver's event channel; None if it is not tried.
        stores: Folders that must be shared.
        gpu_resource_name: Spark's name of the GPUs.
        event_files: Address of the event channel by files; None if it is not tried.
    """

    token: str = field(repr=False)
    events: EventAddress | None
    stores: tuple[Store, ...] = ()
    gpu_resource_name: str = "gpu"
    event_files: EventAddress | None = None


@dataclass(frozen=True)
class StoreResult:
    """The result for one store.

    Attributes:
        reads_driver: True if the driver's file can be read.
        error: Why reading or writing failed.
    """

    reads_driver: bool
    error: str | None = None


@dataclass(frozen=True)
class Unreachable:
    """Another task that could not be reached."""

    rank: int
    address: str
    error: str


@dataclass(frozen=True)
class AllReduceTime:
    """Duration of an all-reduce over all tasks, of 4 bytes and of 1 MiB: medians of some tens of rounds."""

    small_seconds: float
    large_seconds: float

    @property
    def bytes_per_second(self) -> float:
        """Bandwidth without the latency of a message."""
        extra = max(self.large_seconds - self.small_seconds, 1e-9)
        return (LARGE_BYTES - SMALL_BYTES) / extra

    def seconds(self, array_bytes: int) -> float:
        """Return the estimated duration for an array of this size."""
        return self.small_seconds + array_bytes / self.bytes_per_second


@dataclass(frozen=True)
class ProbeResult:
    """The result of one task.

    Attributes:
        rank: The task.
        host: Spark's address of the executor.
        node: Host name of the machine.
        fingerprint: Versions of Python, the shared packages and our source.
        java: Major version of the executor's Java; None if unknown.
        has_tf_keras: True if Python finds ``tf_keras``.
        stores: One per store of the question.
        listening: ``host:port`` of the task; None if it cannot listen.
        listen_error: Why it cannot listen.
        unreachable: The tasks that it cannot reach.
        all_reduce_time: Duration of the all-reduce; None if it was skipped or failed.
        ring_error: Why the all-reduce failed.
        free_bytes: Free space in the folder for temporary files.
        scratch: That folder.
        gpus: Addresses of the task's GPUs.
        event_seconds: Time of a message to the driver and its answer; None if it is out of reach, or was not tried.
        event_files_seconds: The same by files.
    """

    rank: int
    host: str
    node: str
    fingerprint: dict[str, str]
    java: str | None
    has_tf_keras: bool
    stores: tuple[StoreResult, ...]
    listening: str | None
    listen_error: str | None
    unreachable: tuple[Unreachable, ...]
    all_reduce_time: AllReduceTime | None
    ring_error: str | None
    free_bytes: int
    scratch: str
    gpus: tuple[str, ...]
    event_seconds: float | None = None
    event_files_seconds: float | None = None


@dataclass(frozen=True)
class Probe:
    """The body of a barrier task."""

    question: ProbeRequest

    def __call__(self, _: Iterable[object]) -> Iterator[ProbeResult]:
        """Yield the answer of this task."""
        place = barrier_task(self.question.gpu_resource_name)
        if place is None:
            raise RuntimeError("the probe runs in tasks of a barrier job alone; start it with run_barrier_job")
        yield probe(self.question, place)


def probe(question: ProbeRequest, place: BarrierTask) -> ProbeResult:
    """Return the answer of one task; all tasks of the job run it at the same time."""
    ways = (question.events, question.event_files)
    clients = [None if way is None else EventClient(way, place.rank, 0) for way in ways]
    # Sent several times, so that the driver can separate the clocks' difference from a slow connection.
    _send(clients)
    stores = tuple(_check_store(store, place.rank) for store in question.stores)
    listener, reserved, listen_error = _listen(place.host, question.token)
    unreachable: tuple[Unreachable, ...] = ()
    all_reduce_time, ring_error = None, None
    try:
        address = f"{place.host}:{listener.port}" if listener else _NO_ADDRESS
        # A separate port, since a listener that is slow to close would accept the ring's first connection.
        ring_address = f"{place.host}:{reserved.getsockname()[1]}" if reserved else _NO_ADDRESS
        gathered = place.gather(f"{address} {ring_address}")
        addresses, ring_addresses = zip(*(line.split() for line in gathered), strict=True)
        _send(clients)
        unreachable = reach_all(place.rank, addresses, question.token)
        # All tasks listen until all have connected, and all agree whether a ring can be built.
        failures = place.gather("" if _NO_ADDRESS not in addresses and not unreachable else "unreachable")
    finally:
        if listener:
            listener.end()
        if reserved:
            reserved.close()
    if not any(failures):
        all_reduce_time, ring_error = _measure(place.rank, ring_addresses, question.token)
    event_seconds, event_files_seconds = map(_round_trip, clients)
    scratch = tempfile.gettempdir()
    return ProbeResult(
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
        all_reduce_time=all_reduce_time,
        ring_error=ring_error,
        free_bytes=shutil.disk_usage(scratch).free,
        scratch=scratch,
        gpus=place.gpus,
        event_seconds=event_seconds,
        event_files_seconds=event_files_seconds,
    )


def _send(clients: Iterable[EventClient | None]) -> None:
    for client in clients:
        if client is not None:
            client.send({"event": "probe"})


def _round_trip(client: EventClient | None) -> float | None:
    """Return the seconds until the driver has acknowledged a message; None if it is out of reach."""
    if client is None:
        return None
    is_connected = client.flush(REACH_SECONDS)
    begin = time.monotonic()
    client.send({"event": "probe"})
    seconds = time.monotonic() - begin if is_connected and client.flush(REACH_SECONDS) else None
    client.close(REACH_SECONDS if seconds is not None else 0)
    return seconds


def fingerprint() -> dict[str, str]:
    """Return the versions of Python, the shared packages and our source in this process."""
    found = {"python": ".".join(map(str, sys.version_info[:2]))}
    for package in (*SHARED_PACKAGES, "mirrorspark"):
        try:
            found[package] = library_version(package)
        except PackageNotFoundError:
            # PySpark is there: as its client alone, which may be of an earlier version than the server.
            found[package] = UNKNOWN if package == "pyspark" else "missing"
    return found | {"mirrorspark's code": _source_digest()}


def _source_digest() -> str:
    """Return eight hex digits of our source, whose version may be equal for different states; UNKNOWN in an archive."""
    root = Path(mirrorspark.__file__).parent
    if not root.is_dir():
        return UNKNOWN
    digest = hashlib.sha256()
    # In a clone the folders are links, which rglob does not follow.
    for folder in (root, *sorted(path for path in root.iterdir() if path.is_dir())):
        for file in sorted(folder.glob("*.py") if folder == root else folder.rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:8]


def executor_java() -> str | None:
    """Return the major version of this Python worker's Java, or None."""
    for parent in psutil.Process().parents():
        try:
            if parent.name() == "java":
                release = Path(parent.exe()).resolve().parents[1] / "release"
                found = re.search(r'^JAVA_VERSION="(?:1\.)?(\d+)', release.read_text(encoding="utf-8"), re.MULTILINE)
                return found[1] if found else None
        except (psutil.Error, OSError):
            continue
    return None


def with_timeout(check: Callable[[], str | None], seconds: float) -> str | None:
    """Return the problem that ``check`` finds, or that it timed out: a store or database may block for ever."""
    problems: list[str | None] = []
    thread = threading.Thread(target=lambda: problems.append(check()), name="preflight", daemon=True)
    thread.start()
    thread.join(seconds)
    return problems[0] if problems else f"did not answer within {seconds:g} s"


def store_problem(error: Exception) -> str:
    """Return a store's error in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]} ..."


def _check_store(store: Store, rank: int) -> StoreResult:
    seen: list[bool] = []

    def check() -> str | None:
        try:
            seen.append(store.can_read("driver"))
            # Otherwise the folder is another one here, in which we write nothing.
            if seen[0]:
                store.write(str(rank))
        except (OSError, StorageError, pa.ArrowException) as error:
            return store_problem(error)
        return None

    error = with_timeout(check, STORE_SECONDS)
    return StoreResult(bool(seen and seen[0]), error)


def _listen(host: str, token: str) -> tuple[Admissions[None] | None, socket.socket | None, str | None]:
    """Return a listener for the other tasks and a reserved port for the ring, or why this failed.

    The listener proves to each caller that it belongs to this probe.
    """
    with contextlib.ExitStack() as opened:
        try:
            server = opened.enter_context(socket.create_server((host, 0), backlog=_MOST_CALLERS))
            reserved = opened.enter_context(socket.socket(server.family))
            # So that the ring can bind the port at once.
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind((host, 0))
            port = str(server.getsockname()[1])

            def prove(caller: socket.socket) -> None:
                with caller:
                    caller.settimeout(REACH_SECONDS)
                    nonce = caller.recv(_LINE_BYTES).decode("ascii", "replace")
                    caller.sendall(handshake.proof(token, _ROLE, nonce, port).encode())

            listener: Admissions[None] = Admissions(
                server, prove, "a connection of the probe", most_unproven=_MOST_CALLERS
            )
        except (OSError, RuntimeError) as error:
            # Python's own text repeats the address.
            number = getattr(error, "errno", None) or 0
            return None, None, os.strerror(number) if number > 0 else str(error)
        opened.pop_all()
    return listener, reserved, None


def reach_all(rank: int, addresses: Sequence[str], token: str) -> tuple[Unreachable, ...]:
    """Return the other tasks that listen and cannot be reached."""
    others = [(peer, address) for peer, address in enumerate(addresses) if peer != rank and address != _NO_ADDRESS]
    if not others:
        return ()
    with ThreadPoolExecutor(min(len(others), _CONNECTING_THREADS)) as pool:
        errors = list(pool.map(lambda other: _reach(other[1], token), others))
    return tuple(
        Unreachable(peer, address, error) for (peer, address), error in zip(others, errors, strict=True) if error
    )


def _reach(address: str, token: str) -> str | None:
    deadline = time.monotonic() + REACH_SECONDS
    while True:
        try:
            return _call(address, token, max(_RETRY_SECONDS, deadline - time.monotonic()))
        except TimeoutError:
            return f"no answer within {REACH_SECONDS:g} s"
        except (ConnectionResetError, BrokenPipeError):
            # A listener with too many callers disconnects the oldest.
            if time.monotonic() > deadline:
                return "it closes the connection without an answer"
        except OSError as error:
            return error.strerror or str(error)
        time.sleep(_RETRY_SECONDS)


def _call(address: str, token: str, seconds: float) -> str | None:
    host, port = handshake.split_address(address)
    nonce = secrets.token_hex(16)
    with socket.create_connection((host, port), seconds) as connection:
        connection.sendall(nonce.encode())
        answer = connection.makefile("r", encoding="ascii", errors="replace").read(_LINE_BYTES)
    if not answer:
        raise ConnectionResetError
    return None if handshake.is_proof(answer, token, _ROLE, nonce, str(port)) else "another program answers there"


def _measure(rank: int, addresses: Sequence[str], token: str) -> tuple[AllReduceTime | None, str | None]:
    """Measure all-reduces over all tasks; return the durations, or why this failed."""
    try:
        ring = Ring.connect(rank, addresses, token, timeout_seconds=RING_SECONDS)
        try:
            seconds = [_median_seconds(ring, size, len(addresses)) for size in (SMALL_BYTES, LARGE_BYTES)]
        finally:
            ring.close()
    except (OSError, RuntimeError, ArithmeticError) as error:
        return None, f"{type(error).__name__}: {error}"
    return AllReduceTime(*seconds), None


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
    # All tasks need the same number of rounds, so it follows from the mean of their measurements.
    mean = float(ring.all_reduce(np.array([first], np.float32))[0]) / workers
    rounds = min(_MOST_ROUNDS, max(_FEWEST_ROUNDS, int(_MEASURED_SECONDS / max(mean, 1e-9))))
    return statistics.median(one() for _ in range(rounds))
