"""T6: every I/O call of a write fails once, and the power goes between any two: old or new stays, and all goes on."""

import contextlib
import os
import re
import resource
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from mirrorspark.callbacks.checkpoints import commit, retention
from mirrorspark.callbacks.checkpoints.fence import Permit, fence
from mirrorspark.callbacks.checkpoints.store import Location
from mirrorspark.data_pipelines.spark import tasks
from mirrorspark.scoring.files import score_files
from mirrorspark.scoring.precomputed.precompute import precompute
from mirrorspark.scoring.precomputed.store import PrecomputedScores
from mirrorspark.storage import paths
from mirrorspark.storage.event_file import EventFile, EventTail
from mirrorspark.storage.host_cache import HostCache
from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish.recovery import recover
from mirrorspark.training.records.run_folder import RunFolder
from mirrorspark.training.records.run_state import read_state
from tests.faults.io_failures import (
    CHANGES,
    READS,
    Disk,
    Fault,
    PowerCutError,
    Survival,
    ThrottledStore,
    failing,
    power_cut,
)
from tests.unit.callbacks.committed_files import publish_files
from tests.unit.scoring.exported_models import FLIGHTS, export_flights
from tests.unit.storage.writes import FakeTime, begin, in_place, listed, write, written

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]

OLD = {"part-0": b"old", "day=1/part-1": b"old"}
NEW = {"part-2": b"new", "day=2/part-3": b"new", "_notes.json": b"{}"}
KEY = "model-0123456789ab"


@dataclass(frozen=True)
class Operation:
    """Something that changes files, told by what it leads to.

    Attributes:
        prepare: Makes the former state below a place.
        act: Makes the new one; may be called again after a failure.
        look: Returns the state that readers find.
        recover: What the next writer does first, where readers may find nothing until then.
        is_durable: Whether the new state survives a power cut once ``act`` has returned. Without it, as with Spark's
            own writers, the system has the files but perhaps not yet the disk.
        is_repeatable: Whether ``act`` may be called again after it has succeeded.
    """

    prepare: Callable[[Any], None]
    act: Callable[[Any], None]
    look: Callable[[Any], object]
    recover: Callable[[Any], None] = lambda place: None
    is_durable: bool = False
    is_repeatable: bool = True


def write_folder(place: Any, mode: str, content: dict[str, bytes]) -> None:
    """Write as the product does: what cannot be published is taken back."""
    target = StoragePath.of(place) / "t"
    job = begin(target, mode)
    try:
        job.publish(write(job, content))
    except BaseException:
        job.abort()
        raise


def written_folder(mode: str, former: dict[str, bytes]) -> Operation:
    return Operation(
        prepare=lambda place: written(StoragePath.of(place) / "t", "error", former) if former else None,
        act=lambda place: write_folder(place, mode, NEW),
        look=lambda place: listed(StoragePath.of(place) / "t"),
        recover=lambda place: recover(StoragePath.of(place) / "t", timing=FakeTime().timing),
        is_durable=mode == "overwrite",
        is_repeatable=mode == "overwrite",
    )


def checkpoint(place: Location, step: int, attempt: int) -> None:
    store = StoragePath.of(place) / "store"
    held = fence(store, attempt)
    permit = Permit(store, attempt, held, held.id)
    files = {"ckpt.index": f"index {step}", "ckpt.data-00000-of-00001": "weights" * 100, commit.STATE: "{}"}
    retention.clean_staging(store, held.id)
    published = publish_files(store, files, step=step, epoch=step // 10, permit=permit)
    retention.prune(store, keep_last=1, known_good=published)


def newest_checkpoint(place: Location) -> object:
    found = commit.latest_committed(StoragePath.of(place) / "store")
    return None if found is None else (found.step, found.content("ckpt.index"))


def run_folder(place: Path) -> RunFolder:
    (place / "run").mkdir(exist_ok=True)
    return RunFolder(place / "run", "0123456789ab-fedcba9876543210", None)


def run_status(place: Path) -> str | None:
    state = read_state(place / "run")
    return None if state is None else state.status


def store_of_rows(place: Path, score: float, mode: str) -> None:
    pq.write_table(pa.table({"id": [1, 2], "score": [score] * 2}), place.parent / "rows.parquet")
    precompute(place.parent / "rows.parquet", place / "rows.db", key="id", mode=mode)


def row_in_store(place: Path) -> object:
    with PrecomputedScores.open(place / "rows.db") as scores:
        scores.check()
        return scores.get(1)


def cache_entry(place: Path) -> None:
    cache = HostCache(place / "cache")
    with cache.filling(KEY, "a model") as arriving:
        (arriving / "weights").write_bytes(b"weights")
        cache.publish(KEY, arriving, replace=True).release()


def cached(place: Path) -> object:
    path = place / "cache" / "entries" / KEY
    return {file.name: file.read_bytes() for file in path.iterdir()} if path.is_dir() else None


LOCAL: dict[str, Operation] = {
    "a new folder": written_folder("error", {}),
    "an overwrite": written_folder("overwrite", OLD),
    "an append": written_folder("append", OLD),
    "an overwrite in place": written_folder("overwrite", OLD),
    "a checkpoint": Operation(
        lambda place: checkpoint(place, 10, 1),
        lambda place: checkpoint(place, 20, 2),
        newest_checkpoint,
        recover=lambda place: retention.clean_staging(StoragePath.of(place) / "store") and None,
        is_durable=True,
    ),
    "the state of a run": Operation(
        lambda place: run_folder(place).save_state("failed", None),
        lambda place: run_folder(place).save_state("finished", "1"),
        run_status,
    ),
    "a store of rows": Operation(
        lambda place: store_of_rows(place, 1.0, "error"),
        lambda place: store_of_rows(place, 2.0, "overwrite"),
        row_in_store,
        is_durable=True,
    ),
    "an entry of a cache": Operation(lambda place: None, cache_entry, cached),
}
SCORES = "an append of scores"
NAMES = [*LOCAL, SCORES]


@pytest.fixture(scope="module")
def operations(spark: "SparkSession", tmp_path_factory: pytest.TempPathFactory) -> dict[str, Operation]:
    """Return the operations by name, with those that need a model."""
    folder = tmp_path_factory.mktemp("scored")
    model = export_flights(folder / "model", 1)
    pq.write_table(FLIGHTS, folder / "flights.parquet")

    def score(place: Any, mode: str) -> None:
        output = StoragePath.of(place) / "t"
        score_files(spark, folder / "flights.parquet", model, output, keys="flight_id", mode=mode)

    def keys(place: Any) -> object:
        parts = [pq.read_table(pa.BufferReader(content)) for content in listed(StoragePath.of(place) / "t").values()]
        return [part["flight_id"].to_pylist() for part in parts]

    return LOCAL | {
        SCORES: Operation(
            prepare=lambda place: score(place, "error"),
            act=lambda place: score(place, "append"),
            look=keys,
            recover=LOCAL["an append"].recover,
            is_repeatable=False,
        )
    }


def run_here(table: "DataFrame", job: object, body: Callable[[Any], Iterator[pa.RecordBatch]]) -> list[dict[str, Any]]:
    """Run the body of all tasks in this process, where calls can fail, instead of in Spark's."""
    return [row for batch in body(table.toArrow().to_batches()) for row in batch.to_pylist()]


@pytest.fixture(autouse=True)
def tasks_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_task_rows", run_here)


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files: the calls in it are not those of the folder under test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    end_process()


def end_process() -> None:
    """Do what the kernel does when a process ends: its threads end, and its locks are free."""
    for thread in threading.enumerate():
        if thread.name == "mirrorspark-lease":
            thread._target.__self__._over.set()  # type: ignore[attr-defined]
            thread.join(10)
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if descriptor.readlink().name.startswith("mirrorspark-lease-"):
                os.close(int(descriptor.name))


def tree(place: Path) -> list[str]:
    """Return the names of all files below a folder but the attempts' fences, without what is random in them."""
    names = (path.relative_to(place).as_posix() for path in place.rglob("*") if not path.is_dir())
    passing = ("cache/processes", "store/FENCE-")
    return sorted(re.sub(r"[0-9a-f]{8,}", "#", name) for name in names if not name.startswith(passing))


def without_success(names: list[str], place: Path) -> list[str]:
    """Return the names of files without Spark's mark of a whole write, which may be missing after a full disk."""
    return names if (place / "t" / "_SUCCESS").exists() else [name for name in names if name != "t/_SUCCESS"]


def fresh(place: Path, operation: Operation) -> None:
    end_process()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    operation.prepare(place)


def outcomes(place: Path, operation: Operation) -> tuple[object, object, list[str], list[int]]:
    """Return the old state, the new one, the names of files then, and the sizes of the files that were written."""
    fresh(place, operation)
    old = operation.look(place)
    sizes: list[int] = []
    with failing(place, 0):
        operation.act(place)
    sizes = sorted({path.stat().st_size for path in place.rglob("*") if path.is_file()})
    return old, operation.look(place), tree(place), sizes


@pytest.mark.parametrize("name", NAMES)
def test_each_call_fails_once(
    name: str, operations: dict[str, Operation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "in place" in name:
        in_place(monkeypatch)
    operation, place = operations[name], tmp_path / "place"
    old, new, names, _ = outcomes(place, operation)
    assert old != new
    number, failures = 0, 0
    while True:
        number += 1
        fresh(place, operation)
        with failing(place, number) as calls:
            error: Exception | None = None
            try:
                operation.act(place)
            except Exception as raised:
                error = raised
        if calls.count < number:
            break
        told = f"call {number}: {error!r}"
        if error is not None:
            failures += 1
            assert isinstance(error, OSError), told
            operation.recover(place)
            # Who is told of a failure writes again: an append would then be there twice.
            assert operation.look(place) in ((old,) if name.startswith("an append") else (old, new)), told
        else:
            assert operation.look(place) == new, told
        if operation.look(place) != new or (error is not None and operation.is_repeatable):
            operation.act(place)
        assert operation.look(place) == new, told
        operation.recover(place)
        assert tree(place) == without_success(names, place), told
    assert number > 3
    assert failures > 0
    print(f"{name}: {number - 1} calls failed, {failures} of them ended the operation")


@pytest.mark.parametrize("name", NAMES)
def test_files_that_cannot_grow_any_further(
    name: str, operations: dict[str, Operation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write of every file fails, at its first byte and at its last, whichever library makes it."""
    if "in place" in name:
        in_place(monkeypatch)
    operation, place = operations[name], tmp_path / "place"
    old, new, names, sizes = outcomes(place, operation)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in sorted({0} | {size - 1 for size in sizes if size}):
        fresh(place, operation)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        error: Exception | None = None
        try:
            operation.act(place)
        except Exception as raised:
            error = raised
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        told = f"{limit} bytes: {error!r}"
        if error is not None:
            assert isinstance(error, OSError), told
            operation.recover(place)
            assert operation.look(place) == old, told
            operation.act(place)
        assert operation.look(place) == new, told
        operation.recover(place)
        assert tree(place) == names, told


@pytest.mark.parametrize("survival", ["what was flushed", "all names, but no content that was not flushed"])
# The cache looks for damage when it is read. Scores that are appended are not flushed, as Spark's are not: files of new
# names may be empty then, which readers pass over.
@pytest.mark.parametrize("name", [name for name in LOCAL if name != "an entry of a cache"])
def test_the_power_goes_before_each_call(
    name: str, survival: Survival, operations: dict[str, Operation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "in place" in name:
        in_place(monkeypatch)
    operation, place = operations[name], tmp_path / "place"
    old, new, names, _ = outcomes(place, operation)
    number, seen = 0, set()
    while True:
        number += 1
        fresh(place, operation)
        disk = Disk(place)
        disk.flush_all()
        with power_cut(disk, number) as calls:
            try:
                operation.act(place)
            except PowerCutError:
                has_returned = False
            else:
                has_returned = True
                disk.cut()
        end_process()
        disk.restart(survival)
        operation.recover(place)
        found = operation.look(place)
        assert found in (old, new), f"before call {number}"
        if has_returned and operation.is_durable:
            assert found == new, "what was reported as written is gone"
        seen.add(found == new)
        if found != new or operation.is_repeatable:
            operation.act(place)
        operation.recover(place)
        assert operation.look(place) == new
        assert tree(place) == names, f"before call {number}"
        if has_returned:
            assert calls.count < number
            break
    assert False in seen
    print(f"{name}: {number} power cuts")


def test_events_that_could_not_be_written_are_told_and_the_next_are_whole(tmp_path: Path) -> None:
    number = 0
    while True:
        number += 1
        path = tmp_path / "place" / f"{number}.jsonl"
        with failing(tmp_path / "place", number) as calls:
            events = EventFile(path)
            for epoch in range(4):
                events.append({"event": "epoch_end", "epoch": epoch})
        tail, found = EventTail(events), []
        while (event := tail.read()) is not None:
            found.append(event["epoch"])
        tail.close()
        events.close()
        assert sorted(found) == [0, 1, 2, 3]
        if calls.count < number:
            break
    assert number > 4


@pytest.fixture(scope="module")
def throttled() -> Iterator[tuple[str, ThrottledStore]]:
    """Yield ``BUCKET?OPTIONS`` as the fixture ``s3_bucket`` does, and what makes its requests fail."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    assert server._server is not None
    server._server.app = store = ThrottledStore(server._server.app)
    _, port = server.get_host_and_port()
    options = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    system, _ = fs.FileSystem.from_uri(f"s3://throttled?{options}&allow_bucket_creation=true")
    system.create_dir("throttled")
    yield f"throttled?{options}", store
    server.stop()


REMOTE = ["an overwrite", "an append", "a checkpoint", SCORES]


@pytest.mark.parametrize(
    ("is_gone", "fault", "methods"),
    [
        (False, "refused", CHANGES),
        (False, "done, but the answer is lost", CHANGES),
        (False, "half of the body arrives", CHANGES),
        (False, "no answer", CHANGES),
        (False, "refused", READS),
        (True, "refused", CHANGES),
    ],
    ids=["one request", "one answer", "half a body", "one time-out", "one read", "all from then on"],
)
@pytest.mark.parametrize("name", REMOTE)
def test_a_store_fails_at_a_request(
    name: str,
    is_gone: bool,
    fault: Fault,
    methods: tuple[str, ...],
    operations: dict[str, Operation],
    throttled: tuple[str, ThrottledStore],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An object store that throttles, loses an answer or half of a body, or is silent or gone and comes back."""
    bucket, store = throttled
    bucket, _, options = bucket.partition("?")
    # Arrow tries a request to a store that is gone for six seconds.
    retries = fs.AwsStandardS3RetryStrategy(max_attempts=1 if is_gone else 3)
    address = options.partition("endpoint_override=")[2].partition("&")[0]
    system = fs.S3FileSystem(
        endpoint_override=address, scheme="http", region="us-east-1", retry_strategy=retries, request_timeout=1
    )
    monkeypatch.setattr(paths, "_arrow_store", lambda scheme, path, query: (system, path))
    operation, number, ended = operations[name], 0, 0

    def place() -> str:
        return f"s3://{bucket}/{re.sub('[^a-z]', '-', name)}-{is_gone}-{len(fault)}-{len(methods)}/{number}?{options}"

    operation.prepare(place())
    old = operation.look(place())
    operation.act(place())
    new = operation.look(place())
    names = remote_tree(place())
    while True:
        number += 1
        operation.prepare(place())
        error: Exception | None = None
        with store.failing(number, float("inf") if is_gone else number, fault, methods):
            try:
                operation.act(place())
            except Exception as raised:
                error = raised
            is_over = store.count < number
        told = f"request {number}: {error!r}"
        end_process()
        if error is not None:
            ended += 1
            assert isinstance(error, OSError), told
            operation.recover(place())
            assert operation.look(place()) in (old, new), told
        else:
            assert operation.look(place()) == new, told
        if operation.look(place()) != new or (error is not None and operation.is_repeatable):
            operation.act(place())
        operation.recover(place())
        assert operation.look(place()) == new, told
        assert remote_tree(place()) == names, told
        if is_over:
            break
    assert number > 3
    print(f"{name}, {fault}, gone: {is_gone}: {number - 1} requests failed, {ended} of them ended the operation")


def remote_tree(place: str) -> list[str]:
    root = StoragePath.of(place)
    names = (file.path.relative_to(root) for file in root.files())
    return sorted(re.sub(r"[0-9a-f]{8,}", "#", name) for name in names if not name.startswith("store/FENCE-"))
