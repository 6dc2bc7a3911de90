"""How much of the throughput do supervision, progress and MLflow take together?

A whole run through ``train`` against the same ``fit`` in bare ranks: same reader, same ring, same checkpoint after
every epoch, no other callbacks, no events. Beside them ranks without checkpoints, too. The time is that from the end of
the first epoch to the end of the last, validations included. Rounds differ by more than is looked for, so that the CPU
time of all that runs beside the ranks is told, too: the driver, its JVM, Spark's workers.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from pyspark.sql import SparkSession

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Mark, interleave
from benchmarks.report import Report, Table, timing_table
from benchmarks.train_bare import BareRank
from benchmarks.train_work import (
    WORKERS,
    Event,
    config_of,
    cpu_beside_ranks,
    epoch_times,
    in_new_process,
    launch,
    numbers_dataset,
    session_with_new_workers,
    supervised,
)
from data_pipelines.dataset import Dataset
from training.ranks.plan import TrainingPlan

SUPERVISED = "supervised training"
SAVING = "bare ranks with checkpoints"
BARE = "bare ranks"
EPOCHS = 5
GLOBAL_BATCH_SIZE = 4_096
LOST_MARK = 0.02


def run(options: Options) -> Report:
    """Train all ways in turns."""
    dataset = in_new_process(numbers_dataset, options, options.rows)
    # One for each run: MLflow keeps the store of a run open until this process ends.
    outputs = (options.scratch / f"output-{number}" for number in itertools.count(1))
    session = session_with_new_workers()
    beside: list[float] = []
    timings = interleave(
        [
            Contender(BARE, lambda: _bare(dataset, next(outputs), saves=False)),
            Contender(SAVING, lambda: _bare(dataset, next(outputs), saves=True)),
            Contender(SUPERVISED, lambda: _supervised(dataset, next(outputs), session, beside)),
        ],
        options.rounds,
    )
    session.stop()
    rows = Dataset.open(dataset).manifest.rows("train") * (EPOCHS - 1)
    title = f"{EPOCHS - 1} epochs, {rows:,} rows of 40 features, batches of {GLOBAL_BATCH_SIZE:,}"
    table = timing_table(title, rows, timings, BARE)
    lost = lost_share(timings[SUPERVISED].median, timings[SAVING].median)
    mark = Mark("throughput lost by supervision, progress and MLflow", lost, LOST_MARK, "at most")
    return Report(BENCHMARK.name, BENCHMARK.question, (table, beside_table(beside[-options.rounds :])), (mark,))


def beside_table(shares: Sequence[float]) -> Table:
    """Return what runs beside the ranks takes of all cores, of each round a share."""
    cells = tuple(f"{100 * share:.2f} %" for share in (median(shares), min(shares), max(shares)))
    return Table(
        f"CPU time of the driver, its JVM and Spark's workers while {WORKERS} ranks train",
        ("", "median", "least", "most"),
        ((f"of {WORKERS} cores", *cells),),
        "What the ranks themselves do for progress and events is in their own time.",
    )


def lost_share(supervised_seconds: float, bare_seconds: float) -> float:
    """Return the share of the bare throughput that is lost; 0 where none is."""
    return max(0.0, 1.0 - bare_seconds / supervised_seconds)


def _bare(dataset: Path, output: Path, *, saves: bool) -> float:
    config = config_of(output, epochs=EPOCHS, global_batch_size=GLOBAL_BATCH_SIZE)
    plan = TrainingPlan(config, str(dataset), str(output / "checkpoints"), config.worker_range.most, GLOBAL_BATCH_SIZE)
    return launch(BareRank(plan, saves), makes_its_strategy=True).seconds


def _supervised(dataset: Path, output: Path, session: SparkSession, beside: list[float]) -> float:
    """Return the seconds of the epochs; what ran beside the ranks took a share of all cores, which ``beside`` gets."""
    config = config_of(output, epochs=EPOCHS, global_batch_size=GLOBAL_BATCH_SIZE)
    events: list[Event] = []
    spent: list[float] = []

    def listen(event: Event) -> None:
        events.append(event)
        if event["event"] == "epoch_end" and event.get("rank") == 0:
            spent.append(cpu_beside_ranks())

    supervised(dataset, config, session, listen)
    ends = epoch_times(events)
    seconds = ends[-1] - ends[0]
    beside.append((spent[-1] - spent[0]) / (seconds * WORKERS))
    return seconds


BENCHMARK = Benchmark("train_overhead", question_of(__doc__), 2_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
