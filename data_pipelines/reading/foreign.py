"""Reading of TFRecord files from other tools: no manifest, one ``tf.train.Example`` per record, any schema.

There is no manifest, so the rows of every file are counted first, once. From these counts each worker computes its
share, with the same number of steps as all others. There are two kinds of shares:

* ``file``: every worker reads whole files of its own. Nothing is read twice, but shares are as the files.
* ``data``: every worker reads all files and parses each ``workers``-th record. Shares are even, and one file is enough.

Datasets that this library wrote are read several times faster by :mod:`data_pipelines.reading.dataset`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from mirrorspark.clear_error import ClearError
from mirrorspark.data_pipelines.reading.dataset import Remainder
from mirrorspark.data_pipelines.tfrecord import open_records, scan_records
from mirrorspark.storage import StoragePath, listing

if TYPE_CHECKING:  # counting needs no TensorFlow
    import tensorflow as tf

Sharding = Literal["file", "data"]


class ForeignDataError(ClearError, ValueError):
    """Files that cannot be read as planned; the message names them and the remedy."""


@dataclass(frozen=True)
class CountedFile:
    """A file and its number of records.

    Attributes:
        rows: Intact records in it.
        damaged: Damaged records that reading skips.
    """

    path: StoragePath
    rows: int
    damaged: int = 0


@dataclass(frozen=True)
class RowPlan:
    """The part of the files that one worker reads.

    Attributes:
        batch_size_per_worker: Rows of one batch on this worker.
        sharding: The division of files among workers, see above.
        rank: This worker, from 0.
        seed: Fixes the order of every epoch; None keeps the order of files and records.
        shuffle_rows: With a seed, the number of consecutive records to mix at a time; they are held in memory.
        epoch: The first epoch.
        epochs: The number of epochs; None never ends.
        remainder: The treatment of rows by which shares differ, or that do not fill the last batch: ``pad`` fills
            batches up with rows of weight 0, ``drop`` leaves rows out.
    """

    batch_size_per_worker: int
    sharding: Sharding = "file"
    rank: int = 0
    workers: int = 1
    seed: int | None = None
    shuffle_rows: int = 65_536
    epoch: int = 0
    epochs: int | None = 1
    remainder: Remainder = "pad"

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.workers:
            raise ValueError(f"rank {self.rank} is not one of {self.workers} workers")
        if self.batch_size_per_worker < 1 or self.shuffle_rows < 1:
            raise ValueError(
                f"batch_size_per_worker {self.batch_size_per_worker}, shuffle_rows {self.shuffle_rows}: use 1 or more"
            )
        for name, value, known in (
            ("sharding", self.sharding, ("file", "data")),
            ("remainder", self.remainder, ("pad", "drop")),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r} is unknown; use {' or '.join(known)}")
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"seed {self.seed} is negative; use 0 or more")


@dataclass(frozen=True)
class Share:
    """The records that one worker reads in an epoch.

    Attributes:
        files: The files it opens.
        every: The worker takes each ``every``-th of their records,
        first: beginning with this one.
        rows: The number of these records.
        steps: The number of batches, equal on all workers.
    """

    files: tuple[CountedFile, ...]
    every: int
    first: int
    rows: int
    steps: int


def count_rows(
    locations: str | Path | StoragePath | Sequence[str | Path | StoragePath],
    *,
    on_damage: Literal["fail", "skip"] = "fail",
) -> tuple[CountedFile, ...]:
    """Count the rows of the files at ``locations``: once, on the driver, for all workers.

    Every file is read from front to back, and its checksums are compared.

    Args:
        locations: Files, folders and globs on any store, as :func:`storage.listing.list_files` takes them;
            compressed or not, as detected from their content.
        on_damage: "fail" on damaged records, or "skip" and count them.

    Raises:
        FileNotFoundError: Nothing is at a location.
        DamagedRecordError: A record is damaged.
        CodecError: A file is compressed with an unsupported codec.
    """
    return tuple(_counted(file.path, on_damage) for file in listing.list_files(locations))


def _counted(path: StoragePath, on_damage: Literal["fail", "skip"]) -> CountedFile:
    with path.open_stream() as file:
        scan = scan_records(open_records(file, name=str(path)), name=str(path), on_damage=on_damage)
        rows = sum(len(chunk.starts) for chunk in scan)
        return CountedFile(path, rows, scan.skipped)


def share_of(files: Sequence[CountedFile], plan: RowPlan) -> Share:
    """Return the share of the worker of ``plan``.

    Files go to the worker that has the fewest rows so far, the largest first.

    Raises:
        ForeignDataError: There are no rows (with ``drop``: not one whole batch on every worker), or with
            ``sharding="file"`` fewer files with rows than workers.
    """
    with_rows = [file for file in files if file.rows]
    if not with_rows:
        raise ForeignDataError(f"there are no rows in {len(files)} files; check the paths")
    if plan.sharding == "data":
        total = sum(file.rows for file in with_rows)
        rows = [len(range(rank, total, plan.workers)) for rank in range(plan.workers)]
        divided = [list(with_rows)] * plan.workers
    else:
        if len(with_rows) < plan.workers:
            raise ForeignDataError(
                f"{len(with_rows)} files with rows cannot be divided among {plan.workers} workers; use "
                f"sharding='data', fewer workers or more files"
            )
        rows = [0] * plan.workers
        divided = [[] for _ in rows]
        for file in sorted(with_rows, key=lambda file: (-file.rows, file.path)):
            rank = rows.index(min(rows))
            rows[rank] += file.rows
            divided[rank].append(file)
    batch = plan.batch_size_per_worker
    steps = -(-max(rows) // batch) if plan.remainder == "pad" else min(rows) // batch
    if not steps:
        raise ForeignDataError(
            f"a worker's share is {min(rows)} rows, fewer than one batch of {batch}; use a smaller batch, or "
            f"remainder='pad'"
        )
    is_data = plan.sharding == "data"
    return Share(
        files=tuple(divided[plan.rank]),
        every=plan.workers if is_data else 1,
        first=plan.rank if is_data else 0,
        rows=rows[plan.rank],
        steps=steps,
    )


def load_rows(files: Sequence[CountedFile], features: Mapping[str, Any], plan: RowPlan) -> "tf.data.Dataset":
    """Return batches ``(features, weight)`` for one worker.

    All workers together read every row once per epoch, in equal numbers of steps. Padding rows have weight 0; they are
    copies of the first row of the worker's first file, because only the writer knows which features may be empty.

    Memory: ``plan.shuffle_rows`` records and a few batches.

    Args:
        files: The result of :func:`count_rows`, the same on all workers.
        features: The argument of ``tf.io.parse_example``: per name a ``tf.io.FixedLenFeature``, ``VarLenFeature``,
            ``RaggedFeature`` or ``SparseFeature``. Other features of the records are skipped.
        plan: The order, the batch size and the worker's part of the rows.

    Raises:
        ForeignDataError: See :func:`share_of`.
        tf.errors.InvalidArgumentError: While iterating: a feature is of another type than requested or is missing, a
            record is damaged, or a file's rows have changed since they were counted.
    """
    import tensorflow as tf  # deferred: see above

    share = share_of(files, plan)
    batch = plan.batch_size_per_worker
    signature = (tf.TensorSpec((batch,), tf.string), tf.TensorSpec((batch,), tf.float32))
    records = tf.data.Dataset.from_generator(lambda: _batches(share, plan), output_signature=signature)
    options = tf.data.Options()
    options.autotune.enabled = False  # its thread sleeps up to a minute before it lets an iterator go
    parsed = records.map(lambda serialized, weight: (tf.io.parse_example(serialized, dict(features)), weight))
    return parsed.prefetch(2).with_options(options)


def _batches(share: Share, plan: RowPlan) -> Iterator[tuple[npt.NDArray[np.object_], npt.NDArray[np.float32]]]:
    """Yield serialized records ``[batch]`` and their weights, epoch after epoch."""
    batch = plan.batch_size_per_worker
    epoch = plan.epoch
    while plan.epochs is None or epoch < plan.epoch + plan.epochs:
        waiting: list[bytes] = []
        steps = 0
        for records in _windows(share, plan, epoch):
            if steps == share.steps:
                # Rows beyond the other workers' shares are dropped and must not accumulate here.
                break
            waiting += records
            whole = min(len(waiting) // batch, share.steps - steps)
            for first in range(0, whole * batch, batch):
                yield _as_array(waiting[first : first + batch]), np.ones(batch, np.float32)
            del waiting[: whole * batch]
            steps += whole
        for _ in range(steps, share.steps):
            weight = np.zeros(batch, np.float32)
            weight[: len(waiting)] = 1.0
            yield _as_array(waiting + [_first_record(share)] * (batch - len(waiting))), weight
            waiting = []
        epoch += 1


def _first_record(share: Share) -> bytes:
    """Return the record that padding repeats. A worker has one even if there are fewer rows than workers."""
    everything = replace(share, files=share.files[:1], every=1, first=0)
    return next(chunk[0] for chunk in _records(everything.files, everything) if chunk)


def _as_array(records: list[bytes]) -> npt.NDArray[np.object_]:
    # From a list, NumPy would make fixed-size items of the longest record's size, cut off at zero bytes.
    array = np.empty(len(records), object)
    array[:] = records
    return array


def _windows(share: Share, plan: RowPlan, epoch: int) -> Iterator[list[bytes]]:
    """Yield the worker's records of one epoch in non-empty pieces."""
    files = list(share.files)
    if plan.seed is None:
        for chunk in _records(files, share):
            if chunk:
                yield chunk
        return
    # All workers have to agree on the order of shared files, but not on the order of rows.
    _generator(plan.seed, epoch).shuffle(files)
    of_rank = _generator(plan.seed, epoch, plan.rank + 1)
    window: list[bytes] = []
    for chunk in _records(files, share):
        window += chunk
        while len(window) >= plan.shuffle_rows:
            yield _shuffled(window[: plan.shuffle_rows], of_rank)
            del window[: plan.shuffle_rows]
    if window:
        yield _shuffled(window, of_rank)


def _shuffled(records: list[bytes], generator: np.random.Generator) -> list[bytes]:
    return [records[place] for place in generator.permutation(len(records))]


def _generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *stream])))


def _records(files: Sequence[CountedFile], share: Share) -> Iterator[list[bytes]]:
    """Yield the records of ``files`` that belong to the share, chunk by chunk."""
    passed = 0
    for file in files:
        rows = 0
        with file.path.open_stream() as stream:
            name = str(file.path)
            # Damage that counting did not find is an error, whatever ``on_damage`` was then.
            on_damage: Literal["fail", "skip"] = "skip" if file.damaged else "fail"
            for chunk in scan_records(open_records(stream, name=name), name=name, on_damage=on_damage):
                content = chunk.content.data
                first = (share.first - passed) % share.every
                bounds = zip(
                    chunk.starts[first :: share.every].tolist(), chunk.stops[first :: share.every].tolist(), strict=True
                )
                yield [bytes(content[start:stop]) for start, stop in bounds]
                rows += len(chunk.starts)
                passed += len(chunk.starts)
        if rows != file.rows:
            raise ForeignDataError(f"{name} has {rows} records, it had {file.rows} when it was counted; count again")
