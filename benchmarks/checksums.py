"""What do the checksums of messages, checkpoints and precomputed rows cost a step, a save and a look-up?

Each operation runs as it is, and with its checksum replaced by a constant, which only this benchmark can do. Ranks sum
what they send each other and compare what they get; the files of a checkpoint are read for their checksums while the
store takes them; a row that is looked up is compared with its checksum. The checksums of TFRecord files belong to their
format and cannot be left out.
"""

import json
import random
import secrets
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean, harmonic_mean
from timeit import repeat
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import BarrierTaskContext

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Mark, Stopwatch, Timing, interleave, paired_ratio
from benchmarks.report import Report, Table, significant
from benchmarks.tables import SEED
from benchmarks.train_data import Work
from benchmarks.train_fit import FitRank, connected_ring
from benchmarks.train_steps import LARGE_BATCH, SMALL_BATCH
from benchmarks.train_work import in_new_process, launch, session_with_new_workers

COST_MARK = 0.03
CHECKED, UNCHECKED = "with checksums", "without"
TURNS = 6  # for each round that is asked for
ROWS_IN_STORE = 100_000
LOOKUPS = 20_000
CHECKPOINT_BYTES = 100_000_000
MESSAGE_BYTES = (1 << 10, 1 << 14, 200_000, 1 << 20)


class _EqualToAll(int):
    """A checksum that every row has."""

    def __ne__(self, other: object) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


_EQUAL = _EqualToAll()


# Plain functions: a mock would take longer than the sum that it replaces.
def _no_sum(values: np.ndarray) -> int:
    return 0


def _no_checksum(path: Path, *, beat: Callable[[], None]) -> str:
    return "crc32:00000000"


def _no_row_checksum(key: object, value: str) -> _EqualToAll:
    return _EQUAL


@dataclass(frozen=True)
class Cost:
    """How long an operation took.

    Attributes:
        timings: With and without checksums.
        own_seconds: Time in the calls of the checksum in a turn, in the mean, above that in those of the constant.
        is_beside: Whether these run in a thread of their own, beside other work.
    """

    timings: Mapping[str, Timing]
    own_seconds: float
    is_beside: bool = False

    @property
    def ratio(self) -> float:
        """What the turns with checksums take longer, as a share of those without."""
        return paired_ratio(self.timings, CHECKED, UNCHECKED) - 1

    @property
    def share(self) -> float:
        """The checksums' own time, as a share of the whole."""
        return self.own_seconds / self.timings[CHECKED].median


@dataclass(frozen=True)
class Checksum:
    """The function that computes a checksum, and the one that takes its place."""

    module: Any
    name: str
    constant: Callable[..., object]

    def cost(self, work: Callable[[], object], turns: int, *, warm_ups: int = 1, **more: Any) -> Cost:
        """Measure ``work`` with and without the checksum; ``more`` is of the contenders."""
        # Both are timed, because the stopwatch takes as long as a short checksum.
        watches = {CHECKED: Stopwatch(), UNCHECKED: Stopwatch()}
        functions = {CHECKED: getattr(self.module, self.name), UNCHECKED: self.constant}
        sides = [
            Contender(side, partial(self._with, watch.around(functions[side]), work), **more)
            for side, watch in watches.items()
        ]
        timings = interleave(sides, turns, warm_ups=warm_ups)
        own = (watches[CHECKED].seconds - watches[UNCHECKED].seconds) / (turns + warm_ups)
        return Cost(timings, own)

    def _with(self, function: Callable[..., object], work: Callable[[], object]) -> object:
        with mock.patch.object(self.module, self.name, new=function):
            return work()


@dataclass(frozen=True)
class RingRank:
    """What a barrier task runs: the same training with and without checksums, in turns on one ring."""

    work: Work
    turns: int
    token: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)

    def __call__(self) -> Cost:
        """Train, and return the cost of each turn, in the mean of the ranks."""
        from mirrorspark.training.ring import ring as ring_module

        ring = connected_ring(self.token)
        train = FitRank("ring", self.work, our_loop=True).trainer(ring)
        train(self.work.warm_up_steps)
        # The ranks take the same turns, so none sends a constant that another would compare with its sum.
        own = Checksum(ring_module, "_checksum", _no_sum).cost(partial(train, self.work.steps), self.turns, warm_ups=0)
        ring.close()
        seconds = {name: timing.seconds for name, timing in own.timings.items()}
        texts = BarrierTaskContext.get().allGather(json.dumps([seconds, own.own_seconds]))
        ranks, own_seconds = zip(*map(json.loads, texts), strict=True)
        timings = {
            name: Timing(name, tuple(map(harmonic_mean, zip(*(rank[name] for rank in ranks), strict=True))))
            for name in seconds
        }
        return Cost(timings, fmean(own_seconds))


def run(options: Options) -> Report:
    """Measure steps of two batch sizes, the save and the commit of a checkpoint, and look-ups."""
    turns = TURNS * options.rounds
    session = session_with_new_workers()
    found: dict[str, Cost] = {}
    works = (
        Work.of_rows("mlp", SMALL_BATCH, options.rows),
        Work.of_rows("mlp", LARGE_BATCH, options.rows),
        Work.of_rows("two_tower", LARGE_BATCH, options.rows),
    )
    for work in works:
        name = f"{work.steps:,} steps of {work.model}, batch {work.batch:,} per worker"
        found[name] = launch(RingRank(work, turns), makes_its_strategy=True)
    session.stop()
    size = f"a checkpoint of {CHECKPOINT_BYTES // 1_000_000} MB"
    found[f"save of {size}"] = in_new_process(_saves, options.scratch, turns)
    found[f"commit of {size}"] = in_new_process(_commits, options.scratch, turns)
    found[f"{LOOKUPS:,} look-ups in {ROWS_IN_STORE:,} rows"] = in_new_process(_lookups, options.scratch, turns)
    marks = tuple(
        Mark(f"cost in {name}", cost.ratio if cost.is_beside else cost.share, COST_MARK, "at most")
        for name, cost in found.items()
        if not name.startswith("commit")
    )
    rounds = f"{turns} turns of each, interleaved in the same processes, after some that do not count"
    tables = (_table(found), _message_table())
    return Report(BENCHMARK.name, BENCHMARK.question, tables, marks, conditions={"rounds": rounds})


def _table(found: Mapping[str, Cost]) -> Table:
    rows = tuple(
        (
            name,
            *(f"{cost.timings[side].median:.3f} ({cost.timings[side].spread:.0%})" for side in (CHECKED, UNCHECKED)),
            f"{cost.ratio:+.1%}",
            f"{cost.own_seconds:.4f}",
            f"{cost.share:.1%}{' (beside)' if cost.is_beside else ''}",
        )
        for name, cost in found.items()
    )
    sides = (f"seconds {side} (spread)" for side in (CHECKED, UNCHECKED))
    columns = ("operation", *sides, "difference", "seconds in checksums", "their share")
    note = (
        "Seconds are medians. The difference is the median of those of neighbouring turns, which differ by some per "
        "cent even without any checksum; the time in the calls of the checksum does not, and is what steps and "
        "look-ups are judged by. The checksums of a checkpoint are computed beside what the store does, so it is "
        "judged by the difference. A save writes the tensors to the local disk and commits them there; it is done in "
        "the background: what a training waits for is in train_checkpoints."
    )
    return Table("Seconds with and without checksums", columns, rows, note)


def _message_table() -> Table:
    """Time the sum of a message beside what else could be computed of it, on arrays that are in the cache."""
    from mirrorspark.training.ring.ring import _checksum

    ways: dict[str, Callable[[np.ndarray], object]] = {
        "the sum of its words": _checksum,
        "CRC-32 (zlib)": lambda values: zlib.crc32(values.data),
        "a copy of it": np.copy,
    }
    rows = []
    for size in MESSAGE_BYTES:
        values = np.random.default_rng(SEED).random(size // 4, np.float32)
        calls = max(10, MESSAGE_BYTES[-1] // size)
        seconds = (min(repeat(partial(way, values), number=calls, repeat=9)) / calls for way in ways.values())
        rows.append((f"{size:,}", *(significant(1e6 * one) for one in seconds)))
    note = "Of each array that a rank sends the sum is computed twice: by it, and by the rank that receives it."
    return Table("Microseconds for a message of the ring", ("bytes", *ways), tuple(rows), note)


def _saves(scratch: Path, turns: int) -> Cost:
    import tf_keras

    from mirrorspark.callbacks.checkpoints import checksums, commit
    from mirrorspark.callbacks.checkpoints.publisher import CheckpointPublisher, Pending, RetentionPolicy
    from mirrorspark.callbacks.checkpoints.snapshot import Snapshot

    columns = 1_000
    model = tf_keras.Sequential([tf_keras.Input((CHECKPOINT_BYTES // 4 // columns,)), tf_keras.layers.Dense(columns)])
    model.compile("sgd", "mse")
    store = scratch / "store"

    def prepare() -> None:
        shutil.rmtree(store, ignore_errors=True)
        store.mkdir()

    def save() -> None:
        publisher = CheckpointPublisher(store, scratch / "staged-", RetentionPolicy(1, 0, None, "max"))
        snapshot = Snapshot(model, model.optimizer)
        publisher.submit(Pending(snapshot, {commit.STATE: b"{}"}, 1, 1, 0, {}, is_optional=False))
        while not publisher.wait(60):
            pass

    cost = Checksum(checksums, "checksum_of", _no_checksum).cost(save, turns, prepare=prepare)
    return replace(cost, is_beside=True)


def _commits(scratch: Path, turns: int) -> Cost:
    from mirrorspark.callbacks.checkpoints import checksums, commit

    staging, store = scratch / "staging", scratch / "store"
    content = np.random.default_rng(SEED).bytes(CHECKPOINT_BYTES)

    def prepare() -> None:
        for folder in (staging, store):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        # One file, as of a training with one device.
        (staging / "ckpt.data-00000-of-00001").write_bytes(content)

    cost = Checksum(checksums, "checksum_of", _no_checksum).cost(
        lambda: commit.publish(staging, store, step=1, epoch=1), turns, prepare=prepare
    )
    return replace(cost, is_beside=True)


def _lookups(scratch: Path, turns: int) -> Cost:
    from mirrorspark.serving.precomputed import store
    from mirrorspark.serving.precomputed.precompute import precompute

    ids = [f"u{number}" for number in range(ROWS_IN_STORE)]
    lists = [[f"m{(number + place) % 1000}" for place in range(20)] for number in range(ROWS_IN_STORE)]
    pq.write_table(pa.table({"user_id": ids, "candidates": lists}), scratch / "lists.parquet")
    precompute(scratch / "lists.parquet", scratch / "lists.db", key="user_id")
    keys = random.Random(SEED).choices(ids, k=LOOKUPS)
    with store.PrecomputedScores.open(scratch / "lists.db") as scores:
        return Checksum(store, "row_checksum", _no_row_checksum).cost(lambda: [scores.get(key) for key in keys], turns)


BENCHMARK = Benchmark("checksums", question_of(__doc__), 307_200, run)

if __name__ == "__main__":
    main(BENCHMARK)
