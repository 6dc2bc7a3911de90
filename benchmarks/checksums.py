"""What do the checksums of messages, checkpoints and precomputed rows cost a step, a save and a look-up?

Each operation runs as it is, and with its checksum replaced by a constant, which only this benchmark can do. Ranks sum
what they send each other and compare what they get; a checkpoint's files are hashed when it is committed; a row that is
looked up is compared with its checksum. The checksums of TFRecord files belong to their format and cannot be left out.
"""

import json
import random
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import harmonic_mean
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import BarrierTaskContext

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Mark, Timing, interleave
from benchmarks.report import Report, Table
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
CHECKPOINT_FILES, CHECKPOINT_FILE_BYTES = 4, 25_000_000


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


def _no_digest(path: Path, beat: Callable[[], None]) -> str:
    return "0" * 64


def _no_row_checksum(key: object, value: str) -> _EqualToAll:
    return _EQUAL


@dataclass(frozen=True)
class RingRank:
    """What a barrier task runs: the same training with and without checksums, in turns on one ring."""

    work: Work
    turns: int
    token: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)

    def __call__(self) -> Mapping[str, Timing]:
        """Train, and return the seconds of each turn, in the mean of the ranks."""
        from mirrorspark.training.ring import ring as ring_module

        ring = connected_ring(self.token)
        train = FitRank("ring", self.work, our_loop=True).trainer(ring)
        train(self.work.warm_up_steps)

        def unchecked(steps: int) -> float:
            # The ranks take the same turns, so neither sends a sum that the other would compare.
            with mock.patch.object(ring_module, "_checksum", new=_no_sum):
                return train(steps)

        sides = [
            Contender(CHECKED, partial(train, self.work.steps)),
            Contender(UNCHECKED, partial(unchecked, self.work.steps)),
        ]
        own = interleave(sides, self.turns, warm_ups=0)
        ring.close()
        texts = BarrierTaskContext.get().allGather(json.dumps({name: timing.seconds for name, timing in own.items()}))
        ranks = [json.loads(text) for text in texts]
        return {
            name: Timing(name, tuple(map(harmonic_mean, zip(*(rank[name] for rank in ranks), strict=True))))
            for name in own
        }


def run(options: Options) -> Report:
    """Measure steps of two batch sizes, the commit of a checkpoint, and look-ups."""
    turns = TURNS * options.rounds
    session = session_with_new_workers()
    found: dict[str, Mapping[str, Timing]] = {}
    works = (
        Work.of_rows("mlp", SMALL_BATCH, options.rows),
        Work.of_rows("mlp", LARGE_BATCH, options.rows),
        Work.of_rows("two_tower", LARGE_BATCH, options.rows),
    )
    for work in works:
        name = f"{work.steps:,} steps of {work.model}, batch {work.batch:,} per worker"
        found[name] = launch(RingRank(work, turns), makes_its_strategy=True)
    session.stop()
    size = CHECKPOINT_FILES * CHECKPOINT_FILE_BYTES // 1_000_000
    found[f"commit of a checkpoint of {size} MB"] = in_new_process(_checkpoints, options.scratch, turns)
    found[f"{LOOKUPS:,} look-ups in {ROWS_IN_STORE:,} rows"] = in_new_process(_lookups, options.scratch, turns)
    marks = tuple(Mark(f"cost in {name}", _cost(timings), COST_MARK, "at most") for name, timings in found.items())
    rounds = f"median of {turns} turns of each, interleaved in the same processes, after some that do not count"
    return Report(BENCHMARK.name, BENCHMARK.question, (_table(found),), marks, conditions={"rounds": rounds})


def _cost(timings: Mapping[str, Timing]) -> float:
    return timings[CHECKED].median / timings[UNCHECKED].median - 1


def _table(found: Mapping[str, Mapping[str, Timing]]) -> Table:
    rows = tuple(
        (
            name,
            *(f"{timings[side].median:.3f} ({timings[side].spread:.0%})" for side in (CHECKED, UNCHECKED)),
            f"{_cost(timings):+.1%}",
        )
        for name, timings in found.items()
    )
    columns = ("operation", *(f"seconds {side} (spread)" for side in (CHECKED, UNCHECKED)), "cost")
    note = (
        "A checkpoint is committed in the background: what a training waits for is in train_checkpoints. The files of "
        "a commit are on the disk already, in the system's cache, so hashing them is most of its work."
    )
    return Table("Seconds with and without checksums", columns, rows, note)


def _both_ways(
    work: Callable[[], object],
    patch: Callable[[], AbstractContextManager[object]],
    turns: int,
    **prepared: Callable[[], None],
) -> dict[str, Timing]:
    def unchecked() -> None:
        with patch():
            work()

    return interleave([Contender(CHECKED, work, **prepared), Contender(UNCHECKED, unchecked, **prepared)], turns)


def _checkpoints(scratch: Path, turns: int) -> dict[str, Timing]:
    from mirrorspark.callbacks.checkpoints import commit

    staging, store = scratch / "staging", scratch / "store"
    content = np.random.default_rng(SEED).bytes(CHECKPOINT_FILE_BYTES)

    def prepare() -> None:
        for folder in (staging, store):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        for number in range(CHECKPOINT_FILES):
            (staging / f"weights-{number}").write_bytes(content)

    return _both_ways(
        lambda: commit.publish(staging, store, step=1, epoch=1),
        lambda: mock.patch.object(commit, "sha256", new=_no_digest),
        turns,
        prepare=prepare,
    )


def _lookups(scratch: Path, turns: int) -> dict[str, Timing]:
    from mirrorspark.scoring.precomputed import store
    from mirrorspark.scoring.precomputed.precompute import precompute

    ids = [f"u{number}" for number in range(ROWS_IN_STORE)]
    lists = [[f"m{(number + place) % 1000}" for place in range(20)] for number in range(ROWS_IN_STORE)]
    pq.write_table(pa.table({"user_id": ids, "candidates": lists}), scratch / "lists.parquet")
    precompute(scratch / "lists.parquet", scratch / "lists.db", key="user_id")
    keys = random.Random(SEED).choices(ids, k=LOOKUPS)
    with store.PrecomputedScores.open(scratch / "lists.db") as scores:
        return _both_ways(
            lambda: [scores.get(key) for key in keys],
            lambda: mock.patch.object(store, "row_checksum", new=_no_row_checksum),
            turns,
        )


BENCHMARK = Benchmark("checksums", question_of(__doc__), 307_200, run)

if __name__ == "__main__":
    main(BENCHMARK)
