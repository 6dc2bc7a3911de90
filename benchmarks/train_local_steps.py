"""How fast do workers train that meet now and then, next to workers that never do?

With local updates every worker makes some steps of its own, then all go on from their mean. The same feed-forward net
as in ``train_steps``, with rounds of 8 and of 16 steps, next to two processes that know nothing of each other, in
Keras' loop and in ours. What is compared differs by less than this machine does from one minute to the next: these
sides stand beside each other here, and are measured three times as often. How well the model ranks is what
``train_local_updates`` tells.
"""

from collections.abc import Mapping

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Timing, interleave
from benchmarks.report import Report, Table, timing_table
from benchmarks.train_data import Work
from benchmarks.train_fit import FitRank
from benchmarks.train_steps import ALONE, ALONE_IN_OUR_LOOP, LARGE_BATCH, LOCAL, SMALL_BATCH, Aim, ours
from benchmarks.train_work import WORKERS, session_with_new_workers

ROUNDS = 3  # for each that is asked for
MARKS: Mapping[int, float] = {SMALL_BATCH: 0.9, LARGE_BATCH: 0.95}


def run(options: Options) -> Report:
    """Measure both batch sizes."""
    session = session_with_new_workers()
    tables: list[Table] = []
    marks = []
    for batch, limit in MARKS.items():
        work = Work.of_rows("mlp", batch, options.rows)
        sides = [
            *(ours(name, FitRank("ring", work, local_steps=steps, our_loop=True)) for steps, name in LOCAL.items()),
            ours(ALONE, FitRank("alone", work)),
            ours(ALONE_IN_OUR_LOOP, FitRank("alone", work, our_loop=True)),
        ]
        timings = interleave(sides, ROUNDS * options.rounds, warm_ups=0)
        tables.append(_table(work, timings))
        aims = [Aim(name, (ALONE, ALONE_IN_OUR_LOOP), limit) for name in LOCAL.values()]
        marks += [mark for aim in aims if (mark := aim.mark(work, timings)) is not None]
    session.stop()
    rounds = f"median of {ROUNDS * options.rounds}, interleaved; each in new processes, after steps that do not count"
    return Report(BENCHMARK.name, BENCHMARK.question, tuple(tables), tuple(marks), conditions={"rounds": rounds})


def _table(work: Work, timings: Mapping[str, Timing]) -> Table:
    title = f"Feed-forward net 64-256-128-1, Adam, batch {work.batch:,} per worker"
    note = f"{work.steps:,} steps in one epoch; rows of both workers."
    return timing_table(title, WORKERS * work.rows, timings, ALONE_IN_OUR_LOOP, note=note)


BENCHMARK = Benchmark("train_local_steps", question_of(__doc__), 1_228_800, run)

if __name__ == "__main__":
    main(BENCHMARK)
