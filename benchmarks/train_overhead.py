"""How much of the throughput do supervision, progress and MLflow take together?

It is found in two ways, in one run in which supervision rests in every other pair of epochs, and checkpoints are saved
in all. By adding up: the time that goes by in the callbacks of supervision (following, telling, asking for stops),
waiting for the other rank included; the CPU time of a rank's other threads of ours, as if the training could have used
all of it; and that of all that runs beside the ranks of whole runs (the driver, its JVM, Spark's workers, and in them
MLflow and the live view). By comparing: neighbouring epochs with and without supervision, which meet the same machine
and still differ by more than is looked for, and what runs beside the ranks. Beside that whole runs through ``train``
against the same ``fit`` in bare ranks: same reader, same ring, same checkpoint after every epoch, no other callbacks,
no events; and ranks without checkpoints, too. Their time is that from the end of the first epoch to the end of the
last, validations included, and may differ by more from round to round than is looked for.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from unittest import mock

from pyspark.sql import SparkSession

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Mark, interleave
from benchmarks.report import Report, Table, timing_table
from benchmarks.train_bare import BareRank
from benchmarks.train_halves import GROUP, TIMES_FILE, Halves, Times, halves_of
from benchmarks.train_work import (
    WORKERS,
    Event,
    config_of,
    cpu_beside_ranks,
    in_new_process,
    launch,
    numbers_dataset,
    session_with_new_workers,
    supervised,
)
from mirrorspark.data_pipelines.reading.dataset import Dataset
from mirrorspark.training.protocol.plan import TrainingPlan

SUPERVISED = "supervised training"
SAVING = "bare ranks with checkpoints"
BARE = "bare ranks"
EPOCHS = 5
# Of epochs with and without supervision.
GROUPS_A_ROUND = 7
# By name: the driver has no use for the TensorFlow that it imports.
EVERY_OTHER = "benchmarks.train_every_other:train"
GLOBAL_BATCH_SIZE = 4_096
LOST_MARK = 0.02


def run(options: Options) -> Report:
    """Train all ways in turns, then once with and without supervision."""
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
    rows = Dataset.open(dataset).manifest.rows("train")
    epochs = EPOCHS - 1
    title = f"Whole runs: {epochs} epochs, {epochs * rows:,} rows of 40 features, batches of {GLOBAL_BATCH_SIZE:,}"
    # While supervision rests, less runs beside the ranks.
    beside = beside[-options.rounds :]
    halves = in_new_process(_halves, dataset, next(outputs), options.rounds * GROUPS_A_ROUND, median(beside))
    tables = (
        accounts_table(halves),
        halves_table(halves, rows),
        beside_table(beside),
        timing_table(title, epochs * rows, timings, BARE),
    )
    what = "throughput lost by supervision, progress and MLflow"
    marks = (
        Mark(f"{what}, added up", halves.accounted, LOST_MARK, "at most"),
        Mark(f"{what}, neighbouring epochs compared", halves.compared, LOST_MARK, "at most"),
    )
    return Report(BENCHMARK.name, BENCHMARK.question, tables, marks)


def accounts_table(halves: Halves) -> Table:
    """Return where supervision spends its time."""
    shares = (
        ("in its callbacks, of the chief's time", halves.within),
        ("CPU of the chief's other threads, of its core", halves.threads),
        (f"CPU beside the ranks, of {WORKERS} cores", halves.beside),
        ("together", halves.accounted),
    )
    return Table("Added up", ("where", "share"), tuple((where, f"{100 * share:.2f} %") for where, share in shares))


def halves_table(halves: Halves, rows: int) -> Table:
    """Return what supervision costs the ranks, in epochs of so many rows."""
    least, most = halves.interval
    epochs = GROUP / 2
    return Table(
        f"Compared: one run of {GROUP * len(halves.resting)} epochs, {rows:,} rows each",
        ("supervision", "median seconds of an epoch", "slow-down"),
        (
            ("resting", f"{median(halves.resting) / epochs:.3f}", ""),
            ("at work", f"{median(halves.supervised) / epochs:.3f}", f"{100 * halves.slow_down:+.2f} %"),
        ),
        f"Slow-down: of two epochs against two beside them, in the median of {len(halves.resting)} groups; with 95 % "
        f"probability it lies between {100 * least:+.2f} and {100 * most:+.2f} %.",
    )


def beside_table(shares: Sequence[float]) -> Table:
    """Return what runs beside the ranks takes of all cores, of each round a share."""
    cells = tuple(f"{100 * share:.2f} %" for share in (median(shares), min(shares), max(shares)))
    return Table(
        f"CPU time of the driver, its JVM and Spark's workers while {WORKERS} ranks train",
        ("", "median", "least", "most"),
        ((f"of {WORKERS} cores", *cells),),
        "What the ranks themselves do for progress and events is in their own time.",
    )


def _bare(dataset: Path, output: Path, *, saves: bool) -> float:
    config = config_of(output, epochs=EPOCHS, global_batch_size=GLOBAL_BATCH_SIZE)
    plan = TrainingPlan(
        config,
        str(dataset),
        checkpoints=str(output / "checkpoints"),
        workers=config.worker_range.most,
        global_batch_size=GLOBAL_BATCH_SIZE,
    )
    return launch(BareRank(plan, saves), makes_its_strategy=True).seconds


def _supervised(dataset: Path, output: Path, session: SparkSession, beside: list[float], epochs: int = EPOCHS) -> float:
    """Return the seconds of the epochs; what ran beside the ranks took a share of all cores, which ``beside`` gets."""
    config = config_of(output, epochs=epochs, global_batch_size=GLOBAL_BATCH_SIZE)
    told: list[float] = []
    spent: list[float] = []

    def listen(event: Event) -> None:
        if event["event"] == "epoch_end" and event.get("rank") == 0:
            told.append(event["time"])
            spent.append(cpu_beside_ranks())

    supervised(dataset, config, session, listen)
    seconds = told[-1] - told[0]
    beside.append((spent[-1] - spent[0]) / (seconds * WORKERS))
    return seconds


def _halves(dataset: Path, output: Path, groups: int, beside: float) -> Halves:
    """Return what a run of so many groups of epochs found, beside whose ranks such a share of all cores is taken."""
    with mock.patch.object(TrainingPlan, "entry", EVERY_OTHER):
        _supervised(dataset, output, session_with_new_workers(), [], epochs=1 + GROUP * groups)
    (file,) = output.rglob(TIMES_FILE)
    return halves_of(Times.read(file), beside)


BENCHMARK = Benchmark("train_overhead", question_of(__doc__), 2_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
