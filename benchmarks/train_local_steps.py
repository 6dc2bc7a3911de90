"""How fast do workers train that meet now and then, next to workers that never do?

With local updates every worker makes some steps of its own, then all go on from their mean. The same feed-forward net
as in ``train_steps``, with rounds of 8, 16 and 64 steps, next to synchronous training and to two processes that know
nothing of each other, in Keras' loop and in ours. These differ by less than a machine does from one minute to the
next: the models of all sides lie in the same two processes, which take turns with them, epoch by epoch. Workers that
meet have the speed of the slower one: a row tells how long the slower one of the two processes took that never meet.
How well the model ranks is what ``train_local_updates`` tells.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import harmonic_mean

from pyspark import BarrierTaskContext

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Timing, interleave
from benchmarks.report import Report, Table, timing_table
from benchmarks.train_data import Work
from benchmarks.train_fit import FitRank, connected_ring
from benchmarks.train_steps import ALONE, ALONE_IN_OUR_LOOP, LARGE_BATCH, RING, SMALL_BATCH, Aim
from benchmarks.train_work import WORKERS, launch, session_with_new_workers

LOCAL = {steps: f"RingStrategy, local updates of {steps} steps" for steps in (8, 16, 64)}
SLOWER = "the slower one of these two processes"
TURNS = 6  # for each round that is asked for
MARKS: Mapping[int, float] = {SMALL_BATCH: 0.9, LARGE_BATCH: 0.95}


@dataclass(frozen=True)
class TurnsRank:
    """What a barrier task runs: several sides in one process.

    Attributes:
        turns: Epochs of each that are timed.
        token: Secret of the ring that they share.
    """

    sides: Mapping[str, FitRank]
    turns: int
    token: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)

    def __call__(self) -> Sequence[Mapping[str, Timing]]:
        """Train, and return how long the epochs of each side took each rank."""
        ring = connected_ring(self.token)
        trainers = {name: side.trainer(ring) for name, side in self.sides.items()}
        for name, train in trainers.items():
            train(self.sides[name].work.warm_up_steps)
        turns = [Contender(name, partial(train, self.sides[name].work.steps)) for name, train in trainers.items()]
        own = interleave(turns, self.turns, warm_ups=0)
        ring.close()
        texts = BarrierTaskContext.get().allGather(json.dumps({name: timing.seconds for name, timing in own.items()}))
        return [{name: Timing(name, tuple(seconds)) for name, seconds in json.loads(text).items()} for text in texts]


def run(options: Options) -> Report:
    """Measure both batch sizes."""
    session = session_with_new_workers()
    tables: list[Table] = []
    marks = []
    turns = TURNS * options.rounds
    for batch, limit in MARKS.items():
        work = Work.of_rows("mlp", batch, options.rows)
        sides = {
            RING: FitRank("ring", work, our_loop=True),
            **{name: FitRank("ring", work, local_steps=steps, our_loop=True) for steps, name in LOCAL.items()},
            ALONE: FitRank("alone", work),
            ALONE_IN_OUR_LOOP: FitRank("alone", work, our_loop=True),
        }
        timings = of_all_ranks(launch(TurnsRank(sides, turns), makes_its_strategy=True))
        tables.append(_table(work, timings))
        aims = [Aim(name, (ALONE, ALONE_IN_OUR_LOOP), limit) for name in LOCAL.values()]
        marks += [mark for aim in aims if (mark := aim.mark(work, timings)) is not None]
    session.stop()
    rounds = f"median of {turns} epochs, interleaved in the same processes, after steps that do not count"
    return Report(BENCHMARK.name, BENCHMARK.question, tuple(tables), tuple(marks), conditions={"rounds": rounds})


def of_all_ranks(ranks: Sequence[Mapping[str, Timing]]) -> dict[str, Timing]:
    """Return the seconds of each side's rounds, by which rows per second of all ranks add up, and those of `SLOWER`."""
    rounds = {name: list(zip(*(rank[name].seconds for rank in ranks), strict=True)) for name in ranks[0]}
    timings = {name: Timing(name, tuple(map(harmonic_mean, seconds))) for name, seconds in rounds.items()}
    return timings | {SLOWER: Timing(SLOWER, tuple(map(max, rounds[ALONE_IN_OUR_LOOP])))}


def _table(work: Work, timings: Mapping[str, Timing]) -> Table:
    title = f"Feed-forward net 64-256-128-1, Adam, batch {work.batch:,} per worker"
    note = f"{work.steps:,} steps in one epoch; rows of both workers."
    return timing_table(title, WORKERS * work.rows, timings, ALONE_IN_OUR_LOOP, note=note)


BENCHMARK = Benchmark("train_local_steps", question_of(__doc__), 307_200, run)

if __name__ == "__main__":
    main(BENCHMARK)
