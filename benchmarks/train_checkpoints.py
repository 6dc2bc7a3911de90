"""For how much of its time does a training stand still for its checkpoints?

The training thread of the chief, while the callback that saves has it, with the check that all weights are finite; what
follows is published in the background. The other workers wait in their next step for no longer than that. Beside it the
same training without any checkpoint: what is published costs time of the same cores.
"""

import shutil
from statistics import median

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Mark
from benchmarks.report import Report, Table, megabytes
from benchmarks.train_bare import BareRank, BareResult
from benchmarks.train_work import config_of, in_new_process, launch, numbers_dataset, session_with_new_workers
from mirrorspark.callbacks.checkpoints import commit
from mirrorspark.training.protocol.plan import TrainingPlan

EPOCHS = 5
GLOBAL_BATCH_SIZE = 4_096
STALL_MARK = 0.01


def run(options: Options) -> Report:
    """Train as often as there are rounds, with one checkpoint per epoch and without."""
    dataset = in_new_process(numbers_dataset, options, options.rows)
    session = session_with_new_workers()
    config = config_of(options.scratch, epochs=EPOCHS, global_batch_size=GLOBAL_BATCH_SIZE)
    results: list[BareResult] = []
    without: list[BareResult] = []
    sizes = []
    for number in range(options.rounds):
        folder = options.scratch / "checkpoints"
        shutil.rmtree(folder, ignore_errors=True)
        plan = TrainingPlan(
            config,
            str(dataset),
            checkpoints=str(folder),
            workers=config.worker_range.most,
            global_batch_size=GLOBAL_BATCH_SIZE,
        )
        # None always runs behind the same neighbour.
        for saves in (True, False) if number % 2 == 0 else (False, True):
            result = launch(BareRank(plan, saves=saves), makes_its_strategy=True)
            (results if saves else without).append(result)
        newest = commit.latest_committed(str(folder))
        assert newest is not None
        sizes.append(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
    session.stop()
    rows = tuple(
        (
            f"{number}",
            f"{result.seconds / (EPOCHS - 1):.2f}",
            f"{bare.seconds / (EPOCHS - 1):.2f}",
            f"{1e3 * median(result.stalls[1:]):.1f}",
            f"{1e3 * max(result.stalls[1:]):.1f}",
            f"{stalled_share(result):.2%}",
            megabytes(size),
        )
        for number, (result, bare, size) in enumerate(zip(results, without, sizes, strict=True), 1)
    )
    columns = (
        *("round", "epoch, s", "epoch without checkpoints, s"),
        *("median stall, ms", "longest stall, ms", "share", "checkpoints kept"),
    )
    table = Table(f"One checkpoint per epoch of {options.rows:,} rows, 90 % of them for training", columns, rows)
    share = median(stalled_share(result) for result in results)
    mark = Mark("stall for checkpoints / time of training", share, STALL_MARK, "at most")
    return Report(
        BENCHMARK.name, BENCHMARK.question, (table,), (mark,), conditions={"rounds": f"median of {options.rounds}"}
    )


def stalled_share(result: BareResult) -> float:
    """Return the share of the time after the first epoch in which the training stood still."""
    return sum(result.stalls[1:]) / result.seconds


BENCHMARK = Benchmark("train_checkpoints", question_of(__doc__), 2_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
