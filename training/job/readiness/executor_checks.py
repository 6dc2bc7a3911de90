"""Checks of the executors, from the answers of one barrier job; a failed check has the worker and the remedy."""

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
from pyspark.sql import SparkSession

from mirrorspark.data_pipelines.spark import portable
from mirrorspark.spark_session import SPARK_ERRORS, DriverAddressError, session_of, task_message
from mirrorspark.storage import StorageError, StoragePath
from mirrorspark.training.configuration import EventWay
from mirrorspark.training.job.readiness.checks import Check, failure, warning
from mirrorspark.training.job.readiness.executor_probe import (
    STORE_SECONDS,
    UNKNOWN,
    Probe,
    ProbeRequest,
    ProbeResult,
    Store,
    executor_java,
    fingerprint,
    store_problem,
    with_timeout,
)
from mirrorspark.training.protocol.messages import EventServer, FolderEventServer

# A job without an answer is then cancelled: its executors' Python does not start, or its tasks hang.
JOB_SECONDS = 60.0
# Executors that unpack an environment first, which may have gigabytes.
UNPACKING_SECONDS = 600.0

# The first of several errors is found by the ranks' clocks.
CLOCK_SECONDS = 1.0
LOW_DISK_BYTES = 1 << 30

_EVENTS = "events"
# Values of that check, for the ways that work.
_DIRECT, _BY_FILES = "direct_seconds", "folder_seconds"

_SHOWN_BYTES = (4_000_000, 100_000_000)


@dataclass(frozen=True)
class EventReport:
    """The messages over the event channel.

    Attributes:
        address: ``host:port`` of the driver; None if no worker was to try it.
        clocks: Seconds by which each rank's clock is ahead of the driver's, by its fastest message.
        clocks_by_files: The same by messages in files.
    """

    address: str | None
    clocks: Mapping[int, float]
    clocks_by_files: Mapping[int, float]


@dataclass(frozen=True)
class Findings:
    """The input of the checks.

    Attributes:
        java: Major version of the driver's Java.
        stores: Shared stores by their option (``--output``).
        unseen: Ranks and options whose file the driver could not read.
        answers: The tasks' answers, in the order of the ranks.
        events: The messages over the event channel.
    """

    driver_versions: Mapping[str, str]
    java: str | None
    stores: Mapping[str, Store]
    unseen: frozenset[tuple[int, str]]
    answers: Sequence[ProbeResult]
    events: EventReport


def check_executors(
    spark: SparkSession,
    workers: int,
    java: int | None,
    folders: Mapping[str, StoragePath],
    gpus_per_worker: int = 0,
    gpu_resource_name: str = "gpu",
    events: EventWay = "auto",
) -> list[Check]:
    """Check the executors by one barrier task per worker, as in training; a plain job may leave executors out.

    Args:
        spark: The session.
        workers: Number of barrier tasks.
        java: Major version of the driver's Java.
        folders: Shared folders by their option (``--output``). Nothing is left behind in them.
        gpus_per_worker: Required GPUs of every task.
        gpu_resource_name: Spark's name of them.
        events: Way of the workers' events.
    """
    session = session_of(spark)
    stores = {option: Store(folder, secrets.token_hex(8)) for option, folder in folders.items()}
    refused = {option: check for option, store in stores.items() if (check := _check_driver_file(option, store))}
    checks = list(refused.values())
    written = {option: store for option, store in stores.items() if option not in refused}
    writers = ("driver", *map(str, range(workers)))
    clocks: dict[int, float] = {}
    clocks_by_files: dict[int, float] = {}
    seconds = UNPACKING_SECONDS if session.setting("spark.archives") else JOB_SECONDS
    try:
        with contextlib.ExitStack() as servers:
            direct = by_files = None
            if events != "folder":
                server = EventServer(session.bind_address(), _listener(clocks), session.driver_address)
                direct = servers.enter_context(server).address
            if events != "direct" and "--output" in written:
                with contextlib.suppress(OSError):  # as the checks of the store say
                    folder = written["--output"].file("events").local
                    by_files = servers.enter_context(FolderEventServer(folder, _listener(clocks_by_files))).address
            stored = tuple(written.values())
            question = ProbeRequest(secrets.token_hex(16), direct, stored, gpu_resource_name, by_files)
            body = portable(Probe(question))
            answers: list[ProbeResult] = session.run_barrier_job(body, workers, timeout_seconds=seconds)
        unseen = frozenset(
            (answer.rank, option)
            for answer in answers
            for (option, store), theirs in zip(written.items(), answer.stores, strict=True)
            if theirs.reads_driver and theirs.error is None and not _sees(store, answer.rank)
        )
        report = EventReport(f"{direct.host}:{direct.port}" if direct else None, clocks, clocks_by_files)
    except SPARK_ERRORS as error:
        return [*checks, failure("executors", _job_problem(error, seconds))]
    except DriverAddressError as error:
        return [*checks, failure("events", str(error))]
    except OSError as error:
        # Python's own text repeats the address; errors of the resolver have negative numbers.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        return [
            *checks,
            failure(
                "events",
                f"the driver cannot listen on {session.bind_address()} ({reason}); set "
                f"spark.driver.bindAddress to an interface of this machine",
            ),
        ]
    finally:
        for store in written.values():
            with_timeout(partial(store.clear, writers), STORE_SECONDS)
    found = Findings(fingerprint(), str(java) if java else executor_java(), written, unseen, answers, report)
    return [*checks, *evaluate(found, gpus_per_worker, gpu_resource_name)]


def check_store(option: str, folder: StoragePath) -> Check:
    """Check that the driver alone can write to a store and read it again. Nothing is left behind in it.

    Args:
        option: Option of the store (``--checkpoints``).
        folder: The store; a local one exists.
    """
    store = Store(folder, secrets.token_hex(8))
    refused = _check_driver_file(option, store)
    with_timeout(partial(store.clear, ("driver",)), STORE_SECONDS)
    return refused or Check(_store_name(option), True, f"written and read by the driver: {folder}")


def evaluate(found: Findings, gpus_per_worker: int, gpu_resource_name: str = "gpu") -> list[Check]:
    """Return all checks of the findings."""
    checks = [
        check_versions(found),
        *check_shared_stores(found),
        check_ports(found.answers),
        check_reachability(found.answers),
    ]
    checks += [
        check_event_channel(found),
        check_all_reduce(found.answers),
        check_disk(found.answers),
        check_clocks(found),
        check_gpus(found.answers, gpus_per_worker, gpu_resource_name),
    ]
    return [check for check in checks if check is not None]


def check_versions(found: Findings) -> Check:
    """Check that every executor has the driver's versions."""
    for answer in found.answers:
        for name, here in found.driver_versions.items():
            there = answer.fingerprint.get(name, "missing")
            if there != here and UNKNOWN not in (there, here):
                return failure(
                    "executors",
                    f"{name} is {there} on {answer.node} and {here} on the driver; install the same version",
                )
        if not answer.has_tf_keras:
            return failure(
                "executors", f"{answer.node} cannot import tf_keras; install tf-keras in the executors' Python"
            )
    nodes = ", ".join(sorted({answer.node for answer in found.answers}))
    same = f"same Python and packages for all {len(found.answers)} workers, on {nodes}"
    for answer in found.answers:
        if answer.java and found.java and answer.java != found.java:
            return warning(
                "executors", f"{same}; but Java is {answer.java} on {answer.node} and {found.java} on the driver"
            )
    return Check("executors", True, same)


def check_shared_stores(found: Findings) -> list[Check]:
    """Check that all executors share each store with the driver."""
    return [_check_shared_store(found, position, option) for position, option in enumerate(found.stores)]


def _check_shared_store(found: Findings, position: int, option: str) -> Check:
    name, folder = _store_name(option), found.stores[option].folder
    for answer in found.answers:
        theirs = answer.stores[position]
        if theirs.error is not None:
            return failure(
                name,
                f"{_worker(answer)} cannot use {folder} ({theirs.error}); correct its permissions, credentials or "
                f"network",
            )
        if not theirs.reads_driver:
            return failure(
                name,
                f"{_worker(answer)} does not see the driver's files in {folder}; use storage that all nodes "
                f"share as {option}",
            )
        if (answer.rank, option) in found.unseen:
            return failure(
                name,
                f"the driver does not see the files of {_worker(answer)} in {folder}; use storage that all nodes "
                f"share as {option}",
            )
    return Check(name, True, f"written and read by the driver and all {len(found.answers)} workers: {folder}")


def check_ports(answers: Sequence[ProbeResult]) -> Check:
    """Check that every task can listen on its executor's address."""
    for answer in answers:
        if answer.listening is None:
            return failure(
                "ports",
                f"worker {answer.rank} cannot listen on {answer.host}, the address that Spark knows its executor by "
                f"({answer.listen_error}); set SPARK_LOCAL_IP there to an interface of that machine",
            )
    return Check("ports", True, "every worker listens on a free port of its executor's address")


def check_reachability(answers: Sequence[ProbeResult]) -> Check | None:
    """Check that all tasks reach each other."""
    if len(answers) < 2:
        return None
    pairs = [
        f"{_worker(answer)} cannot reach worker {peer.rank} ({peer.address}): {peer.error}"
        for answer in answers
        for peer in answer.unreachable
    ]
    if pairs:
        more = f" and {len(pairs) - 3} more pairs" if len(pairs) > 3 else ""
        return failure(
            "reach",
            f"{'; '.join(pairs[:3])}{more}; open TCP between the executors, all ports from 1024: every worker listens "
            f"on one that the system picks",
        )
    if any(answer.listening is None for answer in answers):
        return None  # The check of the ports has failed.
    return Check("reach", True, f"every worker reaches every other one ({len(answers) * (len(answers) - 1)} ways)")


def check_event_channel(found: Findings) -> Check:
    """Check that all tasks reach the driver's event channel: over TCP, or else by files."""
    address, answers = found.events.address, found.answers
    measured = {
        _DIRECT: [answer.event_seconds for answer in answers if answer.event_seconds],
        _BY_FILES: [answer.event_files_seconds for answer in answers if answer.event_files_seconds],
    }
    # The slowest worker's, of each way that all have.
    values = {way: max(seconds) for way, seconds in measured.items() if len(seconds) == len(answers)}
    files = f"files in the output folder{_cost(values, _BY_FILES)}"
    if _DIRECT in values and address is not None:
        also = f"; {files} would do, too" if _BY_FILES in values else ""
        detail = f"every worker reaches the driver at {address.rpartition(':')[0]}{_cost(values, _DIRECT)}{also}"
        return Check(_EVENTS, True, detail, values=values)
    silent = [answer for answer in answers if answer.event_seconds is None]
    names = ", ".join(map(_worker, silent[:3])) + (f" and {len(silent) - 3} more" if len(silent) > 3 else "")
    if _BY_FILES in values:
        why = f"{address} is out of reach of {names}" if address else "as asked by --events"
        return Check(_EVENTS, True, f"by {files}: {why}", values=values)
    if address is None:
        return failure("events", f"{names} and the driver exchange no {files}; use --events auto or direct")
    return failure(
        "events",
        f"{names} cannot reach the driver's event channel at {address}; open TCP from the executors to the driver, set "
        f"spark.driver.host to an address that they reach, or share the output folder with --events auto",
    )


def _cost(values: Mapping[str, float], way: str) -> str:
    return f" ({_duration(values[way])} for a message and its answer)" if way in values else ""


def events_by_files(way: EventWay, checks: Sequence[Check]) -> bool:
    """Return True if the events of a training go by files: as asked, or since its workers do not reach the driver.

    Args:
        way: The setting.
        checks: The passed checks of the cluster; a local session has none of the way.
    """
    found = [check for check in checks if check.name == _EVENTS]
    return way == "folder" or (way == "auto" and any(_DIRECT not in check.values for check in found))


def check_all_reduce(answers: Sequence[ProbeResult]) -> Check | None:
    """Check and time the all-reduce, which every optimizer step needs."""
    if len(answers) < 2 or any(answer.unreachable or answer.listening is None for answer in answers):
        return None
    for answer in answers:
        if answer.all_reduce_time is None:
            return failure(
                "all-reduce",
                f"{_worker(answer)} could not sum with the others ({answer.ring_error}); look for a firewall or proxy "
                f"between the executors that breaks connections",
            )
    slowest = max(
        (answer.all_reduce_time for answer in answers if answer.all_reduce_time),
        key=lambda all_reduce_time: all_reduce_time.large_seconds,
    )
    sizes = ", ".join(f"{size / 1e6:g} MB about {_duration(slowest.seconds(size))}" for size in _SHOWN_BYTES)
    values = {
        "latency_seconds": slowest.small_seconds,
        "mebibyte_seconds": slowest.large_seconds,
        "bytes_per_second": slowest.bytes_per_second,
    }
    detail = (
        f"{_duration(slowest.small_seconds)} for 4 B, {_duration(slowest.large_seconds)} for 1 MiB "
        f"({slowest.bytes_per_second / 1e6:,.0f} MB/s); of gradients, {sizes}"
    )
    return Check("all-reduce", True, detail, values=values)


def check_disk(answers: Sequence[ProbeResult]) -> Check:
    """Check the executors' free space for temporary files."""
    least = min(answers, key=lambda answer: answer.free_bytes)
    detail = f"{least.free_bytes / 1e9:,.1f} GB free in {least.scratch} of {least.node}"
    if least.free_bytes < LOW_DISK_BYTES:
        return warning("workers' disk", f"{detail}; make room, or set TMPDIR there to a larger disk")
    return Check("workers' disk", True, f"at least {detail}", values={"free_bytes": least.free_bytes})


def check_clocks(found: Findings) -> Check | None:
    """Check the executors' clocks against the driver's, as exactly as their messages allow it."""
    ahead = {answer.rank: bounds for answer in found.answers if (bounds := _ahead(answer, found.events)) is not None}
    if not ahead:
        return None
    rank, (least, most) = max(ahead.items(), key=lambda entry: max(entry[1][0], -entry[1][1]))
    if (certain := max(least, -most)) > CLOCK_SECONDS:
        return warning(
            "clocks",
            f"worker {rank} is at least {certain:,.1f} s {'ahead of' if least > 0 else 'behind'} the driver, so the "
            f"order of errors and events is uncertain; let NTP set the clocks",
        )
    within = max(abs(bound) for bounds in ahead.values() for bound in bounds)
    return Check(
        "clocks", True, f"within {max(1, round(within * 1e3)):,} ms of the driver's", values={"seconds": within}
    )


def _ahead(answer: ProbeResult, events: EventReport) -> tuple[float, float] | None:
    """Return the least and the most seconds by which a worker's clock is ahead; None if no message has come.

    The way of a message makes its sender's clock look late, and the fastest one takes no longer than a message with its
    answer.
    """
    ways = ((events.clocks, answer.event_seconds), (events.clocks_by_files, answer.event_files_seconds))
    for clocks, seconds in ways:
        if answer.rank in clocks and seconds is not None:
            return clocks[answer.rank], clocks[answer.rank] + seconds
    return None


def check_gpus(answers: Sequence[ProbeResult], per_worker: int, resource: str) -> Check | None:
    """Check that Spark gave every task its GPUs, if any are required."""
    if not per_worker:
        return None
    for answer in answers:
        if len(answer.gpus) != per_worker:
            return failure(
                "gpus",
                f"Spark gave {_worker(answer)} {len(answer.gpus)} GPUs, and --gpus-per-worker is {per_worker}; start "
                f"the session with spark.task.resource.{resource}.amount={per_worker} and "
                f"spark.executor.resource.{resource}.amount at least as much",
            )
    return Check("gpus", True, f"{per_worker} for every worker")


def _worker(answer: ProbeResult) -> str:
    return f"worker {answer.rank} ({answer.host})"


def _store_name(option: str) -> str:
    # The check "output" is the driver's.
    return "shared output" if option == "--output" else option.removeprefix("--")


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def _check_driver_file(option: str, store: Store) -> Check | None:
    """Write the driver's file for the tasks; return a failed check if that is impossible."""

    def ask() -> str | None:
        try:
            store.write("driver")
            return None if store.can_read("driver") else "the written file cannot be read again"
        except (OSError, StorageError, pa.ArrowException) as error:
            return store_problem(error)

    problem = with_timeout(ask, STORE_SECONDS)
    if problem is None:
        return None
    return failure(_store_name(option), f"{store.folder} cannot be written ({problem}); give another place as {option}")


def _sees(store: Store, rank: int) -> bool:
    seen: list[bool] = []

    def ask() -> None:
        try:
            seen.append(store.can_read(str(rank)))
        except (OSError, StorageError, pa.ArrowException):
            seen.append(False)

    with_timeout(ask, STORE_SECONDS)
    return bool(seen and seen[0])


def _listener(clocks: dict[int, float]) -> Callable[[Mapping[str, object]], None]:
    def on_event(event: Mapping[str, object]) -> None:
        now = time.time()
        rank, ahead = int(str(event["rank"])), float(str(event["time"])) - now
        # Transit makes the sender's clock look late, so the fastest message is the most exact.
        clocks[rank] = max(ahead, clocks.get(rank, ahead))

    return on_event


def _job_problem(error: Exception, seconds: float) -> str:
    message = task_message(error)
    if "cancelled" in message:
        return f"did not answer within {seconds:g} s; see their logs in Spark's UI"
    return f"cannot run our code: {message}"
