"""Asks the executors, in one barrier job, and judges what they answer; every fault names the worker and the cure."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from mirrorspark.data_pipelines.spark.errors import task_message
from mirrorspark.data_pipelines.spark.tasks import portable
from mirrorspark.storage.paths import StorageError, StoragePath
from mirrorspark.training.protocol.event_server import EventServer
from mirrorspark.training.readiness.checks import Check, warning
from mirrorspark.training.readiness.executor_probe import (
    STORE_SECONDS,
    UNKNOWN,
    Answer,
    Probe,
    Question,
    Store,
    bounded,
    executor_java,
    fingerprint,
    store_problem,
)
from mirrorspark.training.spark_session import DriverAddressError, bind_address, driver_address

# A job that has not answered by then is cancelled: executors whose Python does not start, or tasks that hang.
JOB_SECONDS = 60.0

# The first error of several is told by the ranks' clocks.
CLOCK_SECONDS = 1.0
LOW_DISK_BYTES = 1 << 30

_SHOWN_BYTES = (4_000_000, 100_000_000)


@dataclass(frozen=True)
class Heard:
    """What the driver heard over the event channel, and when.

    Attributes:
        address: Where it listened, as ``host:port``.
        clocks: Per rank, how far its clock is ahead of the driver's in seconds, as the fastest message has it.
    """

    address: str
    clocks: Mapping[int, float]


@dataclass(frozen=True)
class Found:
    """Everything that the checks on executors go by.

    Attributes:
        mine: Versions on the driver.
        java: Major version of the driver's Java.
        stores: What driver and executors must share, by the option that names it.
        unseen: Per rank and option, whether the driver could not read what the task had written.
        answers: In the order of the ranks.
        heard: Over the event channel.
    """

    mine: Mapping[str, str]
    java: str | None
    stores: Mapping[str, Store]
    unseen: frozenset[tuple[int, str]]
    answers: Sequence[Answer]
    heard: Heard


def check_executors(
    spark: SparkSession, workers: int, java: int | None, folders: Mapping[str, StoragePath], gpus_per_worker: int = 0
) -> list[Check]:
    """Ask one barrier task per worker, which is how training will run: a plain job may leave executors out.

    Args:
        spark: The session.
        workers: Barrier tasks.
        java: Major version of the driver's Java.
        folders: What driver and executors must share, by the option that names it (``--output``). Nothing is left
            behind in them.
        gpus_per_worker: GPUs that every task must have.
    """
    stores = {option: Store(folder, secrets.token_hex(8)) for option, folder in folders.items()}
    refused = {option: check for option, store in stores.items() if (check := _driver_writes(option, store))}
    checks = list(refused.values())
    written = {option: store for option, store in stores.items() if option not in refused}
    writers = ("driver", *map(str, range(workers)))
    clocks: dict[int, float] = {}
    try:
        with EventServer(bind_address(spark), _listener(clocks), driver_address(spark)) as server:
            question = Question(secrets.token_hex(16), server.address, tuple(written.values()))
            with _deadline(spark, JOB_SECONDS):
                tasks = spark.sparkContext.parallelize(range(workers), workers).barrier()
                answers: list[Answer] = tasks.mapPartitions(portable(Probe(question))).collect()
        unseen = frozenset(
            (answer.rank, option)
            for answer in answers
            for (option, store), theirs in zip(written.items(), answer.stores, strict=True)
            if theirs.sees_driver and theirs.error is None and not _sees(store, answer.rank)
        )
        heard = Heard(f"{server.address.host}:{server.address.port}", clocks)
    except (Py4JJavaError, PySparkException) as error:
        return [*checks, Check("executors", False, _job_problem(error))]
    except DriverAddressError as error:
        return [*checks, Check("events", False, str(error))]
    except OSError as error:
        return [
            *checks,
            Check(
                "events",
                False,
                f"the driver cannot listen on {bind_address(spark)} ({error.strerror}); set spark.driver.bindAddress "
                f"to an interface of this machine",
            ),
        ]
    finally:
        for store in written.values():
            bounded(partial(store.clear, writers), STORE_SECONDS)
    found = Found(fingerprint(), str(java) if java else executor_java(), written, unseen, answers, heard)
    return [*checks, *judge(found, gpus_per_worker)]


def check_store(option: str, folder: StoragePath) -> Check:
    """Say whether the driver, alone, can write to a store and read it again. Nothing is left behind in it.

    Args:
        option: Names the store (``--checkpoints``).
        folder: It exists where it is a local one.
    """
    store = Store(folder, secrets.token_hex(8))
    refused = _driver_writes(option, store)
    bounded(partial(store.clear, ("driver",)), STORE_SECONDS)
    return refused or Check(_store_name(option), True, f"written and read by the driver: {folder}")


def judge(found: Found, gpus_per_worker: int) -> list[Check]:
    """Return what the answers mean."""
    checks = [versions(found), *shared(found), ports(found.answers), reachability(found.answers)]
    checks += [event_channel(found), all_reduce(found.answers), disk(found.answers), clocks(found.heard)]
    return [check for check in (*checks, gpus(found.answers, gpus_per_worker)) if check is not None]


def versions(found: Found) -> Check:
    """Compare every executor's versions with the driver's."""
    for answer in found.answers:
        for name, here in found.mine.items():
            there = answer.fingerprint.get(name, "missing")
            if there != here and UNKNOWN not in (there, here):
                return Check(
                    "executors",
                    False,
                    f"{name} is {there} on {answer.node} and {here} on the driver; install the same version",
                )
        if not answer.has_tf_keras:
            return Check(
                "executors", False, f"{answer.node} cannot import tf_keras; install tf-keras in the executors' Python"
            )
    nodes = ", ".join(sorted({answer.node for answer in found.answers}))
    same = f"same Python and packages for all {len(found.answers)} workers, on {nodes}"
    for answer in found.answers:
        if answer.java and found.java and answer.java != found.java:
            return warning(
                "executors", f"{same}; but Java is {answer.java} on {answer.node} and {found.java} on the driver"
            )
    return Check("executors", True, same)


def shared(found: Found) -> list[Check]:
    """Say of each store whether all executors share it with the driver."""
    return [_shared(found, position, option) for position, option in enumerate(found.stores)]


def _shared(found: Found, position: int, option: str) -> Check:
    name, folder = _store_name(option), found.stores[option].folder
    for answer in found.answers:
        theirs = answer.stores[position]
        if theirs.error is not None:
            return Check(
                name,
                False,
                f"{_worker(answer)} cannot use {folder} ({theirs.error}); mend its permissions, credentials or network",
            )
        if not theirs.sees_driver:
            return Check(
                name,
                False,
                f"{_worker(answer)} does not see what the driver writes into {folder}; use storage that all nodes "
                f"share as {option}",
            )
        if (answer.rank, option) in found.unseen:
            return Check(
                name,
                False,
                f"the driver does not see what {_worker(answer)} writes into {folder}; use storage that all nodes "
                f"share as {option}",
            )
    return Check(name, True, f"written and read by the driver and all {len(found.answers)} workers: {folder}")


def ports(answers: Sequence[Answer]) -> Check:
    """Say whether every task can listen where the others will look for it."""
    for answer in answers:
        if answer.listening is None:
            return Check(
                "ports",
                False,
                f"worker {answer.rank} cannot listen on {answer.host}, the address that Spark knows its executor by "
                f"({answer.listen_error}); set SPARK_LOCAL_IP there to an interface of that machine",
            )
    return Check("ports", True, "every worker listens on a free port of its executor's address")


def reachability(answers: Sequence[Answer]) -> Check | None:
    """Name the pairs of tasks that cannot reach each other."""
    if len(answers) < 2:
        return None
    pairs = [
        f"{_worker(answer)} cannot reach worker {peer.rank} ({peer.address}): {peer.error}"
        for answer in answers
        for peer in answer.unreachable
    ]
    if pairs:
        more = f" and {len(pairs) - 3} more pairs" if len(pairs) > 3 else ""
        return Check(
            "reach",
            False,
            f"{'; '.join(pairs[:3])}{more}; open TCP between the executors, all ports from 1024: every worker listens "
            f"on one that the system picks",
        )
    if any(answer.listening is None for answer in answers):
        return None  # said already
    return Check("reach", True, f"every worker reaches every other one ({len(answers) * (len(answers) - 1)} ways)")


def event_channel(found: Found) -> Check:
    """Say which tasks the driver did not hear."""
    silent = [answer for answer in found.answers if answer.rank not in found.heard.clocks]
    if silent:
        names = ", ".join(map(_worker, silent[:3])) + (f" and {len(silent) - 3} more" if len(silent) > 3 else "")
        return Check(
            "events",
            False,
            f"{names} cannot reach the driver's event channel at {found.heard.address}; open TCP from the executors to "
            f"the driver, or set spark.driver.host to an address that they reach",
        )
    return Check("events", True, f"every worker reaches the driver at {found.heard.address.rpartition(':')[0]}")


def all_reduce(answers: Sequence[Answer]) -> Check | None:
    """Say how fast the tasks sum an array, which every optimizer step does."""
    if len(answers) < 2 or any(answer.unreachable or answer.listening is None for answer in answers):
        return None
    for answer in answers:
        if answer.pace is None:
            return Check(
                "all-reduce",
                False,
                f"{_worker(answer)} could not sum with the others ({answer.ring_error}); look for a firewall or proxy "
                f"between the executors that breaks connections",
            )
    slowest = max((answer.pace for answer in answers if answer.pace), key=lambda pace: pace.large_seconds)
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


def disk(answers: Sequence[Answer]) -> Check:
    """Say whether the executors have room for temporary files."""
    least = min(answers, key=lambda answer: answer.free_bytes)
    detail = f"{least.free_bytes / 1e9:,.1f} GB free in {least.scratch} of {least.node}"
    if least.free_bytes < LOW_DISK_BYTES:
        return warning("workers' disk", f"{detail}; make room, or set TMPDIR there to a larger disk")
    return Check("workers' disk", True, f"at least {detail}", values={"free_bytes": least.free_bytes})


def clocks(heard: Heard) -> Check | None:
    """Say how far the executors' clocks are from the driver's."""
    if not heard.clocks:
        return None
    rank, ahead = max(heard.clocks.items(), key=lambda entry: abs(entry[1]))
    if abs(ahead) > CLOCK_SECONDS:
        return warning(
            "clocks",
            f"worker {rank} is {abs(ahead):,.1f} s {'ahead of' if ahead > 0 else 'behind'} the driver, so the order of "
            f"errors and events is uncertain; let NTP set the clocks",
        )
    return Check(
        "clocks", True, f"within {max(1, round(abs(ahead) * 1e3)):,} ms of the driver's", values={"seconds": abs(ahead)}
    )


def gpus(answers: Sequence[Answer], per_worker: int) -> Check | None:
    """Say whether Spark gave every task its GPUs, where any are asked for."""
    if not per_worker:
        return None
    for answer in answers:
        if len(answer.gpus) != per_worker:
            return Check(
                "gpus",
                False,
                f"Spark gave {_worker(answer)} {len(answer.gpus)} GPUs, and --gpus-per-worker is {per_worker}; start "
                f"the session with spark.task.resource.gpu.amount={per_worker} and "
                f"spark.executor.resource.gpu.amount at least as much",
            )
    return Check("gpus", True, f"{per_worker} for every worker")


def _worker(answer: Answer) -> str:
    return f"worker {answer.rank} ({answer.host})"


def _store_name(option: str) -> str:
    # The driver alone has been asked for the output before.
    return "shared output" if option == "--output" else option.removeprefix("--")


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def _driver_writes(option: str, store: Store) -> Check | None:
    """Leave the driver's file for the tasks; return what is wrong when that cannot be."""

    def ask() -> str | None:
        try:
            store.write("driver")
            return None if store.sees("driver") else "what was written cannot be read again"
        except (OSError, StorageError, pa.ArrowException) as error:
            return store_problem(error)

    problem = bounded(ask, STORE_SECONDS)
    if problem is None:
        return None
    return Check(
        _store_name(option), False, f"{store.folder} cannot be written ({problem}); give another place as {option}"
    )


def _sees(store: Store, rank: int) -> bool:
    seen: list[bool] = []

    def ask() -> None:
        try:
            seen.append(store.sees(str(rank)))
        except (OSError, StorageError, pa.ArrowException):
            seen.append(False)

    bounded(ask, STORE_SECONDS)
    return bool(seen and seen[0])


def _listener(clocks: dict[int, float]) -> Callable[[Mapping[str, object]], None]:
    def hear(event: Mapping[str, object]) -> None:
        now = time.time()
        rank, ahead = int(str(event["rank"])), float(str(event["time"])) - now
        # The message was on its way for some time, which makes the sender seem behind; the fastest one tells most.
        clocks[rank] = max(ahead, clocks.get(rank, ahead))

    return hear


@contextmanager
def _deadline(spark: SparkSession, seconds: float) -> Iterator[None]:
    """Cancel the jobs that begin inside when they take longer."""
    context = spark.sparkContext
    tag = f"mirrorspark-probe-{secrets.token_hex(8)}"
    timer = threading.Timer(seconds, context.cancelJobsWithTag, (tag,))
    timer.daemon = True
    context.addJobTag(tag)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        context.removeJobTag(tag)


def _job_problem(error: Exception) -> str:
    message = task_message(error)
    if "cancelled" in message:
        return f"did not answer within {JOB_SECONDS:g} s; see their logs in Spark's UI"
    return f"cannot run our code: {message}"
