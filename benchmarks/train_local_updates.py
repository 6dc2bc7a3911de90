"""How fast do workers train that meet now and then, next to workers that never do, and does the model rank as well?

With local updates every worker makes some steps of its own (8, 16 or 64), then all go on from their mean.

Speed: the feed-forward net of ``train_steps``, next to synchronous training and to two processes that know nothing of
each other, in Keras' loop and in ours. These differ by less than a machine does from one minute to the next: the models
of all sides lie in the same two processes, which take turns with them, epoch by epoch. Workers that meet have the speed
of the slower one: a row has the time of the slower one of the two processes that never meet.

AUC: the recipe ``flights`` with two workers (``local_steps``, no outer momentum). Same rows, batch, learning rate and
seeds on all sides, and all of the recipe's epochs, without early stopping; on the test split, of the epoch that was
best on the validation split.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import harmonic_mean, mean

from pyspark import BarrierTaskContext

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Mark, Timing, interleave
from benchmarks.report import Report, Table, rate, timing_table
from benchmarks.train_steps import ALONE, ALONE_IN_OUR_LOOP, LARGE_BATCH, RING, SMALL_BATCH, Aim
from benchmarks.train_steps_rank import FitRank, Work, connected_ring
from benchmarks.train_work import (
    FLIGHTS,
    WORKERS,
    flights_config,
    flights_table,
    in_new_process,
    launch,
    session_with_new_workers,
    trained,
    usual_session,
)

LOCAL = {steps: f"RingStrategy, local updates of {steps} steps" for steps in (8, 16, 64)}
SLOWER = "the slower one of these two processes"
TURNS = 6  # for each round that is asked for
SPEED_MARKS: Mapping[int, float] = {SMALL_BATCH: 0.9, LARGE_BATCH: 0.95}
SEEDS = (1, 2, 3)
AUC_MARK = 0.002


@dataclass(frozen=True)
class TurnsRank:
    """The body of a barrier task: several sides in one process.

    Attributes:
        turns: Timed epochs of each.
        token: Secret of the ring that they share.
    """

    sides: Mapping[str, FitRank]
    turns: int
    token: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)

    def __call__(self) -> Sequence[Mapping[str, Timing]]:
        """Train, and return the seconds of each side's epochs by rank."""
        ring = connected_ring(self.token)
        trainers = {name: side.trainer(ring) for name, side in self.sides.items()}
        for name, train in trainers.items():
            train(self.sides[name].work.warm_up_steps)
        turns = [Contender(name, partial(train, self.sides[name].work.steps)) for name, train in trainers.items()]
        own = interleave(turns, self.turns, warm_ups=0)
        ring.close()
        texts = BarrierTaskContext.get().allGather(json.dumps({name: timing.seconds for name, timing in own.items()}))
        return [{name: Timing(name, tuple(seconds)) for name, seconds in json.loads(text).items()} for text in texts]


@dataclass(frozen=True)
class Outcome:
    """Result of a training.

    Attributes:
        auc: On the test split.
        examples_per_second: Median over the epochs.
    """

    auc: float
    examples_per_second: float


@dataclass(frozen=True)
class Pair:
    """Both sides with one seed."""

    seed: int
    synchronous: Outcome
    local: Outcome

    @property
    def difference(self) -> float:
        """AUC of synchronous training minus that of local updates."""
        return self.synchronous.auc - self.local.auc


def run(options: Options) -> Report:
    """Measure the speed of both batch sizes, then train on the flights with every seed all ways."""
    turns = TURNS * options.rounds
    speeds, speed_marks = _speeds(options.rows, turns)
    epochs, pairs = in_new_process(_pairs, options.rows, options.scratch)
    aucs = tuple(_auc_table(steps, of, epochs, options.rows) for steps, of in pairs.items())
    auc_marks = tuple(
        Mark(
            f"AUC, synchronous - local updates of {steps} steps, mean over {len(of)} seeds, without its sign",
            abs(_mean_difference(of)),
            AUC_MARK,
            "at most",
        )
        for steps, of in pairs.items()
    )
    rounds = (
        f"speed: median of {turns} epochs, interleaved in the same processes, after steps that do not count; AUC: one "
        f"run per side with each of the seeds {', '.join(map(str, SEEDS))}"
    )
    return Report(
        BENCHMARK.name,
        BENCHMARK.question,
        (*speeds, *aucs),
        (*speed_marks, *auc_marks),
        conditions={"rounds": rounds},
    )


def _speeds(rows: int, turns: int) -> tuple[list[Table], list[Mark]]:
    """Return a table per batch size, and its marks."""
    session = session_with_new_workers()
    tables: list[Table] = []
    marks: list[Mark] = []
    for batch, limit in SPEED_MARKS.items():
        work = Work.of_rows("mlp", batch, rows)
        sides = {
            RING: FitRank("ring", work, our_loop=True),
            **{name: FitRank("ring", work, local_steps=steps, our_loop=True) for steps, name in LOCAL.items()},
            ALONE: FitRank("alone", work),
            ALONE_IN_OUR_LOOP: FitRank("alone", work, our_loop=True),
        }
        timings = of_all_ranks(launch(TurnsRank(sides, turns), makes_its_strategy=True))
        tables.append(_speed_table(work, timings))
        aims = [Aim(name, (ALONE, ALONE_IN_OUR_LOOP), limit) for name in LOCAL.values()]
        marks += [mark for aim in aims if (mark := aim.mark(work, timings)) is not None]
    session.stop()
    return tables, marks


def of_all_ranks(ranks: Sequence[Mapping[str, Timing]]) -> dict[str, Timing]:
    """Return the seconds of each side's rounds, by which rows per second of all ranks add up, and those of `SLOWER`."""
    rounds = {name: list(zip(*(rank[name].seconds for rank in ranks), strict=True)) for name in ranks[0]}
    timings = {name: Timing(name, tuple(map(harmonic_mean, seconds))) for name, seconds in rounds.items()}
    return timings | {SLOWER: Timing(SLOWER, tuple(map(max, rounds[ALONE_IN_OUR_LOOP])))}


def _speed_table(work: Work, timings: Mapping[str, Timing]) -> Table:
    title = f"Feed-forward net 64-256-128-1, Adam, batch {work.batch:,} per worker"
    note = f"{work.steps:,} steps in one epoch; rows of both workers."
    return timing_table(title, WORKERS * work.rows, timings, ALONE_IN_OUR_LOOP, note=note)


def _auc_table(steps: int, pairs: Sequence[Pair], epochs: int, flights: int) -> Table:
    rows = tuple(
        (
            f"{pair.seed}",
            f"{pair.synchronous.auc:.4f}",
            f"{pair.local.auc:.4f}",
            f"{pair.difference:+.4f}",
            rate(pair.synchronous.examples_per_second),
            rate(pair.local.examples_per_second),
        )
        for pair in pairs
    )
    columns = ("seed", "synchronous", "local updates", "synchronous - local", "synchronous, rows/s", "local, rows/s")
    title = f"Test AUC after {epochs} epochs of {flights:,} flights, {WORKERS} workers, {steps} local steps"
    note = (
        f"Mean difference {_mean_difference(pairs):+.4f}. Rows/s: median over the epochs, of both workers together. "
        "The synchronous runs are the same in all tables."
    )
    return Table(title, columns, rows, note)


def _mean_difference(pairs: Sequence[Pair]) -> float:
    return mean(pair.difference for pair in pairs)


def _pairs(rows: int, scratch: Path) -> tuple[int, dict[int, list[Pair]]]:
    """Convert the table once, train on it, and return the epochs of each training and the pairs by local steps."""
    from mirrorspark.data_pipelines.conversion import convert

    session, config = usual_session(), flights_config(scratch / "conversion")
    dataset = convert(flights_table(session, config, rows), config.spec, scratch / "dataset", options=config.conversion)

    def outcome(seed: int, local_steps: int) -> Outcome:
        output = scratch / f"seed-{seed}-local-steps-{local_steps}"
        done = trained(dataset.path, flights_config(output, seed=seed, local_steps=local_steps), session)
        return Outcome(float(done.verdict.metrics["test"]["auc"]), done.examples_per_second or 0.0)

    pairs: dict[int, list[Pair]] = {steps: [] for steps in LOCAL}
    for seed in SEEDS:
        synchronous = outcome(seed, 1)
        for steps, of in pairs.items():
            of.append(Pair(seed, synchronous, outcome(seed, steps)))
    session.stop()
    return config.epochs, pairs


BENCHMARK = Benchmark("train_local_updates", question_of(__doc__), FLIGHTS, run)

if __name__ == "__main__":
    main(BENCHMARK)
