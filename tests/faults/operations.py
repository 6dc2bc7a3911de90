"""Operations that change files, with the states that they lead to, for tests in which their calls fail."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mirrorspark.callbacks.checkpoints import commit, retention
from mirrorspark.callbacks.checkpoints.checkpoint_store import Location
from mirrorspark.callbacks.checkpoints.fencing import Permit, fence
from mirrorspark.data_pipelines.conversion import ConversionOptions, convert
from mirrorspark.data_pipelines.dataset.manifest import SPLITS, is_published
from mirrorspark.data_pipelines.features.kinds import Label, Numeric
from mirrorspark.data_pipelines.features.spec import FeatureSpec
from mirrorspark.data_pipelines.reading.dataset import Dataset
from mirrorspark.scoring.files import score_files
from mirrorspark.serving.precomputed.precomputation import precompute
from mirrorspark.serving.precomputed.store import PrecomputedScores
from mirrorspark.storage.host_cache import HostCache
from mirrorspark.storage.paths import StoragePath
from mirrorspark.storage.publish.recovery import recover
from mirrorspark.training.run_records.run_folder import RunFolder
from mirrorspark.training.run_records.run_state import read_state
from tests.unit.callbacks.committed_files import publish_files
from tests.unit.scoring.exported_models import FLIGHTS, export_flights
from tests.unit.storage.writes import FakeTime, begin, listed, write, written

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


OLD = {"part-0": b"old", "day=1/part-1": b"old"}
NEW = {"part-2": b"new", "day=2/part-3": b"new", "_notes.json": b"{}"}
KEY = "model-0123456789ab"


@dataclass(frozen=True)
class Operation:
    """An operation that changes files, described by the states before and after it.

    Attributes:
        prepare: Makes the former state below a place.
        act: Makes the new one; may be called again after a failure.
        look: Returns the state that readers find.
        recover: Cleaning by the next writer, where readers may find nothing until then.
        is_durable: Whether the new state survives a power cut once ``act`` has returned. Without it, as with Spark's
            own writers, the system has the files but perhaps not yet the disk.
        is_repeatable: Whether ``act`` may be called again after it has succeeded.
        is_verified: Whether readers compare what they find with its digest, so that damage counts as nothing.
    """

    prepare: Callable[[Any], None]
    act: Callable[[Any], None]
    look: Callable[[Any], object]
    recover: Callable[[Any], None] = lambda place: None
    is_durable: bool = False
    is_repeatable: bool = True
    is_verified: bool = False


def write_folder(place: Any, mode: str, content: dict[str, bytes]) -> None:
    """Write as the product does: unpublishable files are taken back."""
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
    "an entry of a cache": Operation(lambda place: None, cache_entry, cached, is_verified=True),
}
SCORES = "an append of scores"
DATASET = "a conversion"
NAMES = [*LOCAL, SCORES, DATASET]


def all_operations(spark: "SparkSession", folder: Path) -> dict[str, Operation]:
    """Return the operations by name, with those of tables; the files that these need are made in ``folder``."""
    model = export_flights(folder / "model", 1)
    pq.write_table(FLIGHTS, folder / "flights.parquet")

    def score(place: Any, mode: str) -> None:
        output = StoragePath.of(place) / "t"
        score_files(spark, folder / "flights.parquet", model, output, keys="flight_id", mode=mode)

    def keys(place: Any) -> object:
        parts = [pq.read_table(pa.BufferReader(content)) for content in listed(StoragePath.of(place) / "t").values()]
        return [part["flight_id"].to_pylist() for part in parts]

    rows = [(number, number / 7, number // 3 % 2, SPLITS[number % 3]) for number in range(30)]
    table = spark.createDataFrame(rows, "id int, distance double, late int, split string").coalesce(1)
    spec, options = FeatureSpec((Numeric("distance"),), Label("late"), ("id",)), ConversionOptions(shards=1)

    def dataset(place: Any) -> object:
        target = StoragePath.of(place) / "t"
        return Dataset.open(place / "t").manifest.splits if is_published(target) else None

    return LOCAL | {
        DATASET: Operation(
            prepare=lambda place: None,
            act=lambda place: convert(table, spec, place / "t", options=options, progress=False),
            look=dataset,
            recover=LOCAL["an append"].recover,
            is_repeatable=False,
        ),
        SCORES: Operation(
            prepare=lambda place: score(place, "error"),
            act=lambda place: score(place, "append"),
            look=keys,
            recover=LOCAL["an append"].recover,
            is_repeatable=False,
        ),
    }


def run_here(table: "DataFrame", job: object, body: Callable[[Any], Iterator[pa.RecordBatch]]) -> list[dict[str, Any]]:
    """Run the body of all tasks in this process, where calls can fail, instead of in Spark's."""
    return [row for batch in body(table.toArrow().to_batches()) for row in batch.to_pylist()]


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
