"""How much of the throughput do supervision, progress and MLflow take together?

A whole run through ``train`` against the same ``fit`` in bare ranks: same reader, same ring, same checkpoint after
every epoch, no other callbacks, no events. Beside them ranks without checkpoints, too. The time is that from the end of
the first epoch to the end of the last, validations included.
"""

import itertools
from pathlib import Path

from benchmarks.benchmark import Benchmark, Options, main, question_of
from benchmarks.measure import Contender, Mark, interleave
from benchmarks.report import Report, timing_table
from benchmarks.train_bare import BareRank
from benchmarks.train_work import (
    config_of,
    epoch_times,
    in_new_process,
    launch,
    numbers_dataset,
    read_events,
    session_with_new_workers,
    trained,
)
from data_pipelines.dataset import Dataset
from training.ranks.plan import TrainingPlan

SUPERVISED = "training.train"
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
    timings = interleave(
        [
            Contender(BARE, lambda: _bare(dataset, next(outputs), saves=False)),
            Contender(SAVING, lambda: _bare(dataset, next(outputs), saves=True)),
            Contender(SUPERVISED, lambda: _supervised(dataset, next(outputs))),
        ],
        options.rounds,
    )
    session.stop()
    rows = Dataset.open(dataset).manifest.rows("train") * (EPOCHS - 1)
    title = f"{EPOCHS - 1} epochs, {rows:,} rows of 40 features, batches of {GLOBAL_BATCH_SIZE:,}"
    table = timing_table(title, rows, timings, BARE)
    lost = lost_share(timings[SUPERVISED].median, timings[SAVING].median)
    mark = Mark("throughput lost by supervision, progress and MLflow", lost, LOST_MARK, "at most")
    return Report(BENCHMARK.name, BENCHMARK.question, (table,), (mark,))


def lost_share(supervised_seconds: float, bare_seconds: float) -> float:
    """Return the share of the bare throughput that is lost; 0 where none is."""
    return max(0.0, 1.0 - bare_seconds / supervised_seconds)


def _bare(dataset: Path, output: Path, *, saves: bool) -> float:
    config = config_of(output, epochs=EPOCHS, global_batch_size=GLOBAL_BATCH_SIZE)
    plan = TrainingPlan(config, str(dataset), str(output / "checkpoints"), config.worker_range.most, GLOBAL_BATCH_SIZE)
    return launch(BareRank(plan, saves), makes_its_strategy=True).seconds


def _supervised(dataset: Path, output: Path) -> float:
    config = config_of(output, epochs=EPOCHS, global_batch_size=GLOBAL_BATCH_SIZE)
    ends = epoch_times(read_events(trained(dataset, config).run_folder / "events.jsonl"))
    return ends[-1] - ends[0]


BENCHMARK = Benchmark("train_overhead", question_of(__doc__), 2_000_000, run)

if __name__ == "__main__":
    main(BENCHMARK)
